"""One instances_*.json of COCO: its pictures with their boxes, everything that does not fit named.

A file of the real size (450 MB) is held as text, and its annotations are decoded one by one: once to see which
picture each belongs to, once picture by picture.
"""

from __future__ import annotations

import json
import logging
import math
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vlbeit.data.json_file import JsonFile
from vlbeit.data.sources.base import missing_files, some
from vlbeit.errors import DataError
from vlbeit.types import Record

log = logging.getLogger(__name__)

_ROUNDING = 0.01  # pixels: coordinates are written with two decimals
_OPENED = 16  # pictures whose size is compared with the file's


class _Picture(NamedTuple):
    path: Path
    width: int
    height: int


class CocoFile:
    """The records of one split.

    Raises `DataError`, naming ids and remedy, for images and annotations that come twice, annotations of images or
    categories that are not there, pictures that are missing or of another size. Boxes that reach out of the picture
    are cut at its edges; those without width or height are left out. Both are logged.
    """

    def __init__(self, instances: Path, images: Path) -> None:
        self.path, self._images = instances, images
        self._file = JsonFile(instances)
        self._clipped = 0
        self._dropped: list[int] = []

    def image_rows(self) -> Iterator[Record]:
        """Records of the kind `images`."""
        for picture in self._pictures().values():
            yield {"id": self._name(picture), "image": str(picture.path)}

    def box_rows(self, labels: Mapping[int, int]) -> Iterator[Record]:
        """Records of the kind `boxes`, one a picture, also of those without a box; `labels` by category id."""
        pictures = self._pictures()
        self._check_sizes(list(pictures.values()))
        starts = self._starts(pictures, labels)
        for number, picture in pictures.items():
            boxes = [self._box(self._file.at(start), picture, labels) for start in starts.get(number, ())]
            columns = zip(*(box for box in boxes if box is not None), strict=True)
            found = dict(zip(("boxes", "labels", "areas", "crowd", "outlines"), map(list, columns), strict=False))
            empty: Record = {name: [] for name in ("boxes", "labels", "areas", "crowd", "outlines")}
            yield {"id": self._name(picture), "image": str(picture.path), "image_id": number, **empty, **found}
        if self._clipped:
            log.warning("%s: %d boxes reach out of their pictures and are cut off there", self.path, self._clipped)
        if self._dropped:
            log.warning(
                "%s: annotations left out since nothing of their box lies in the picture: %s",
                self.path, some(self._dropped, most=10),
            )  # fmt: skip

    def _name(self, picture: _Picture) -> str:
        return picture.path.relative_to(self._images).as_posix()

    def _pictures(self) -> dict[int, _Picture]:
        """Image id -> picture."""
        found: dict[int, _Picture] = {}
        twice = []
        for position, (_, row) in enumerate(self._file.items("images")):
            try:
                number = int(row["id"])
                picture = _Picture(self._images / str(row["file_name"]), int(row["width"]), int(row["height"]))
            except (KeyError, TypeError, ValueError) as error:
                raise self._misfit("images", position, error) from error
            if picture.width <= 0 or picture.height <= 0:
                raise DataError(f"{self.path}: image {number} is {picture.width}x{picture.height}; correct the file")
            if number in found:
                twice.append(number)
            found[number] = picture
        self._refuse(twice, "image ids used twice", "remove the copies")
        missing = [path.name for path in missing_files(picture.path for picture in found.values())]
        self._refuse(missing, f"images that are not in {self._images}", "complete the folder, or remove their entries")
        return found

    def _check_sizes(self, pictures: list[_Picture]) -> None:
        """Some of the pictures have the width and height that the file says: its boxes were drawn on these files."""
        for picture in pictures[:: max(1, len(pictures) // _OPENED)]:
            try:
                with Image.open(picture.path) as image:
                    size = image.size
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
                continue  # the loader names it, and counts it against data.max_bad_fraction
            if size != (picture.width, picture.height):
                raise DataError(
                    f"{picture.path} has {size[0]}x{size[1]} pixels, {self.path} says {picture.width}x{picture.height}:"
                    f" boxes are in pixels of the original files, not turned by EXIF data; take those"
                )

    def _starts(self, pictures: Mapping[int, _Picture], labels: Mapping[int, int]) -> dict[int, list[int]]:
        """Image id -> where its annotations begin in the file, in their order."""
        ids, images, starts = array("q"), array("q"), array("q")
        lost, unknown = [], []
        for position, (start, row) in enumerate(self._file.items("annotations")):
            try:
                number, image, category = int(row["id"]), int(row["image_id"]), int(row["category_id"])
            except (KeyError, TypeError, ValueError) as error:
                raise self._misfit("annotations", position, error) from error
            if image not in pictures:
                lost.append(number)
            if category not in labels:
                unknown.append(number)
            ids.append(number)
            images.append(image)
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

    def _box(self, row: dict[str, Any], picture: _Picture, labels: Mapping[int, int]) -> tuple[Any, ...] | None:
        """Box [x, y, width, height] inside the picture, label, area, crowd, outline; None where nothing is left."""
        number = row["id"]
        try:
            x, y, width, height = (float(value) for value in row["bbox"])
            area = float(row["area"]) if row.get("area") is not None else width * height
            crowd = bool(int(row.get("iscrowd", 0)))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{self.path}: annotation {number} is not as in COCO ({type(error).__name__}: {error}); bbox is "
                f"[x, y, width, height], area a number, iscrowd 0 or 1: correct the file"
            ) from error
        if not all(map(math.isfinite, (x, y, width, height, area))):
            raise DataError(f"{self.path}: annotation {number} has numbers that are not finite; correct the file")
        left, top = max(x, 0.0), max(y, 0.0)
        right, bottom = min(x + width, float(picture.width)), min(y + height, float(picture.height))
        if width <= 0 or height <= 0 or right <= left or bottom <= top:
            self._dropped.append(number)
            return None
        if max(left - x, top - y, x + width - right, y + height - bottom) > _ROUNDING:
            self._clipped += 1
        outline = row.get("segmentation")
        text = json.dumps(outline, separators=(",", ":")) if outline else ""
        return [left, top, right - left, bottom - top], labels[row["category_id"]], area, crowd, text

    def _misfit(self, key: str, position: int, error: Exception) -> DataError:
        return DataError(
            f"{self.path}: {key}[{position}] is not as in COCO ({type(error).__name__}: {error}); correct the file"
        )

    def _refuse(self, ids: list[Any], what: str, remedy: str) -> None:
        if ids:
            raise DataError(f"{self.path}: {what}: {some(ids)}; {remedy}")
