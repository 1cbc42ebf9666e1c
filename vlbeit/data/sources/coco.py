"""COCO detection: the official instances_*.json and image folders (cocodataset.org), or own data in that layout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple

from vlbeit.data.index import cached_table
from vlbeit.data.instances import Instances, chosen_release
from vlbeit.data.json_file import JsonFile
from vlbeit.data.prepared import prepared_classes, prepared_records
from vlbeit.data.records import KINDS
from vlbeit.data.sources.base import DataSource
from vlbeit.data.sources.coco_file import CocoFile
from vlbeit.errors import DataError, some
from vlbeit.types import Record, Records

_LAYOUT = (
    "coco reads ROOT/annotations/instances_train2017.json (or ROOT/instances_train2017.json) with the pictures in "
    "ROOT/train2017, and the same with val2017; 2014 or no year will do, but one release for both"
)


class _Files(NamedTuple):
    """The annotation file of one split and the folder of its pictures."""

    instances: Path
    images: Path


class Coco(DataSource):
    """COCO in its official files: annotations/instances_train2017.json, train2017/, and the same for val2017.

    Of a root that `vlbeit prepare coco` made, what it wrote is read.
    """

    kinds: ClassVar[tuple[str, ...]] = ("boxes", "images")

    def records(self, kind: str, split: str) -> Records:
        if (prepared := prepared_records(self.root, kind, split, self.config.cache)) is not None:
            return prepared
        files = self._files(split)
        if kind == "images":
            return cached_table(
                self.config.cache, "coco-images", list(files), KINDS[kind], lambda: CocoFile(*files).image_rows()
            )
        # the labels hang on the categories of the training split
        labels = self._labels(files.instances)
        sources = [*files, self._naming()]
        return cached_table(
            self.config.cache, "coco-boxes", sources, KINDS[kind], lambda: CocoFile(*files).box_rows(labels)
        )

    def classes(self, kind: str = "labelled") -> list[str]:
        """Names of the categories in the order of their ids, those of the training split where it is there."""
        if kind != "boxes":
            return super().classes(kind)
        if (prepared := prepared_classes(self.root, kind)) is not None:
            return prepared
        return list(self._categories(self._naming()).values())

    def _files(self, split: str) -> _Files:
        """Of the splits `train` and `val` those of one release; other splits are the names of files themselves."""
        year = chosen_release(lambda name: self._annotations(name) is not None)
        name = f"{split}{year}" if split in ("train", "val") else split
        file = self._annotations(name)
        if file is None:
            raise DataError(f"data.root={self.root} has no instances_{name}.json for the split {split!r}; {_LAYOUT}")
        return _Files(file, self._images(name, file))

    def _annotations(self, name: str) -> Path | None:
        files = (folder / f"instances_{name}.json" for folder in (self.root / "annotations", self.root))
        return next((file for file in files if file.is_file()), None)

    def _images(self, name: str, file: Path) -> Path:
        for folder in (self.root / name, self.root / "images" / name):
            if folder.is_dir():
                return folder
        raise DataError(f"{self.root / name} does not exist; the pictures of {file} belong there: {_LAYOUT}")

    def _naming(self) -> Path:
        """The file whose categories give the classes: evaluating needs no training split."""
        try:
            return self._files(self.config.train_split).instances
        except DataError:
            return self._files(self.config.val_split).instances

    def _categories(self, file: Path) -> dict[int, str]:
        """Category id -> name, ids ascending."""
        table = cached_table(self.config.cache, "coco-categories", [file], ("id", "text"), lambda: _category_rows(file))
        return {int(row["id"]): row["text"] for row in (table[i] for i in range(len(table)))}

    def _labels(self, file: Path) -> dict[int, int]:
        """Category id of `file` -> label. Raises `DataError` for a category that the training split has not."""
        naming = self._naming()
        known, own = self._categories(naming), self._categories(file)
        if unknown := [f"{number} {name!r}" for number, name in own.items() if known.get(number) != name]:
            raise DataError(
                f"{file}: categories that {naming} has not, or under another name: {some(unknown)}; take both files "
                f"from the same release"
            )
        return {number: label for label, number in enumerate(known)}


def _category_rows(file: Path) -> Iterator[Record]:
    for number, name in Instances(JsonFile(file)).categories.items():
        yield {"id": str(number), "text": name}


SOURCE = Coco
