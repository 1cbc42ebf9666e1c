"""What stands in at evaluation for a file that cannot be read: the sample is still counted."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from vlbeit.data.drawing import IGNORED
from vlbeit.data.records import ImageError, decoded, open_stored
from vlbeit.types import Record

_GREY = 128
_SIZE = (64, 64)  # width and height where nothing is known


def stand_in(record: Record) -> Record:
    """The record with a mid-grey image in place of its own; of two pictures the one that can be read stays.

    Of a `masks` record only what cannot be read is replaced, in the size of the other: the image by a grey one, which
    is scored against the mask, the mask by one that is not scored anywhere.
    """
    if "image_0" in record:
        pair = {name: record[name] for name in ("image_0", "image_1")}
        return record | {name: _png("RGB", _SIZE, (_GREY,) * 3) for name in pair if _image_size(pair[name]) is None}
    if "mask" not in record:
        return {**record, "image": _png("RGB", _SIZE, (_GREY,) * 3)}
    image_size, mask_size = _image_size(record["image"]), _mask_size(record["mask"])
    size = mask_size or image_size or _SIZE
    image = record["image"] if image_size else _png("RGB", size, (_GREY,) * 3)
    return {**record, "image": image, "mask": record["mask"] if mask_size else _png("L", size, IGNORED)}


def _image_size(value: str | bytes | Path) -> tuple[int, int] | None:
    """Width and height of the image as it is stored; None where it cannot be read."""
    try:
        return open_stored(value).size
    except ImageError:
        return None


def _mask_size(value: str | bytes | Path) -> tuple[int, int] | None:
    try:
        return decoded(value, lambda image: (image.load(), image.size)[1])
    except ImageError:
        return None


def _png(mode: str, size: tuple[int, int], color: int | tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, color).save(file, "PNG")
    return file.getvalue()
