"""The answer file of the VQA server, one JSON array of {"question_id": int, "answer": str}: written and checked.

The server compares the set of question ids with its own and rejects the whole file on any difference; of two answers
to a question it silently takes the last. Every phase wants all of test2015, test-dev too. Plain Python, no torch.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO, TypeVar

from vlbeit.data.json_file import JsonFile
from vlbeit.errors import DataError, some
from vlbeit.files import write_by

Key = TypeVar("Key", bound=Hashable)

FIRST = 10  # ids that a finding names
NO_VALUE = object()  # what read_json gives for a file that is no JSON: `null` is a value
_SUBSET = re.compile(rb'"data_subtype"\s*:\s*"([^"]*)"')
_AROUND = 1 << 16  # bytes at both ends of a file in which data_subtype is looked for


class Questions(NamedTuple):
    """A question file: its ids in order, and the `data_subtype` that it names ("" where it names none)."""

    path: Path
    ids: list[int]
    subset: str


@dataclass(frozen=True)
class Finding:
    """Something in an answer file: an error, for which a server rejects it, or a warning, which looks like a slip."""

    code: str
    severity: str  # error | warning
    count: int
    ids: list[Any]  # the first ones: question ids, or what stands in their place
    message: str
    remedy: str

    def shown(self, most: int = 3) -> str:
        """`20 (100, 101, 102, ...)`: how many, and the first."""
        ids = f" ({', '.join(map(str, self.ids[:most]))}{', ...' if self.count > most else ''})" if self.ids else ""
        return f"{self.count}{ids}"


def read_questions(path: str | Path) -> Questions:
    """An official question file. Raises DataError naming the file and what is wrong with it."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; name an official question file") from error
    ids = []
    for place, (_, row) in enumerate(JsonFile(path, data).items("questions")):
        key = row.get("question_id") if isinstance(row, dict) else None
        if type(key) is not int:  # bool is an int in Python, and `true` no question id
            raise DataError(f"{path}: questions[{place}] has no question_id that is an integer; fetch the file again")
        ids.append(key)
    if not ids:
        raise DataError(f"{path} holds no questions: name another file")
    if twice := repeated(ids):
        raise DataError(f"{path}: questions asked twice: {some(twice)}; every question must have its own id")
    return Questions(path, ids, stated_subset(data))


def stated_subset(data: bytes) -> str:
    """The `data_subtype` that the head or the end of an official file names, such as test2015; "" where none does."""
    found = _SUBSET.search(data[:_AROUND]) or _SUBSET.search(data[-_AROUND:])
    return found[1].decode(errors="replace") if found else ""


def write_answers(path: str | Path, answers: Mapping[int, str], question_ids: Collection[int]) -> int:
    """Write one answer for every question, sorted by id, whole or not at all; read it back; return how many.

    Raises DataError, with nothing overwritten, if a question is unanswered, asked twice, or an answer is foreign.
    """
    if not question_ids:
        raise DataError(f"{path}: there are no questions to answer")
    if twice := repeated(question_ids):
        raise DataError(f"{path}: questions asked twice: {some(twice)}; every question must have its own id")
    _refuse(path, _id_errors(list(answers), question_ids))

    def write(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            _write_array(file, sorted(answers.items()))
        _refuse(path, entry_errors(read_json(temporary)[0], question_ids)[0])

    write_by(path, write)
    return len(answers)


def read_json(path: Path) -> tuple[Any, list[Finding]]:
    """The JSON value of a file, NO_VALUE where it is none, and what stands in the way of reading it."""
    data, findings = path.read_bytes(), []
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        what = f"byte {error.start} is not UTF-8"
        findings.append(rejected("not_utf8", [], what, "write the file as UTF-8, or with ASCII escapes alone"))
        text = data.decode("utf-8", errors="replace")
    if text.startswith("\ufeff"):
        findings.append(rejected("not_json", [], "the file begins with a byte order mark", "write it as UTF-8 without"))
        text = text[1:]
    try:
        return json.loads(text), findings
    except (ValueError, RecursionError) as error:
        at = f"line {error.lineno} column {error.colno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else ""
        remedy = "write one JSON array; a file that ends too early was cut off on its way"
        return NO_VALUE, [*findings, rejected("not_json", [], f"not JSON ({at or error})", remedy)]


def entry_errors(entries: Any, question_ids: Collection[int]) -> tuple[list[Finding], list[int], dict[int, str]]:
    """The errors in a list of entries, the ids that are whole numbers, and the answers that are texts by id."""
    shapeless: list[Any] = []
    odd_ids: list[Any] = []
    odd_answers: list[Any] = []
    ids: list[int] = []
    texts: dict[int, str] = {}
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict) or "question_id" not in entry or "answer" not in entry:
            shapeless.append(f"entry {place}")
            continue
        key, answer = entry["question_id"], entry["answer"]
        if type(key) is not int:
            odd_ids.append(key if isinstance(key, str | float | bool) else f"entry {place}")
        else:
            ids.append(key)
        if not isinstance(answer, str):
            odd_answers.append(key)
        elif type(key) is int:
            texts[key] = answer
    faults = (
        ("no_fields", shapeless, "entries that are no object with question_id and answer", "write both for each"),
        ("id_not_integer", odd_ids, "entries whose question_id is no integer", "write 262148000, not a text"),
        ("answer_not_text", odd_answers, "entries whose answer is no text", 'write "2", not 2'),
    )
    found = [rejected(code, at, message, remedy) for code, at, message, remedy in faults if at]
    return [*found, *_id_errors(ids, question_ids)], ids, texts


def _id_errors(ids: list[int], question_ids: Collection[int]) -> Iterator[Finding]:
    asked, answered = set(question_ids), set(ids)
    faults = (
        (
            "repeated",
            sorted(repeated(ids)),
            "questions answered more than once: the server takes the last",
            "keep one each",
        ),
        ("missing", sorted(asked - answered), "questions without an answer", "answer every question of the file"),
        ("foreign", sorted(answered - asked), "answers to questions that are not asked", "remove them"),
    )
    yield from (rejected(code, at, message, remedy) for code, at, message, remedy in faults if at)


def _write_array(file: TextIO, answers: Iterable[tuple[int, str]]) -> None:
    """The array without ever holding its text."""
    for place, (key, answer) in enumerate(answers):
        entry = json.dumps({"question_id": key, "answer": answer}, ensure_ascii=False, separators=(",", ":"))
        file.write(f"{',' if place else '['}{entry}")
    file.write("]\n")


def _refuse(path: str | Path, findings: Iterable[Finding]) -> None:
    for finding in findings:
        raise DataError(f"{path}: {finding.message}: {finding.shown()}; {finding.remedy}")


def repeated(keys: Iterable[Key]) -> list[Key]:
    """Those that come more than once, each once."""
    return [key for key, count in Counter(keys).items() if count > 1]


def rejected(code: str, at: list[Any], message: str, remedy: str) -> Finding:
    return Finding(code, "error", len(at) or 1, at[:FIRST], message, remedy)
