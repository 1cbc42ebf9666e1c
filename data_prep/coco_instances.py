"""One instances_*.json of COCO: categories, pictures and their boxes, with what does not fit named."""

from __future__ import annotations

import json
import math
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

from vlbeit.errors import DataError
from vlbeit.types import Record

from .archives import Entry
from .shards import Fault

_ROUNDING = 0.01  # pixels: coordinates are written with two decimals


class _Annotation(NamedTuple):
    """What is kept of an annotation while a file of 450 MB is read: its outline as JSON text."""

    id: Any
    image_id: Any
    category_id: Any
    bbox: Any
    area: Any
    crowd: Any
    outline: str


class _Picture(NamedTuple):
    name: str
    width: int
    height: int


class Instances(NamedTuple):
    """An annotation file: category id -> name by ascending id, image id -> picture, image id -> annotations."""

    name: str
    fingerprint: str
    categories: dict[int, str]
    pictures: dict[int, _Picture]
    annotations: dict[int, list[_Annotation]]

    def sizes(self) -> dict[str, tuple[int, int]]:
        """File name -> width and height."""
        return {picture.name: (picture.width, picture.height) for picture in self.pictures.values()}

    def records(self) -> Iterator[tuple[Record, tuple[Fault, ...]]]:
        """Records of the kind `boxes` without their image, one a picture, and what was done to their boxes.

        Boxes are cut at the edges of the picture; those of which nothing is left are left out.
        """
        labels = {number: label for label, number in enumerate(self.categories)}
        for number, picture in self.pictures.items():
            record: Record = {"id": picture.name, "image_id": number}
            record |= {name: [] for name in ("boxes", "labels", "areas", "crowd", "outlines")}
            faults: list[Fault] = []
            for row in self.annotations.get(number, ()):
                box, fault = _cut(row, picture, self.name)
                faults += [fault] if fault else []
                if box is not None:
                    record["boxes"].append(box)
                    record["labels"].append(labels[row.category_id])
                    record["areas"].append(box[2] * box[3] if row.area is None else float(row.area))
                    record["crowd"].append(bool(row.crowd))
                    record["outlines"].append(row.outline)
            yield record, tuple(faults)


def read_instances(entry: Entry) -> Instances:
    """Read an annotation file. Raises `DataError` naming ids that come twice or point to nothing."""
    name = f"{entry.archive}: {entry.name}"
    data = entry.read()
    try:
        value = json.loads(data, object_hook=_compact)
        rows, pictures, categories = value["annotations"], value["images"], value["categories"]
        found = [(int(row["id"]), str(row["name"])) for row in categories]
        images = [(int(row["id"]), _Picture(str(row["file_name"]), row["width"], row["height"])) for row in pictures]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{name} is not as in COCO ({type(error).__name__}: {error}); it needs images with id, file_name, width, "
            "height, annotations and categories"
        ) from error
    _once([number for number, _ in found] + [category for _, category in found], name, "categories")
    _once([number for number, _ in images], name, "image ids")
    _once([row.id for row in rows], name, "annotation ids")
    known = {number for number, _ in found}
    there = {number for number, _ in images}
    _refuse([row.id for row in rows if row.image_id not in there], name, "annotations whose image_id is no image's")
    _refuse([row.id for row in rows if row.category_id not in known], name, "annotations whose category_id is unknown")
    _refuse([number for number, picture in images if not _positive(picture)], name, "images without width and height")
    by_image = defaultdict(list)
    for row in rows:
        by_image[row.image_id].append(row)
    return Instances(name, f"{len(data)}-{zlib.crc32(data):08x}", dict(sorted(found)), dict(images), by_image)


def _compact(row: dict[str, Any]) -> Any:
    """Annotations as they are parsed; every other object as it is."""
    if "image_id" not in row or "category_id" not in row:
        return row
    outline = row.get("segmentation")
    text = json.dumps(outline, separators=(",", ":")) if outline else ""
    values = (row.get("id"), row["image_id"], row["category_id"], row.get("bbox"), row.get("area"))
    return _Annotation(*values, row.get("iscrowd", 0), text)


def _positive(picture: _Picture) -> bool:
    sides = (picture.width, picture.height)
    return all(isinstance(side, int) and side > 0 for side in sides)


def _once(values: list[Any], name: str, what: str) -> None:
    _refuse([value for value, count in Counter(values).items() if count > 1], name, f"{what} used twice")


def _refuse(ids: list[Any], name: str, what: str) -> None:
    if ids:
        more = ", ..." if len(ids) > 3 else ""
        shown = ", ".join(map(str, ids[:3]))
        raise DataError(f"{name}: {what}: {len(ids)} ({shown}{more}); take annotations and pictures of one release")


def _cut(row: _Annotation, picture: _Picture, name: str) -> tuple[list[float] | None, Fault | None]:
    """The box [x, y, width, height] inside the picture, or None, and what is to be said of it."""
    try:
        x, y, width, height = map(float, row.bbox)
        if not all(map(math.isfinite, (x, y, width, height, float(row.area or 0)))):
            raise ValueError("numbers that are not finite")
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{name}: annotation {row.id} has no bbox [x, y, width, height] ({error}); correct it"
        ) from error
    left, top = max(x, 0.0), max(y, 0.0)
    right, bottom = min(x + width, float(picture.width)), min(y + height, float(picture.height))
    if width <= 0 or height <= 0:
        return None, Fault(f"box without width or height left out: annotation {row.id}", False)
    if right <= left or bottom <= top:
        return None, Fault(f"box outside the picture left out: annotation {row.id}", False)
    over = max(left - x, top - y, x + width - right, y + height - bottom) > _ROUNDING
    fault = Fault(f"box cut at the edge of the picture: annotation {row.id}", False) if over else None
    return [left, top, right - left, bottom - top], fault
