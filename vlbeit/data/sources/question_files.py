"""What sources of questions have in common: files of rows, pictures that must be there, each picture once."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from vlbeit.data.answers import majority_answer
from vlbeit.data.index import cached_table
from vlbeit.data.picture_names import PictureNames
from vlbeit.data.records import KINDS, ChosenRecords, FieldColumn
from vlbeit.data.sources.base import DataSource
from vlbeit.data.storable import storable_record
from vlbeit.data.vqa_rows import answer_type, question_type
from vlbeit.errors import DataError, some
from vlbeit.types import Record, Records


class QuestionFile(NamedTuple):
    """The questions of one split, and the folder of their pictures."""

    path: Path
    images: Path
    items: Callable[[Path], Iterator[Any]]  # what the file lists


class QuestionSource(DataSource):
    """Base of the data sets whose pictures may lie elsewhere than their questions: below `data.images`."""

    kinds: ClassVar[tuple[str, ...]] = ("vqa", "images")
    takes_images: ClassVar[bool] = True

    def picture_folder(self, name: str) -> Path:
        """The folder of that name below `data.images`, or below the root where none is given."""
        return (Path(self.config.images).expanduser().absolute() if self.config.images else self.root) / name


class QuestionFiles(QuestionSource):
    """Base of the data sets that keep questions and answers in one JSON file a split. Answers stay as they are."""

    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    layout: ClassVar[str]  # one line for messages: what lies where below data.root

    def records(self, kind: str, split: str) -> Records:
        if split not in self.splits:
            raise DataError(f"{self.config.name} has no split {split!r}; it has {', '.join(self.splits)}")
        file = self.file(split)
        for path in (file.path, file.images):
            if not path.exists():
                raise DataError(f"{path} does not exist; the split {split!r} needs it: {self.layout}")
        name = f"{self.config.name}-vqa"
        table = cached_table(self.config.cache, name, [file.path, file.images], KINDS["vqa"], lambda: self._rows(file))
        return table if kind == "vqa" else EachPictureOnce(table)

    @abstractmethod
    def file(self, split: str) -> QuestionFile:
        """Where the split lies."""

    @abstractmethod
    def row(self, item: Any, number: int) -> Record:
        """Of an item of the file, the `number`th: `id`, `image` (name in the folder), `question`, `question_id`,
        `image_id`, `answers` ([] where they are hidden), and what else of a `vqa` record the data set has.
        KeyError, TypeError or ValueError for an item that is not as in the data set.
        """

    def _rows(self, file: QuestionFile) -> Iterator[Record]:
        """The records; ids that come twice and pictures that are missing are collected, and raised at the end."""
        pictures = PictureNames(file.images)
        seen: set[str] = set()
        twice, lost = [], []
        for number, item in enumerate(file.items(file.path), 1):
            try:
                row = storable_record(self.row(item, number))
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f"{file.path}: item {number} is not as in {self.config.name} ({type(error).__name__}: {error}); "
                    f"{self.layout}"
                ) from error
            path, there = pictures.find(row["image"])
            twice += [row["id"]] if row["id"] in seen else []
            lost += [] if there else [row["id"]]
            seen.add(row["id"])
            if not (twice or lost):
                yield _whole(row, path)
        if twice:
            raise DataError(f"{file.path}: question_id used twice: {some(twice)}; remove the copies")
        if lost:
            raise DataError(
                f"{file.path}: questions whose picture is not in {file.images}: {some(lost)}; complete the folder, or "
                f"remove the questions"
            )


def _whole(row: Record, path: str) -> Record:
    """The row with what its question and answers tell by themselves, where the data set does not."""
    main = row.get("multiple_choice_answer") or majority_answer(row["answers"])
    derived = {
        "question_type": question_type(row["question"]) if row["answers"] else "",
        "answer_type": answer_type(main),
        "multiple_choice_answer": "",
    }
    return {**derived, **row, "image": path}


def listed(path: Path) -> Iterator[Any]:
    """The items of a file that is one JSON list. Raises `DataError` for any other."""
    try:
        items = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}; get the file again") from error
    if not isinstance(items, list):
        raise DataError(f"{path} is not a JSON list; is it the right file?")
    yield from items


class EachPictureOnce:
    """The pictures of question records as records of the kind `images`, in the order of their first question."""

    def __init__(self, questions: Records) -> None:
        first: dict[int, int] = {}
        for row, image_id in enumerate(questions.column("image_id")[:]):
            first.setdefault(image_id, row)
        self._questions = ChosenRecords(questions, list(first.values()))

    def __len__(self) -> int:
        return len(self._questions)

    def __getitem__(self, index: int) -> Record:
        record = self._questions[index]
        image = record["image"]
        return {"id": str(record["image_id"]) if isinstance(image, bytes) else Path(image).name, "image": image}

    def column(self, name: str) -> Sequence[Any]:
        if not len(self) or isinstance(self[0]["image"], bytes):
            return FieldColumn(self, name)
        images = self._questions.column("image")
        return images if name == "image" else [Path(image).name for image in images]
