"""VQA v2: the official question and annotation files and COCO image folders (visualqa.org)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from vlbeit.data.index import cached_table
from vlbeit.data.json_file import json_rows
from vlbeit.data.records import KINDS
from vlbeit.data.sources.base import DataSource
from vlbeit.errors import DataError, some
from vlbeit.types import Record, Records

_SUBTYPES = {
    "train": ("train2014",), "val": ("val2014",), "test": ("test2015",), "test-dev": ("test-dev2015",),
    "trainval": ("train2014", "val2014"),
}  # fmt: skip
_NUMBER = re.compile(r"(\d+)\.(?:jpe?g|png)$", re.IGNORECASE)


class _Files(NamedTuple):
    """One question file, its annotations (None: hidden) and the folder of its images."""

    questions: Path
    annotations: Path | None
    images: Path


class VQAv2(DataSource):
    """VQA v2 in its official files: v2_*_questions.json, v2_*_annotations.json, images in train2014/, val2014/, ..."""

    kinds: ClassVar[tuple[str, ...]] = ("vqa", "images")

    def records(self, kind: str, split: str) -> Records:
        if split not in _SUBTYPES:
            raise DataError(f"vqa_v2 has no split {split!r}; it has {', '.join(_SUBTYPES)}")
        parts = [self._files(subtype) for subtype in _SUBTYPES[split]]
        for path in (path for part in parts for path in part if path is not None):
            if not path.exists():
                raise DataError(f"{path} does not exist; the split {split!r} needs it: set data.root= or add the file")
        return _table(parts, kind, self.config.cache)

    def question_file(self, split: str) -> Path | None:
        """Of the splits that are one official file."""
        subtypes = _SUBTYPES.get(split, ())
        return self._files(subtypes[0]).questions if len(subtypes) == 1 else None

    def _files(self, subtype: str) -> _Files:
        questions = self.root / f"v2_OpenEnded_mscoco_{subtype}_questions.json"
        if subtype.startswith("test"):  # the answers are hidden; test-dev is a part of test2015 and uses its images
            return _Files(questions, None, self.root / "test2015")
        return _Files(questions, self.root / f"v2_mscoco_{subtype}_annotations.json", self.root / subtype)


def vqa_table(questions: Path, annotations: Path | None, images: Path, cache: str | Path = "") -> Records:
    """`vqa` records of one question file in its order, with the images of a folder; answers [] without annotations.

    An image is found by the number at the end of its name: COCO_val2014_000000000042.jpg, 000000000042.jpg, 42.png.
    Raises `DataError` naming file, ids and remedy.
    """
    for path in (questions, annotations, images):
        if path is not None and not path.exists():
            raise DataError(f"{path} does not exist")
    return _table([_Files(questions, annotations, images)], "vqa", cache)


def _table(parts: list[_Files], kind: str, cache: str | Path) -> Records:
    def rows() -> Iterator[Record]:
        for part in parts:
            yield from _image_rows(part) if kind == "images" else _question_rows(part)

    sources = [path for part in parts for path in part if path is not None]
    return cached_table(cache, f"vqa_v2-{kind}", sources, KINDS[kind], rows)


def _question_rows(files: _Files) -> Iterator[Record]:
    """The records of one question file; whatever does not fit is collected and raised at the end."""
    images = _image_names(files.images)
    answers = _answers(files.annotations) if files.annotations else None
    seen: set[int] = set()
    twice, unanswered, lost = [], [], []
    for row in _typed_rows(files.questions, "questions", _question):
        number, image = row["question_id"], images.get(row["image_id"])
        if number in seen:
            twice.append(number)
        elif image is None:
            lost.append(number)
        elif answers is not None and number not in answers:
            unanswered.append(number)
        elif not (twice or unanswered or lost):
            yield {**row, "id": str(number), "image": image, **(answers[number] if answers else _HIDDEN)}
        seen.add(number)
    _refuse(twice, f"{files.questions}: question_id used twice", "remove the copies")
    _refuse(
        lost, f"{files.questions}: questions whose image is not in {files.images}",
        "complete the folder, or remove the questions",
    )  # fmt: skip
    _refuse(
        unanswered, f"{files.questions}: questions without annotation in {files.annotations}",
        "take both files from the same release, or remove the questions",
    )  # fmt: skip
    if answers is not None:
        _refuse(
            sorted(answers.keys() - seen), f"{files.annotations}: annotations without question in {files.questions}",
            "take both files from the same release, or remove the annotations",
        )  # fmt: skip


_HIDDEN: Record = {"question_type": "", "answer_type": "", "answers": [], "multiple_choice_answer": ""}


def _refuse(ids: list[int], what: str, remedy: str) -> None:
    if ids:
        raise DataError(f"{what}: {some(ids)}; {remedy}")


def _question(row: dict[str, Any]) -> Record:
    return {
        "question_id": int(row["question_id"]),
        "image_id": int(row["image_id"]),
        "question": str(row["question"]),
    }


def _annotation(row: dict[str, Any]) -> Record:
    return {
        "question_id": int(row["question_id"]),
        "question_type": str(row["question_type"]),
        "answer_type": str(row["answer_type"]),
        "answers": [str(item["answer"]) for item in row["answers"]],
        "multiple_choice_answer": str(row.get("multiple_choice_answer") or ""),
    }


def _answers(annotations: Path) -> dict[int, Record]:
    """Question id -> question_type, answer_type and raw answers."""
    found: dict[int, Record] = {}
    twice = []
    for row in _typed_rows(annotations, "annotations", _annotation):
        number = row.pop("question_id")
        if number in found:
            twice.append(number)
        found[number] = row
    _refuse(twice, f"{annotations}: question_id annotated twice", "remove the copies")
    return found


def _image_rows(files: _Files) -> Iterator[Record]:
    """The images that the questions ask about, each once, in the order of their first question."""
    images = _image_names(files.images)
    numbers = dict.fromkeys(row["image_id"] for row in _typed_rows(files.questions, "questions", _question))
    _refuse(
        [number for number in numbers if number not in images],
        f"{files.questions}: image_id without image in {files.images}",
        "complete the folder, or remove the questions",
    )
    for number in numbers:
        yield {"id": Path(images[number]).name, "image": images[number]}


def _image_names(folder: Path) -> dict[int, str]:
    """Image number -> path, from one listing of the folder; where two names have the number, COCO's own wins."""
    with os.scandir(folder) as entries:
        names = sorted((entry.name for entry in entries), key=lambda name: (name.startswith("COCO_"), name))
    return {int(match[1]): str(folder / match.string) for match in map(_NUMBER.search, names) if match}


def _typed_rows(path: Path, key: str, convert: Callable[[dict[str, Any]], Record]) -> Iterator[Record]:
    for position, row in enumerate(json_rows(path, key)):
        try:
            yield convert(row)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}: {key}[{position}] is not as in VQA v2 ({type(error).__name__}: {error}); correct the file"
            ) from error


SOURCE = VQAv2
