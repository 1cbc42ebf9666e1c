"""Heights and widths of pictures, read of their headers alone and kept: a run asks for them at every start."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from vlbeit.data.index import cached_table
from vlbeit.data.records import FieldColumn
from vlbeit.types import Record, Records

log = logging.getLogger(__name__)

HeightWidth = tuple[int, int]

_READERS = 8  # threads: they wait for the disk
_FIELDS = ("id", "height", "width")
_ON_ITS_SIDE = (5, 6, 7, 8)  # EXIF orientations that swap height and width


def picture_sizes(records: Records, cache: str | Path) -> list[HeightWidth | None]:
    """Height and width of every record's picture as people see it; None for one that cannot be read.

    Each picture, by its `image_id`, is looked at once. The sizes of files are kept in the folder of indexes, `cache`,
    for as long as the files do not change.
    """
    images = records.column("image_id")[:]
    rows = {image: row for row, image in enumerate(images)}
    found: dict[Any, HeightWidth | None] = {}
    paths: dict[Any, str] = {}
    column = records.column("image")
    values = column if isinstance(column, FieldColumn) else column[:]  # a memory-mapped one is slow value by value
    for image, row in rows.items():
        value = values[row]
        if isinstance(value, str):
            paths[image] = value
        else:
            found[image] = picture_size(value)
    of_path = _sizes_of_files(sorted({*paths.values()}), cache) if paths else {}
    found |= {image: of_path[path] for image, path in paths.items()}
    return [found[image] for image in images]


def picture_size(value: str | Path | bytes | Image.Image) -> HeightWidth | None:
    """Height and width of a picture as people see it, of its header alone; None where that cannot be read."""
    try:
        if isinstance(value, Image.Image):
            return _upright_size(value)
        with Image.open(io.BytesIO(value) if isinstance(value, bytes) else value) as image:
            return _upright_size(image)
    except Exception:  # whatever a damaged file makes Pillow raise: reading the picture will name it
        return None


def _upright_size(image: Image.Image) -> HeightWidth:
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in _ON_ITS_SIDE
    except Exception:  # as `open_image`: damaged EXIF data turns nothing
        turned = False
    return (image.width, image.height) if turned else (image.height, image.width)


def _sizes_of_files(paths: Sequence[str], cache: str | Path) -> dict[str, HeightWidth | None]:
    """From a table that was written when these files were as they are now, else read."""

    def rows() -> Iterator[Record]:
        log.info("reading the sizes of %d pictures", len(paths))
        for path, size in zip(paths, pool.map(picture_size, paths), strict=True):
            height, width = size or (None, None)
            yield {"id": path, "height": height, "width": width}

    with ThreadPoolExecutor(_READERS) as pool:
        facts = json.dumps([*zip(paths, pool.map(_state, paths), strict=True)])
        table = cached_table(cache, f"sizes-{hashlib.sha256(facts.encode()).hexdigest()[:16]}", [], _FIELDS, rows)
    columns = (table.column(name)[:] for name in _FIELDS)
    return {path: None if height is None else (height, width) for path, height, width in zip(*columns, strict=True)}


def _state(path: str) -> tuple[int, int] | None:
    """Bytes and time of a file; None where there is none."""
    try:
        facts = os.stat(path)
    except OSError:
        return None
    return facts.st_size, facts.st_mtime_ns
