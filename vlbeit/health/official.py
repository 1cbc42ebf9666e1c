"""Official VQA files read as far as they go: what `vlbeit.data.sources.vqa_v2` refuses becomes a finding here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from reprlib import repr as short
from typing import Any, NamedTuple, TypeVar

from vlbeit.data.answer_file import stated_subset
from vlbeit.data.json_file import JsonFile
from vlbeit.data.vqa_v2_files import image_files
from vlbeit.errors import DataError, some

from .findings import found
from .parts import Annotation, Part, Place, Question
from .progress import Say

Row = TypeVar("Row")

SOURCES = ("vqa_v2", "scenes", "okvqa")  # whose questions lie in such files; those of OK-VQA without v2_
_NAME = re.compile(r"(?:OpenEnded_)?mscoco_([A-Za-z0-9-]+)_(questions|annotations)\.json")


class OfficialFiles(NamedTuple):
    """The files of one split; a path is None where there is no such file."""

    subtype: str
    questions: Path | None
    annotations: Path | None
    images: Path


def official_files(root: Path, source: str, images: str = "") -> list[OfficialFiles]:
    """The splits whose question or annotation files lie in a folder; `images`: folder of the folders of pictures."""
    edition = "" if source == "okvqa" else "v2_"
    files: dict[str, dict[str, Path]] = {}
    for path in root.iterdir() if root.is_dir() else ():
        if path.name.startswith(edition) and (match := _NAME.fullmatch(path.name.removeprefix(edition))):
            files.setdefault(match[1], {})[match[2]] = path
    pictures = Path(images).expanduser() if images else root
    order = sorted(files, key=lambda name: (not name.startswith("train"), not name.startswith("val"), name))
    return [
        OfficialFiles(name, files[name].get("questions"), files[name].get("annotations"), _images(pictures, name))
        for name in order
    ]


def read_part(files: OfficialFiles, say: Say) -> Part:
    """One split with everything that could be read of it, and findings about what could not."""
    name = files.subtype
    there = image_files([files.images]) if files.images.is_dir() else {}
    pictures: dict[int | str, Place] = dict(there.items())
    part = Part(name, [], None, pictures, place=str(files.images))
    if not files.images.is_dir():
        part.findings += found("missing-file", name, [files.images.name], f"there is no folder {files.images}")
    elif not pictures:
        part.findings += found("missing-file", name, [files.images.name], f"{files.images} holds no picture")
    if files.questions is None:
        path = files.annotations
        part.findings += found("missing-file", name, [name], f"{path} is there and the questions of {name} are not")
        part.whole = False
    else:
        part.questions = _Reader(part, files.questions, "questions").rows(_question)
        say(f"{name}: {len(part.questions):,} questions")
    if files.annotations is not None:
        part.annotations = _Reader(part, files.annotations, "annotations").rows(_annotator())
        say(f"{name}: {len(part.annotations):,} annotations")
    elif not name.startswith("test"):  # whose answers are hidden
        part.findings += found("missing-file", name, [name], f"the annotations of {name} are not there")
        part.whole = False
    if not part.questions and not part.findings:
        part.findings += found("empty-split", name, [name], f"{files.questions} holds no question")
    return part


class _Reader:
    """Reads the rows of one file into a part and notes in it what is wrong with the file."""

    def __init__(self, part: Part, path: Path, key: str) -> None:
        self.part, self.path, self.key = part, path, key

    def rows(self, convert: Callable[[Any], Row]) -> list[Row]:
        """Rows up to the end or to the damage; those that are not as in VQA v2 are left out and named."""
        rows: list[Row] = []
        wrong: dict[str, str] = {}
        for position, item in self._whole_items(rows):
            place = f"{self.key}[{position}]"
            try:
                rows.append(convert(item))
                if lack := _lack(item, self.key):  # of a row that can be used all the same
                    wrong[place] = lack
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                wrong[place] = f"{type(error).__name__}: {error}"
                self.part.whole = False
        if wrong:
            reason = next(iter(wrong.values()))
            text = f"{self.path}: rows not as in VQA v2: {some(list(wrong))} ({reason})"
            self._note("malformed-row", list(wrong), text)
        return rows

    def _whole_items(self, rows: Sequence[Row]) -> Iterator[tuple[int, Any]]:
        """The items up to the end or to the damage, which is noted."""
        try:
            yield from enumerate(self._items())
        except (DataError, RecursionError) as error:
            self._note("damaged-file", [self.path.name], f"{error}; {len(rows):,} {self.key} stand before that")
            self.part.whole = False

    def _items(self) -> Iterator[Any]:
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror or error}") from error
        self._check_subtype(data)
        file = JsonFile(self.path, data)
        del data  # hundreds of megabytes
        for _, item in file.items(self.key):
            yield item

    def _check_subtype(self, data: bytes) -> None:
        subtype = stated_subset(data) or self.part.name
        if subtype != self.part.name:
            self._note("wrong-split-file", [self.path.name], f"{self.path} says of itself data_subtype {subtype!r}")

    def _note(self, code: str, ids: list[str], message: str) -> None:
        self.part.findings += found(code, self.part.name, ids, message)


_FIELDS = {"questions": ("question",), "annotations": ("question_type", "answer_type", "answers")}


def _lack(row: dict[str, Any], key: str) -> str:
    """What the training reader misses in a row; "" where it is whole."""
    if lacking := [name for name in _FIELDS[key] if name not in row]:
        return f"no {' and '.join(lacking)}"
    answers = row.get("answers", [])
    if not isinstance(answers, list):
        return "answers is no list"
    if not all(isinstance(item, dict) and "answer" in item for item in answers):
        return "an answer without text"
    odd = next((item["answer"] for item in answers if not isinstance(item["answer"], str)), "")
    return "" if odd == "" else f"the answer {short(odd)} is no text: training takes it as {short(str(odd))}"


def _number(row: Any, name: str) -> int:
    """An id. KeyError, TypeError, ValueError or OverflowError where it is none that an index can hold."""
    if not isinstance(row, dict):
        raise TypeError(f"{type(row).__name__} instead of an object")
    number = row[name]
    if type(number) is not int:  # bool is an int in Python
        raise TypeError(f"{name} is {short(number)}, no integer")
    if not -(1 << 63) <= number < 1 << 63:
        raise ValueError(f"{name} is beyond 64 bits")
    return number


def _question(row: Any) -> Question:
    number, image = _number(row, "question_id"), _number(row, "image_id")
    text = row.get("question")
    return Question(number, image, _checked(text) if isinstance(text, str) else "")


def _checked(text: str) -> str:
    """The text. UnicodeEncodeError where no index can hold it: half of a surrogate pair."""
    if not text.isascii():
        text.encode()
    return text


def _annotator() -> Callable[[Any], Annotation]:
    """Converts rows of annotations; equal texts are held once, which saves most of the memory."""
    held: dict[str, str] = {}

    def text(value: Any) -> str:
        if not isinstance(value, str):
            return ""
        return held[value] if value in held else held.setdefault(value, _checked(value))

    def convert(row: Any) -> Annotation:
        number = _number(row, "question_id")
        given = row.get("answers")
        items = [item if isinstance(item, dict) else {} for item in given] if isinstance(given, list) else []
        counts = [str(item.get("answer_id")) for item in items]
        return Annotation(
            number,
            _number(row, "image_id") if "image_id" in row else None,
            text(row.get("question_type")),
            text(row.get("answer_type")),
            tuple(text(str(item.get("answer", ""))) for item in items),  # as training takes what is no text
            len(set(counts)) == len(counts) and "None" not in counts,
            text(row.get("multiple_choice_answer")),
        )

    return convert


def _images(root: Path, subtype: str) -> Path:
    return root / ("test2015" if subtype.startswith("test") else subtype)  # test-dev is a part of test2015
