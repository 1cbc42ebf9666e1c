"""Records: rows of a data source before anything is decoded, and the tables that hold them.

Imports neither torch nor `datasets`, so that preparing data starts fast.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from vlbeit.errors import DataError
from vlbeit.types import Record, Records

if TYPE_CHECKING:
    from datasets import Dataset

KINDS: dict[str, tuple[str, ...]] = {
    "images": ("id", "image"),
    "labelled": ("id", "image", "label"),
    "text": ("id", "text"),
    "pairs": ("id", "image", "text"),
    "vqa": (
        "id", "image", "question", "question_id", "image_id", "question_type", "answer_type", "answers",
    ),
    "masks": ("id", "image", "mask"),
    "boxes": ("id", "image", "boxes", "labels"),
}  # fmt: skip
"""Fields of a record by kind. `id` str · `image` path or encoded bytes · `label` int · `text` str ·
`question_id` and `image_id` int · `answers` list[str], the raw answers of the annotators, [] where they are hidden ·
`mask` path · `boxes` list of [x, y, width, height] in pixels · `labels` list[int]."""


_UNREADABLE = (OSError, EOFError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)
# what Pillow's decoders raise over damaged files


class ImageError(DataError):
    """An image that is missing, truncated or in no known format."""


def open_image(value: str | Path | bytes | Image.Image) -> Image.Image:
    """The whole decoded image as RGB, from a path, encoded bytes or a PIL image.

    Raises `ImageError` naming the file.
    """
    if isinstance(value, Image.Image):
        return value.convert("RGB")
    name = f"an image of {len(value)} bytes" if isinstance(value, bytes) else str(value)
    try:
        with Image.open(io.BytesIO(value) if isinstance(value, bytes) else value) as image:
            return image.convert("RGB")  # loads every row, so that a truncated file is found out here
    except FileNotFoundError as error:
        raise ImageError(f"{name} does not exist") from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"{name} is not an image in a known format") from error
    except _UNREADABLE as error:
        raise ImageError(f"{name} cannot be read: {error}") from error


class ListRecords:
    """Records in memory: for tests and small tables."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        return dict(self._records[index])

    def column(self, name: str) -> Sequence[Any]:
        return [record[name] for record in self._records]


class TableRecords:
    """Records in a memory-mapped `datasets` table whose columns are the fields."""

    def __init__(self, table: Dataset) -> None:
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Record:
        return self._table[int(index)]

    def column(self, name: str) -> Sequence[Any]:
        return self._table[name]  # a lazy column: read in pieces


class FirstRecords:
    """The first `count` of other records."""

    def __init__(self, records: Records, count: int) -> None:
        self._records, self._count = records, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self._count:
            raise IndexError(f"record {index} of {self._count}")
        return self._records[index]

    def column(self, name: str) -> Sequence[Any]:
        return self._records.column(name)[: self._count]


def take(records: Records, count: int | None) -> Records:
    """The first `count` records; all of them for None."""
    return records if count is None or count >= len(records) else FirstRecords(records, count)
