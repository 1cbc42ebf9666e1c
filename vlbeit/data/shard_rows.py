"""The rows of one shard: a WebDataset tar, somebody's Parquet file, or a shard that `vlbeit prepare` wrote.

A row is a picture with its texts, a picture alone, or a text alone. Pictures stay where they are: a row says where.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from vlbeit.data.prepared import plain_places
from vlbeit.data.tar_samples import PICTURES, kept_texts, tar_samples
from vlbeit.errors import DataError, MissingColumnError

IMAGE_COLUMNS = ("image", *PICTURES, "img", "bytes", "image_bytes")
CAPTION_COLUMNS = ("caption", "captions", "text", "texts", "txt", "TEXT")
TEXT_COLUMNS = ("text", "texts", *(name for name in CAPTION_COLUMNS if not name.startswith("text")))
_KEYS = ("id", "key", "__key__")
_ROWS = 1000  # of texts that are held at a time


class Row(NamedTuple):
    """One row of a shard."""

    key: str
    texts: Sequence[str]  # those that are not empty
    at: int = -1  # first byte of the picture; in row groups the number of the group; -1: no picture
    length: int = -1  # its bytes; in row groups the row in the group
    path: str = ""  # of a picture that is a file of its own
    picture: str = ""  # what names the picture; "": its shard and key do


def is_tar(name: str) -> bool:
    """Whether a shard is a tar file, by its name."""
    return name.endswith(".tar")


def tar_rows(file: BinaryIO, name: str) -> Iterator[Row]:
    """The samples of a tar. `name` is for messages."""
    return (Row(*sample[:4]) for sample in tar_samples(file, name))


# ---- Parquet


class Columns(NamedTuple):
    """Which columns of a Parquet file mean what; "" for what it does not have."""

    image: str
    text: str
    key: str
    picture: str
    lengths: str  # of pictures that are stored plainly, one behind the other: where `vlbeit prepare` wrote the shard


def columns_of(schema: pa.Schema, kind: str, name: str, *, prepared: bool) -> Columns:
    """The columns for a kind of record. Raises `MissingColumnError`, naming the file, where one is lacking."""
    names = schema.names

    def first(wanted: Sequence[str]) -> str:
        return next((column for column in wanted if column in names), "")

    texts = [n for n in (TEXT_COLUMNS if kind == "text" else CAPTION_COLUMNS) if n in names and _is_text(schema, n)]
    pictures = [n for n in IMAGE_COLUMNS if n in names and not pa.types.is_integer(schema.field(n).type)]
    image = pictures[0] if pictures and kind != "text" else ""
    text = texts[0] if texts and kind != "images" else ""
    if (kind != "text" and not image) or (kind != "images" and not text):
        lacking = f"picture ({', '.join(IMAGE_COLUMNS)})" if kind != "text" and not image else "text (caption, text)"
        hint = "rename one"
        if "url" in names and not image:
            hint = "is it the table that img2dataset wrote beside a tar file, and the tar is gone?"
        raise MissingColumnError(f"{name} has no column of a {lacking}; it has {', '.join(names)}: {hint}")
    lengths = f"{image}_bytes" if prepared and f"{image}_bytes" in names else ""
    return Columns(image, text, first(_KEYS), "picture" if prepared and "picture" in names else "", lengths)


def is_list(schema: pa.Schema, column: str) -> bool:
    """Whether a column holds lists."""
    kind = schema.field(column).type
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def holds_paths(schema: pa.Schema, columns: Columns) -> bool:
    """Whether the pictures are files of their own that the column names."""
    return bool(columns.image) and _is_string(schema.field(columns.image).type)


def parquet_rows(source: BinaryIO, name: str, columns: Columns) -> Iterator[Row]:
    """The rows, no picture read: `at` and `length` are bytes where pictures are stored plainly, else group and row."""
    try:
        with pq.ParquetFile(source) as file:
            paths = holds_paths(file.schema_arrow, columns)
            read = [columns.text, columns.key, columns.picture, columns.lengths, columns.image if paths else ""]
            number = 0
            for group in range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                places = _places(file, source, group, columns)
                for row, values in enumerate(_values(file, group, [column for column in read if column], count)):
                    at, length = (-1, -1) if not columns.image else places[row] if places else (group, row)
                    key = values.get(columns.key)
                    yield Row(
                        f"{number:09d}" if key is None else str(key),
                        kept_texts(values[columns.text]) if columns.text else [],
                        at,
                        length,
                        str(values[columns.image] or "") if paths else "",
                        values.get(columns.picture) or "",
                    )
                    number += 1
    except (pa.ArrowException, ValueError, OSError) as error:
        raise DataError(f"{name} is no Parquet file that can be read ({error}); copy or download it again") from error


def _places(file: pq.ParquetFile, source: BinaryIO, group: int, columns: Columns) -> list[tuple[int, int]]:
    """First byte and bytes of every picture of a row group; [] where they are not stored plainly."""
    if not columns.lengths:
        return []
    lengths = file.read_row_group(group, columns=[columns.lengths]).column(0).to_pylist()

    def read(at: int, length: int) -> bytes:
        return os.pread(source.fileno(), length, at)

    return list(zip(plain_places(file, read, group, columns.image, lengths), lengths, strict=True))


def _values(file: pq.ParquetFile, group: int, columns: list[str], count: int) -> Iterator[dict[str, Any]]:
    """The values of some columns of a row group, row by row."""
    if not columns:
        yield from ({} for _ in range(count))
        return
    for batch in file.iter_batches(_ROWS, row_groups=[group], columns=columns):
        yield from batch.to_pylist()


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_text(schema: pa.Schema, column: str) -> bool:
    kind = schema.field(column).type
    return _is_string(kind.value_type if is_list(schema, column) else kind)
