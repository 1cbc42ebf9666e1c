"""Folders of pictures and folders of masks beside them; a pair has the same name."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import ClassVar

from vlbeit.data.class_names import read_class_names
from vlbeit.data.index import cached_table
from vlbeit.data.prepared import prepared_classes, prepared_records
from vlbeit.data.records import KINDS, ImageError
from vlbeit.data.sources.base import IMAGE_SUFFIXES, DataSource, walk_images
from vlbeit.errors import DataError, some
from vlbeit.types import Record, Records

log = logging.getLogger(__name__)

_LAYOUT = "masks reads ROOT/images/train/NAME.jpg with ROOT/masks/train/NAME.png, and val the same way"
_MASK_FOLDERS = ("masks", "annotations")
_NAME_FILES = ("classes.txt", "objectInfo150.txt")
_MASKS = (".png",)  # whatever is lossy changes labels
_IGNORED = 255  # a label that is not scored


class Masks(DataSource):
    """Pictures in ROOT/images/SPLIT, masks of the same names in ROOT/masks/SPLIT (or annotations) as PNG of indices.

    The names of the classes stand in ROOT/classes.txt, one a line. Without it there is a class for every label from 0
    to the largest of the training masks, named `class 0`, `class 1`, ...: they are read once for it. Whether label 0
    is a class is for `task.reduce_zero_label` to say: with it, the default, the first name is that of label 1 and label
    0 is not scored; a folder whose label 0 is a class, and every folder without names, needs
    `task.reduce_zero_label=false`. 255 is never scored. A root that `vlbeit prepare` made is read as it states.
    """

    kinds: ClassVar[tuple[str, ...]] = ("images", "masks")

    def records(self, kind: str, split: str) -> Records:
        if (prepared := prepared_records(self.root, kind, split, self.config.cache)) is not None:
            return prepared
        images = split_folder(self.root / "images", split, _LAYOUT)
        masks = split_folder(self._mask_folder(), split, _LAYOUT) if kind == "masks" else None
        return pair_records(images, masks, self.config.cache)

    def classes(self, kind: str = "masks") -> list[str]:
        """Of classes.txt, else objectInfo150.txt, else counted; of a prepared root those that it states."""
        if (prepared := prepared_classes(self.root, "masks")) is not None:
            return prepared
        for name in _NAME_FILES:
            if (self.root / name).is_file():
                return read_class_names(self.root / name)
        folder = split_folder(self._mask_folder(), self.config.train_split, _LAYOUT)
        folders = _folders(folder, _MASKS)
        table = cached_table(self.config.cache, "masks-largest", folders, ("label",), lambda: _largest_label(folder))
        _say_counted(self.root, table[0]["label"])
        return [f"class {label}" for label in range(table[0]["label"] + 1)]

    def _mask_folder(self) -> Path:
        for name in _MASK_FOLDERS:
            if (self.root / name).is_dir():
                return self.root / name
        return self.root / _MASK_FOLDERS[0]


def split_folder(parent: Path, split: str, layout: str) -> Path:
    """`parent/split`. Raises `DataError`, naming what is there and the layout, where there is no such folder."""
    folder = parent / split
    if not folder.is_dir():
        found = sorted(entry.name for entry in parent.iterdir() if entry.is_dir()) if parent.is_dir() else []
        what = f"has no folder {split!r} (it has {', '.join(found[:8]) or 'no folders'})"
        raise DataError(
            f"{parent} {what if parent.is_dir() else 'does not exist'}; {layout}; "
            "other names of splits: data.train_split=, data.val_split="
        )
    return folder


def pair_records(images: Path, masks: Path | None, cache: str | Path) -> Records:
    """`masks` records of two folders, in the order of the pictures' names; `images` records without `masks`.

    An id is the path below the folder without its suffix. Raises `DataError`, counting and naming them, for pictures
    without mask, masks without picture, and names that two files share.
    """
    # Folders that gain or lose a file change their time, so the list of folders is all that the key needs.
    if masks is None:
        return cached_table(cache, "pairs-images", _folders(images), KINDS["images"], lambda: _pictures(images))
    sources = _folders(images) + _folders(masks, _MASKS)
    return cached_table(cache, "pairs-masks", sources, KINDS["masks"], lambda: _pairs(images, masks))


def _pictures(images: Path) -> Iterator[Record]:
    for name, path in _by_name(images).items():
        yield {"id": name, "image": str(path)}


def _pairs(images: Path, masks: Path) -> Iterator[Record]:
    pictures, found = _by_name(images), _by_name(masks, _MASKS)
    if lost := sorted(pictures.keys() - found.keys()):
        raise DataError(
            f"{images}: pictures without a mask {masks}/NAME.png: {some(lost)}"
            f"{_other_suffix(masks, set(lost))}; add the masks or remove the pictures"
        )
    if lost := sorted(found.keys() - pictures.keys()):
        raise DataError(
            f"{masks}: masks without a picture in {images}: {some(lost)}; add the pictures or remove the masks"
        )
    for name, path in pictures.items():
        yield {"id": name, "image": str(path), "mask": str(found[name])}


def _other_suffix(masks: Path, lost: set[str]) -> str:
    """The first file that has the name of a mask that is looked for, but not its suffix, as a part of a message."""
    for top, names in walk_images(masks):
        for path in (Path(top, name) for name in names):
            if path.relative_to(masks).with_suffix("").as_posix() in lost:
                return f" (masks are {_MASKS[0]}, {path} is none)"
    return ""


@cache
def _say_counted(root: Path, largest: int) -> None:
    log.warning(
        "%s has no classes.txt. Its labels 0 to %d are taken for classes named class 0 to class %d, which fits "
        "task.reduce_zero_label=false. With true, the default, label 0 is not scored and label 1 takes the first name, "
        "class 0: write the names of labels 1, 2, ... into %s, one a line. 255 is never scored",
        *(root, largest, largest, root / _NAME_FILES[0]),
    )


def _folders(folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[Path]:
    return [Path(top) for top, _ in walk_images(folder, suffixes)]


def _by_name(folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """Path below the folder without suffix -> file."""
    found: dict[str, Path] = {}
    twice: list[str] = []
    for top, names in walk_images(folder, suffixes):
        for path in (Path(top, name) for name in names):
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in found:
                twice.append(name)
            found[name] = path
    if twice:
        raise DataError(f"{folder}: files that differ in their suffix alone: {some(twice)}; keep one of each")
    return found


def _largest_label(folder: Path) -> Iterator[Record]:
    """One record, `label`: the largest of the masks below, 255 left out.

    Masks that cannot be read are left to the loader, which counts them.
    """
    from vlbeit.data.segments import read_labels  # and torch with it, which listing files does not need

    largest = -1
    for path in _by_name(folder, _MASKS).values():
        try:
            labels = read_labels(path)
        except ImageError:
            continue
        top = int(labels.max(where=labels != _IGNORED, initial=-1))
        if top > _IGNORED:
            raise DataError(f"{path}: label {top}, and 255 classes (0..254) are the most; correct it")
        largest = max(largest, top)
    if largest < 0:
        raise DataError(f"{folder}: no mask here has a label to count classes by; write the names to ROOT/classes.txt")
    yield {"label": largest}


SOURCE = Masks
