"""One instances_*.json of COCO, as data=coco and `vlbeit prepare coco` read it: every row checked, and named by its id.

A file of the real size (450 MB) is held as text, and its annotations are decoded one by one: once to check them and to
see which picture each belongs to, once picture by picture. Imports no torch, so that preparing data starts fast.
"""

from __future__ import annotations

import json
import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np

from vlbeit.data.json_file import JsonFile
from vlbeit.errors import DataError, some
from vlbeit.types import Record

Parsed = TypeVar("Parsed")

CUT = "cut at the edge of the picture"
_RELEASES = ("2017", "2014", "")
_ROUNDING = 0.01  # pixels: coordinates are written with two decimals
_BITS = 63  # of an id in an index
_COLUMNS = ("boxes", "labels", "areas", "crowd", "outlines")


def chosen_release(there: Callable[[str], bool]) -> str:
    """Year of the newest release whose training file, else validation file, is `there` by its name, "train2017".

    All splits are taken of that one: train2017 holds pictures of val2014. "2017" where none is there.
    """
    return next((year for split in ("train", "val") for year in _RELEASES if there(f"{split}{year}")), _RELEASES[0])


class Picture(NamedTuple):
    """Its file below the folder of its split, and its size in pixels, as it is stored."""

    name: str
    width: int
    height: int


class Change(NamedTuple):
    """What was done to the box of an annotation."""

    annotation: int
    what: str  # CUT, or why it was left out


class _Annotation(NamedTuple):
    id: int
    image: int
    category: int
    box: tuple[float, float, float, float]
    area: float | None
    crowd: bool
    outline: Any


class Instances:
    """Categories, pictures, and the boxes of each. What is asked for is read then, and raises `DataError`.

    That names ids that come twice or point to nothing, and rows that are not as in COCO, by id or place.
    """

    def __init__(self, file: JsonFile) -> None:
        self._file, self.path = file, file.path

    @cached_property
    def categories(self) -> dict[int, str]:
        """Category id -> name, ids ascending."""
        rows = [row for _, row in self._rows("categories", lambda row: (_whole(row["id"]), str(row["name"])))]
        if not rows:
            raise DataError(f"{self.path} has no categories; correct the file")
        self._once([number for number, _ in rows], "category ids")
        self._once([name for _, name in rows], "names of categories")
        return dict(sorted(rows))

    @cached_property
    def pictures(self) -> dict[int, Picture]:
        """Image id -> picture, in the order of the file."""
        rows = [row for _, row in self._rows("images", _picture)]
        self._once([number for number, _ in rows], "image ids")
        self._once([picture.name for _, picture in rows], "file names of images")
        flat = [number for number, picture in rows if picture.width <= 0 or picture.height <= 0]
        self._refuse(flat, "images without width or height", "correct the file")
        return dict(rows)

    def check(self) -> None:
        """Read every row."""
        _ = self._starts

    def record(self, image: int, labels: Mapping[int, int]) -> tuple[Record, list[Change]]:
        """The record of the kind `boxes` of one picture, without `image`, and what was done to its boxes.

        `labels` by category id. Boxes that reach out of the picture are cut at its edges; those of which nothing is
        left are left out. An annotation without area has that of its box.
        """
        picture, changes = self.pictures[image], []
        columns: list[list[Any]] = [[] for _ in _COLUMNS]
        for start in self._starts.get(image, ()):
            row = _annotation(self._file.at(start))
            box, what = _inside(row.box, picture)
            changes += [Change(row.id, what)] if what else []
            if box is not None:
                area = box[2] * box[3] if row.area is None else row.area
                outline = json.dumps(row.outline, separators=(",", ":")) if row.outline else ""
                for column, value in zip(columns, (box, labels[row.category], area, row.crowd, outline), strict=True):
                    column.append(value)
        return {"id": picture.name, "image_id": image, **dict(zip(_COLUMNS, columns, strict=True))}, changes

    @cached_property
    def _starts(self) -> dict[int, list[int]]:
        """Image id -> where its annotations begin in the file, in their order."""
        ids, images, starts = array("q"), array("q"), array("q")
        lost, unknown = [], []
        for start, row in self._rows("annotations", _annotation):
            if row.image not in self.pictures:
                lost.append(row.id)
            if row.category not in self.categories:
                unknown.append(row.id)
            ids.append(row.id)
            images.append(row.image)
            starts.append(start)
        values, counts = np.unique(np.frombuffer(ids, np.int64), return_counts=True)
        self._refuse(values[counts > 1].tolist(), "annotation ids used twice", "remove the copies")
        self._refuse(lost, "annotations whose image_id is none of its images", "add the images, or remove them")
        self._refuse(unknown, "annotations whose category_id is none of its categories", "correct the file")
        order = np.argsort(np.frombuffer(images, np.int64), kind="stable")
        sorted_images, sorted_starts = np.frombuffer(images, np.int64)[order], np.frombuffer(starts, np.int64)[order]
        owners, firsts = np.unique(sorted_images, return_index=True)
        runs = np.split(sorted_starts, firsts[1:])
        return dict(zip(owners.tolist(), (run.tolist() for run in runs), strict=True)) if len(owners) else {}

    def _rows(self, key: str, parse: Callable[[Any], Parsed]) -> Iterator[tuple[int, Parsed]]:
        """Where each row begins, and what `parse` makes of it."""
        for position, (start, row) in enumerate(self._file.items(key)):
            try:
                yield start, parse(row)
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                number = row.get("id") if isinstance(row, dict) else None
                name = f"{key}[{position}]" + (f", id {number}," if number is not None else "")
                what = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
                raise DataError(f"{self.path}: {name} is not as in COCO ({what}); correct the file") from error

    def _once(self, values: list[Any], what: str) -> None:
        twice = [value for value, count in Counter(values).items() if count > 1]
        self._refuse(twice, f"{what} used twice", "remove the copies")

    def _refuse(self, ids: list[Any], what: str, remedy: str) -> None:
        if ids:
            raise DataError(f"{self.path}: {what}: {some(ids)}; {remedy}")


def _picture(row: Any) -> tuple[int, Picture]:
    name = row["file_name"]
    if not isinstance(name, str) or not name:
        raise ValueError(f"file_name {name!r}")
    return _whole(row["id"]), Picture(name, _whole(row["width"]), _whole(row["height"]))


def _annotation(row: Any) -> _Annotation:
    if len(row["bbox"]) != 4:
        raise ValueError(f"its bbox is {row['bbox']}, and should be [x, y, width, height]")
    x, y, width, height = map(float, row["bbox"])
    area = None if row.get("area") is None else float(row["area"])
    crowd = _whole(row.get("iscrowd") or 0)
    if not all(map(math.isfinite, (x, y, width, height, area or 0.0))):
        raise ValueError("bbox or area has numbers that are not finite")
    if crowd not in (0, 1):
        raise ValueError(f"iscrowd is {crowd}, not 0 or 1")
    ids = _whole(row["id"]), _whole(row["image_id"]), _whole(row["category_id"])
    return _Annotation(*ids, (x, y, width, height), area, bool(crowd), row.get("segmentation"))


def _whole(value: Any) -> int:
    """A whole number, which may be written as text. Raises TypeError, ValueError, OverflowError for anything else."""
    number = int(value)
    if (isinstance(value, float) and number != value) or abs(number) >> _BITS:
        raise ValueError(f"{value} is no whole number of {_BITS} bits")
    return number


def _inside(box: tuple[float, float, float, float], picture: Picture) -> tuple[list[float] | None, str]:
    """The part [x, y, width, height] inside the picture, None where there is none, and what is to be said of it."""
    x, y, width, height = box
    left, top = max(x, 0.0), max(y, 0.0)
    right, bottom = min(x + width, float(picture.width)), min(y + height, float(picture.height))
    if width <= 0 or height <= 0:
        return None, "without width or height left out"
    if right <= left or bottom <= top:
        return None, "outside the picture left out"
    over = max(left - x, top - y, x + width - right, y + height - bottom) > _ROUNDING
    return [left, top, right - left, bottom - top], CUT if over else ""
