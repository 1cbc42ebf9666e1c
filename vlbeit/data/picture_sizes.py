"""Heights and widths of pictures, of their headers alone; kept in the cache folder."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from PIL import ExifTags, Image

from vlbeit.data.index import cached_table
from vlbeit.data.picture_facts import picture_facts
from vlbeit.data.records import open_header
from vlbeit.types import Record, Records

log = logging.getLogger(__name__)

_READERS = 8  # threads: they wait for the disk
_AT_ONCE = 256  # pictures: those inside a table are read whole
_ON_ITS_SIDE = (5, 6, 7, 8)  # EXIF orientations that swap height and width


def picture_sizes(records: Records, cache: str | Path) -> list[tuple[int, int] | None]:
    """Height and width of the picture of every record as people see it; None where it cannot be read.

    Read once, and again when a picture has changed. `cache`: as `data.cache`. Raises DataError where it cannot be
    written.
    """
    if len(records) and isinstance(records[0]["image"], Image.Image):  # in memory: there is nothing to read
        return [picture_size(image) for image in records.column("image")]
    digest = hashlib.sha256()
    for fact in picture_facts(records):
        digest.update(fact)
    table = cached_table(cache, f"sizes-{digest.hexdigest()[:16]}", [], ("height", "width"), lambda: _rows(records))
    pairs = zip(table.column("height")[:], table.column("width")[:], strict=True)
    return [None if height is None else (height, width) for height, width in pairs]


def picture_size(value: str | Path | bytes | Image.Image) -> tuple[int, int] | None:
    """Height and width of one picture."""
    try:
        if isinstance(value, Image.Image):
            return _upright_size(value)
        with open_header(value) as image:
            return _upright_size(image)
    except Exception:  # whatever a damaged file makes Pillow raise: reading the picture will name it
        return None


def _rows(records: Records) -> Iterator[Record]:
    log.info("reading the sizes of %d pictures", len(records))
    images = iter(records.column("image"))
    with ThreadPoolExecutor(_READERS) as pool:
        while some := list(islice(images, _AT_ONCE)):
            for size in pool.map(picture_size, some):
                height, width = size or (None, None)
                yield {"height": height, "width": width}


def _upright_size(image: Image.Image) -> tuple[int, int]:
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in _ON_ITS_SIDE
    except Exception:  # as `open_image`: damaged EXIF data turns nothing
        turned = False
    return (image.width, image.height) if turned else (image.height, image.width)
