"""VQA v2 in its official files (visualqa.org): which they are, and their questions with their answers.

Plain Python, which data preparation shares with the source `vqa_v2`. Whatever does not fit is collected and raised as
one `DataError` with file, ids and remedy.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vlbeit.data.json_file import json_rows
from vlbeit.data.storable import storable_record
from vlbeit.errors import DataError, some
from vlbeit.types import Record

SUBTYPES = {"train": "train2014", "val": "val2014", "test": "test2015", "test-dev": "test-dev2015"}
"""Split -> its name in the official files."""

_NUMBER = re.compile(r"(\d+)\.(?:jpe?g|png)$", re.IGNORECASE)
_HIDDEN: Record = {"question_type": "", "answer_type": "", "answers": [], "multiple_choice_answer": ""}


class QuestionFiles(NamedTuple):
    """One question file, its annotations (None: hidden) and the folder of its images."""

    questions: Path
    annotations: Path | None
    images: Path

    def missing(self) -> list[Path]:
        """Which of them are not there."""
        return [path for path in self if path is not None and not path.exists()]


def official_files(root: Path, split: str) -> QuestionFiles:
    """The files of train, val, test or test-dev, by their official names."""
    subtype = SUBTYPES[split]
    questions = root / f"v2_OpenEnded_mscoco_{subtype}_questions.json"
    if subtype.startswith("test"):  # the answers are hidden; test-dev is a part of test2015 and uses its images
        return QuestionFiles(questions, None, root / "test2015")
    return QuestionFiles(questions, root / f"v2_mscoco_{subtype}_annotations.json", root / subtype)


def question_rows(files: QuestionFiles) -> Iterator[Record]:
    """The `vqa` records of one question file in its order; answers [] without annotations.

    Raises `DataError`, at the end, for question ids that come twice, questions without image or annotation,
    annotations without question, and those that name another image than their question does.
    """
    images = image_files([files.images])
    answers = _answers(files.annotations) if files.annotations else None
    seen: set[int] = set()
    twice, unanswered, lost, elsewhere = [], [], [], []
    for row in typed_rows(files.questions, "questions", json_rows(files.questions, "questions"), _question):
        number, image = row["question_id"], images.get(row["image_id"])
        found = answers.get(number) if answers is not None else _HIDDEN
        if number in seen:
            twice.append(number)
        elif image is None:
            lost.append(number)
        elif found is None:
            unanswered.append(number)
        elif found.get("image_id", row["image_id"]) != row["image_id"]:
            elsewhere.append(number)
        elif not (twice or unanswered or lost or elsewhere):
            yield {**found, **row, "id": str(number), "image": image}
        seen.add(number)
    refuse(twice, f"{files.questions}: question_id used twice", "remove the copies")
    refuse(
        lost, f"{files.questions}: questions whose image is not in {files.images}",
        "complete the folder, or remove the questions",
    )  # fmt: skip
    same = "take both files from the same release"
    refuse(
        unanswered, f"{files.questions}: questions without annotation in {files.annotations}",
        f"{same}, or remove the questions",
    )  # fmt: skip
    refuse(elsewhere, f"{files.annotations}: annotations that name another image_id than {files.questions}", same)
    if answers is not None:
        refuse(
            sorted(answers.keys() - seen), f"{files.annotations}: annotations without question in {files.questions}",
            f"{same}, or remove the annotations",
        )  # fmt: skip


def image_files(folders: Iterable[Path]) -> dict[int, str]:
    """Image number -> path, from one listing of each folder: COCO_val2014_000000000042.jpg, 42.png, ...

    Where two names have the number, COCO's own wins, then the later folder.
    """
    found: dict[int, str] = {}
    for folder in folders:
        with os.scandir(folder) as entries:
            names = sorted((entry.name for entry in entries), key=lambda name: (name.startswith("COCO_"), name))
        found |= {int(match[1]): str(folder / match.string) for match in map(_NUMBER.search, names) if match}
    return found


def typed_rows(path: Path, key: str, rows: Iterable[Any], convert: Callable[[Any], Record]) -> Iterator[Record]:
    """Every row as `convert` takes it. Raises `DataError` naming file and place of one that cannot be taken."""
    for position, row in enumerate(rows):
        try:
            yield storable_record(convert(row))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(
                f"{path}: {key}[{position}] is not as published ({type(error).__name__}: {error}); correct the file"
            ) from error


def refuse(ids: list[int], what: str, remedy: str) -> None:
    """Raise `DataError` with count and first ids, if there are any."""
    if ids:
        raise DataError(f"{what}: {some(ids)}; {remedy}")


def _whole(row: dict[str, Any], key: str) -> int:
    """An id, also one that is written as text or as 12.0. Raises `ValueError` for 12.5, which no id is."""
    number = int(row[key])
    if isinstance(row[key], float) and number != row[key]:
        raise ValueError(f"{key} {row[key]} is no integer")
    return number


def _question(row: dict[str, Any]) -> Record:
    return {
        "question_id": _whole(row, "question_id"),
        "image_id": _whole(row, "image_id"),
        "question": str(row["question"]),
    }


def _annotation(row: dict[str, Any]) -> Record:
    found = {
        "question_id": _whole(row, "question_id"),
        "question_type": str(row["question_type"]),
        "answer_type": str(row["answer_type"]),
        "answers": [str(item["answer"]) for item in row["answers"]],
        "multiple_choice_answer": str(row.get("multiple_choice_answer") or ""),
    }
    return {**found, "image_id": _whole(row, "image_id")} if "image_id" in row else found


def _answers(annotations: Path) -> dict[int, Record]:
    """Question id -> question_type, answer_type, raw answers, and image_id where it is given."""
    found: dict[int, Record] = {}
    twice = []
    for row in typed_rows(annotations, "annotations", json_rows(annotations, "annotations"), _annotation):
        number = row.pop("question_id")
        if number in found:
            twice.append(number)
        found[number] = row
    refuse(twice, f"{annotations}: question_id annotated twice", "remove the copies")
    return found
