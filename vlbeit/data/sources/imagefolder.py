"""Folders of images, one folder a class."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from vlbeit.data.index import cached_table
from vlbeit.data.prepared import prepared_classes, prepared_records
from vlbeit.data.records import KINDS
from vlbeit.data.sources.base import DataSource, walk_images
from vlbeit.errors import DataError, some
from vlbeit.types import Record, Records

_LAYOUT = "imagefolder reads ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg"


class ImageFolder(DataSource):
    """Images in folders ROOT/SPLIT/CLASS/*.jpg; without classes ROOT/SPLIT/*.jpg gives images only.

    `data.val_split=.` takes ROOT itself, ROOT/CLASS/*.jpg, as the split to evaluate (ImageNet-A and -R come so).
    Of a root that `vlbeit prepare` made, what it wrote is read: its classes, its pictures, none of the bad ones.
    """

    kinds: ClassVar[tuple[str, ...]] = ("images", "labelled")

    def records(self, kind: str, split: str) -> Records:
        if (prepared := prepared_records(self.root, kind, split, self.config.cache)) is not None:
            return prepared
        folder = self._split(split)
        # Folders that gain or lose a file change their time, so the list of folders is all that the key needs.
        folders = [Path(top) for top, _ in walk_images(folder)]
        if kind == "labelled":
            self._check_classes(folder)
            folders.append(self._naming())  # the labels hang on its classes
        rows = self._labelled if kind == "labelled" else _images
        return cached_table(self.config.cache, f"imagefolder-{kind}", folders, KINDS[kind], lambda: rows(folder))

    def classes(self, kind: str = "labelled") -> list[str]:
        """Folder names below the training split, sorted; of a prepared root the classes that it states.

        Without a training split, which evaluation has no need of, those of the validation split.
        """
        if (prepared := prepared_classes(self.root, "labelled")) is not None:
            return prepared
        return _class_names(self._naming())

    def _naming(self) -> Path:
        """The folder whose class folders are the classes."""
        held_out = self.root / self.config.val_split
        only_held_out = not (self.root / self.config.train_split).is_dir() and held_out.is_dir()
        return held_out if only_held_out else self._split(self.config.train_split)

    def _split(self, split: str) -> Path:
        folder = self.root / split
        if not folder.is_dir():
            found = sorted(entry.name for entry in self.root.iterdir() if entry.is_dir())
            raise DataError(
                f"data.root={self.root} has no folder {split!r} (it has {', '.join(found[:8]) or 'no folders'}); "
                f"{_LAYOUT}; other names: data.train_split=, data.val_split=, "
                f"and data.val_split=. evaluates on ROOT/CLASS/*.jpg"
            )
        return folder

    def _check_classes(self, folder: Path) -> None:
        if not (known := self.classes()):
            raise DataError(f"{self._naming()} has no class folders; {_LAYOUT}")
        if unknown := sorted(set(_class_names(folder)) - set(known)):
            raise DataError(f"{folder}: class folders that the training split has not: {some(unknown)}")

    def _labelled(self, folder: Path) -> Iterator[Record]:
        """The records of a split; of the training split every class has some."""
        empty = []
        for label, name in enumerate(self.classes()):
            count = 0
            for record in _images(folder / name):
                count += 1
                yield {**record, "id": f"{name}/{record['id']}", "label": label}
            empty += [name] * (count == 0)
        if empty and folder == self.root / self.config.train_split:
            raise DataError(f"{folder}: class folders without a picture: {some(empty)}; fill them or take them out")


def _class_names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _images(folder: Path) -> Iterator[Record]:
    for top, names in walk_images(folder):
        for name in names:
            path = Path(top, name)
            yield {"id": path.relative_to(folder).as_posix(), "image": str(path)}


SOURCE = ImageFolder
