"""Questions of a user's own: what a row of any table means, by the names of its columns.

`data=vqa` and `vlbeit prepare vqa` read by this one parser, plain Python. Answers are kept in the official normal form,
since ten equal answers are compared literally by the official rule (a "Dog" could never be hit), and fewer than ten are
repeated to at least ten, as OK-VQA doubles its five: else neither the leave-one-out score nor a soft target reaches 1.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import json
import math
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vlbeit.data.answers import clean_answer, majority_answer, normalize_answer
from vlbeit.data.picture_names import PictureNames
from vlbeit.data.row_files import Row, Table
from vlbeit.data.storable import printable, storable, storable_record
from vlbeit.errors import UsageError
from vlbeit.types import Record

NAMES: dict[str, tuple[str, ...]] = {
    "image": ("image", "image_path", "image_file", "file_name", "filename", "img", "img_path", "picture"),
    "question": ("question", "question_text"),
    "answers": ("answers", "answer"),
    "question_id": ("question_id", "qid", "id"),
    "image_id": ("image_id", "img_id"),
    "question_type": ("question_type",),
    "answer_type": ("answer_type",),
    "multiple_choice_answer": ("multiple_choice_answer",),
    "split": ("split",),
}
"""What a column may mean, and the names by which it is known without being told; case, blanks and - do not matter."""

MISSING = "picture is missing"  # how such a fault begins
RESERVED = frozenset((
    "overall", "questions", "blind", "split", "metric", "data", "step", "words", "details", "interval", "interval_over",
    "breakdown", "ensemble", "test_flip", "unanswered", "perAnswerType", "perQuestionType", "perQuestion",
))  # fmt: skip
"""No types of answers: the score of each type stands among these in an evaluation."""

_LONGEST = 4096  # letters of a path
HUMANS = 10  # answers of a question, as many as VQA v2 has
_ROLE = re.compile(rf",(?=(?:{'|'.join(NAMES)}):)")
_FLOAT = re.compile(r"([+-]?\d+)\.0")  # what a table program makes of a whole number
_OWN = ("question_id", "image_id", "split")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
_NO_COMMAS = re.compile(r"""^\[\s*(['"]).*\1\s+['"].*\]$""", re.DOTALL)  # how numpy prints a list
_ADDRESS = re.compile(r"[a-z]+s?://", re.IGNORECASE)


class Question(NamedTuple):
    """One row, read: what is asked, about which picture, and what is wrong with it ("": nothing)."""

    place: str  # "my.csv, line 7"
    split: str  # that the row or its table names; ""
    id: str  # that the row names; ""
    image_id: str  # that the row names; ""
    image: str | bytes  # absolute path or encoded bytes
    image_key: int  # the same for the same picture
    image_name: str  # as the table has it: the folder may move
    record: Record  # question, question_type, answer_type, answers, multiple_choice_answer
    fault: str  # "what: detail"
    at: tuple[int, int] = (0, 0)  # which table, and which row of it, from 0
    semicolon: bool = False  # in answers that are one text, where a | would part them


class VQARows:
    """The questions of one or several tables, in their order, as often as one asks for them."""

    def __init__(self, tables: Sequence[Table], given: Mapping[str, str], images: str | Path, option: str) -> None:
        """`given`: column by its meaning (`parse_columns`); `images`: folder of the pictures, "" for the table's own;
        `option`: how a user says one, `--columns {}`, for messages. Raises `UsageError` for columns that are not there.
        """
        self.tables = list(tables)
        names = {column for table in self.tables for column in table.columns}
        self._columns = [find_columns(table, _given_to(table, given, names), option) for table in self.tables]
        self._pictures = [PictureNames(Path(images) if images else table.folder) for table in self.tables]

    def columns(self, meaning: str) -> list[str]:
        """Of each table the name of a column; "" where it has none."""
        return [columns.get(meaning, "") for columns in self._columns]

    def __iter__(self) -> Iterator[Question]:
        parts = zip(self.tables, self._columns, self._pictures, strict=True)
        for number, (table, columns, pictures) in enumerate(parts):
            for at, row in enumerate(table.read(list(dict.fromkeys(columns.values())))):
                yield _question(table, columns, pictures, row)._replace(at=(number, at))


def _given_to(table: Table, given: Mapping[str, str], names: Container[str]) -> dict[str, str]:
    """The columns that are given, but for one that only other tables have: a test split has no answers."""
    return {meaning: name for meaning, name in given.items() if name in table.columns or name not in names}


def parse_columns(words: Sequence[str], option: str) -> dict[str, str]:
    """`["question:q", "answers:a,image:file"]` to meaning -> column; an empty column leaves that meaning out."""
    found: dict[str, str] = {}
    for word in (part for given in words for part in _ROLE.split(given)):
        meaning, colon, column = word.partition(":")
        if not colon or meaning not in NAMES:
            near = difflib.get_close_matches(meaning, NAMES, 1)
            guess = f"did you mean {near[0]}:{column or 'COLUMN'}? " if near else ""
            raise UsageError(f"{option.format(word)} is not MEANING:COLUMN; {guess}meanings are {', '.join(NAMES)}")
        found[meaning] = column.strip()
    return found


def find_columns(table: Table, given: Mapping[str, str], option: str) -> dict[str, str]:
    """Meaning -> column of the table. Raises `UsageError`, naming the nearest and those that are there."""
    known: dict[str, str] = {}
    for column in table.columns:
        known.setdefault(_plain(column), column)
    found: dict[str, str] = {}
    lacking: dict[str, Sequence[str]] = {}  # meaning -> names that were looked for
    for meaning, names in NAMES.items():
        default = next((known[name] for name in names if name in known), "")
        column = given.get(meaning, default)
        if column and column not in table.columns:
            lacking[meaning] = (column,)
        elif column:
            found[meaning] = column
    if "image" not in found and "image" not in given and "image_id" in found:
        found["image"] = found["image_id"]
    lacking |= {meaning: NAMES[meaning] for meaning in ("image", "question") if meaning not in {**found, **lacking}}
    free = [column for column in table.columns if column not in found.values()]
    unnamed = "answers" not in {**found, **given}
    if unnamed and (_near(free, NAMES["answers"]) or (lacking and len(free) > len(lacking))):
        lacking["answers"] = NAMES["answers"]
    if lacking:
        left_out = f", or leave answers out: {option.format('answers:')}" if [*lacking] == ["answers"] else ""
        raise UsageError(_lacking(table, lacking, option) + left_out)
    return found


def _lacking(table: Table, lacking: Mapping[str, Sequence[str]], option: str) -> str:
    near = {meaning: _near(table.columns, names) for meaning, names in lacking.items()}
    guesses = [repr(column) for meaning, column in near.items() if column and column not in lacking[meaning]]
    guess = f"did you mean {', '.join(guesses)}? " if guesses else ""
    names = ", ".join(" or ".join(names[:2]) for names in lacking.values())
    words = option.format(",".join(f"{meaning}:{column or 'COLUMN'}" for meaning, column in near.items()))
    return (
        f"{table.name} has no column {names}: {guess}it has {', '.join(table.columns)}; name "
        f"{'it' if len(lacking) == 1 else 'them'} with {words}"
    )


def _near(columns: Sequence[str], names: Sequence[str]) -> str:
    """The column whose name is nearest to one of the names; "" where none is near."""
    plain = {_plain(column): column for column in columns}
    found = (match for name in names for match in difflib.get_close_matches(_plain(name), plain, 1, 0.7))
    return next((plain[match] for match in found), "")


def _plain(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().casefold())


# ---- one row


def _question(table: Table, columns: Mapping[str, str], pictures: PictureNames, row: Row) -> Question:
    values = {meaning: row.values.get(column) for meaning, column in columns.items()}
    image: str | bytes = ""
    key, name, fault = 0, "", ""
    own, record = dict.fromkeys(_OWN, ""), Record()
    if row.fault:
        fault = f"row cannot be read: {row.fault}"
    else:
        try:
            image, key, name, fault = _image(values.get("image"), pictures)
            own = {meaning: storable(text(values.get(meaning))) for meaning in _OWN}
            record = _record(values)
        except ValueError as error:
            fault = str(error)
    if "question_id" in columns and not own["question_id"]:
        fault = fault or "question_id is empty"
    place, split = f"{table.name}, {row.place}", own["split"] or table.split
    own_id, image_id = whole(own["question_id"]), whole(own["image_id"])
    found = Question(printable(place), split, own_id, image_id, image, key, name, record, printable(fault))
    return found._replace(semicolon=_has_semicolon(values.get("answers")))


def _has_semicolon(cell: Any) -> bool:
    return isinstance(cell, str) and ";" in cell and "|" not in cell and not cell.lstrip().startswith("[")


def _record(values: Mapping[str, Any]) -> Record:
    """The fields that a row gives by itself. ValueError: what is wrong with it."""
    question = text(values.get("question"))
    if not question:
        raise ValueError("question is empty")
    answers = own_answers(answers_of(values.get("answers")))
    main = normalize_answer(whole(text(values.get("multiple_choice_answer"))))
    kind = text(values.get("answer_type"))
    if kind in RESERVED:
        raise ValueError(f"answer_type is the name of another number of an evaluation: {kind}, rename the type")
    record: Record = {
        "question": question,
        "question_type": text(values.get("question_type")) or question_type(question),
        "answer_type": kind or answer_type(main or majority_answer(answers)),
        "answers": answers,
        "multiple_choice_answer": main,
    }
    return storable_record(record)


def _image(value: Any, pictures: PictureNames) -> tuple[str | bytes, int, str, str]:
    """Path or bytes of a picture, a number that it is known by, its name in the table, what is wrong with it."""
    if isinstance(value, Mapping):  # an image of `datasets`
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes) and value:
        return value, _hash(value), hashlib.blake2b(value, digest_size=16).hexdigest(), ""
    written = storable(value.strip() if isinstance(value, str) else text(value))
    if not written:
        return "", 0, "", "picture is not named"
    if len(written) > _LONGEST or written.startswith("data:"):
        return "", 0, "", f"picture is written out as text: {written[:20]}..., give a file, or Parquet with its bytes"
    if _ADDRESS.match(written) and not written.startswith("file://"):
        return "", 0, "", f"picture is an address: {written}, download it first"
    path, there = pictures.find(whole(written))
    return storable(path), _hash(path.encode()), written, "" if there else f"{MISSING}: {path}"


def _hash(value: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(value, digest_size=8).digest(), "big")


def text(value: Any) -> str:
    """A value as one line of text: numbers as people write them (2, not 2.0), true and false as yes and no.

    Bytes are UTF-8. ValueError where they are not, and for lists in lists without end.
    """
    if isinstance(value, bytes):
        value = _decoded(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    try:
        return " ".join(str(value).split())
    except RecursionError as error:
        raise ValueError("lists in lists are too deep to be read") from error


def _decoded(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"bytes are not UTF-8: {value[:20]!r}") from error


def whole(written: str) -> str:
    """A text without the .0 that table programs put behind whole numbers."""
    match = _FLOAT.fullmatch(written)
    return match[1] if match else written


def answers_of(value: Any) -> list[str]:
    """The answers in a cell: a text, texts between `|`, a JSON or Python list, a list of texts or of VQA v2's objects.

    ValueError for a list that cannot be told apart or is too deep, objects without `answer`, bytes that are no UTF-8.
    """
    try:
        return _answers_of(_decoded(value) if isinstance(value, bytes) else value)
    except RecursionError as error:
        raise ValueError("answers cannot be read: lists in lists are too deep") from error


def _answers_of(value: Any) -> list[str]:
    if isinstance(value, str):
        value = _listed(value.strip())
    if isinstance(value, Mapping):
        if "answer" not in value:
            raise ValueError(
                f"answers cannot be read: an object without 'answer' but with {', '.join(map(str, value))}"
            )
        return _answers_of(value["answer"])
    if isinstance(value, list | tuple):
        return [answer for item in value for answer in _single(item)]
    return list(_single(value))


def _single(value: Any) -> Iterator[str]:
    """The answer in an item of a list, where there is one."""
    if isinstance(value, Mapping | list | tuple):
        yield from _answers_of(value)
    elif answer := clean_answer(whole(text(value))):
        yield answer


def _listed(cell: str) -> Any:
    """A cell's list where it is written as one, else its texts."""
    if cell.startswith("[") and cell.endswith("]"):
        if _NO_COMMAS.match(cell) and "," not in cell:
            raise ValueError(f"answers cannot be read: a list without commas, {cell[:40]}; write it as JSON")
        for read in (json.loads, ast.literal_eval):
            try:
                return read(cell)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    return cell.split("|")


def own_answers(answers: Sequence[str]) -> list[str]:
    """In the official normal form, repeated to at least ten; [] stays. ValueError where that leaves nothing."""
    found = [normal for answer in answers if (normal := normalize_answer(answer))]
    if answers and not found:
        raise ValueError(
            f"answers are empty in the official form: {answers[0]!r} is an article or marks alone; write another word"
        )
    return found * -(-HUMANS // len(found)) if found else []


def question_type(question: str) -> str:
    """The first two words, as in VQA v2 ("how many"), which has a fixed list of 65 such beginnings."""
    return " ".join(re.findall(r"[^\W_]+(?:'[^\W_]+)?", question.casefold())[:2]) or "none of the above"


def answer_type(answer: str) -> str:
    """`yes/no`, `number` or `other`; "" where there is no answer."""
    if answer in ("yes", "no"):
        return "yes/no"
    return ("number" if _NUMBER.fullmatch(answer) else "other") if answer else ""
