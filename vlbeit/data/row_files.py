"""Tables of a user's own: the rows of CSV, JSON lines and Parquet files, one at a time, each with its place.

Nothing is known here of what the columns mean. Data preparation shares it with the sources: Python and pyarrow alone.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from vlbeit.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
_DELIMITERS = ",;\t"
_BATCH = 64  # rows of an Arrow table that are held at a time: it may hold the pictures
_SAMPLE = 100  # lines whose keys make the columns of a JSON file
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


class Row(NamedTuple):
    """One row: where it stands, its values by column, and what is wrong with it as a row ("": nothing)."""

    place: str  # "line 7" or "row 7" or "item 7"; counted from 1
    values: dict[str, Any]
    fault: str = ""


class Table(NamedTuple):
    """A table that is read row by row, as often as one asks for its rows."""

    name: str  # in messages
    columns: list[str]
    read: Callable[[Sequence[str]], Iterator[Row]]  # the rows, with the values of these columns
    folder: Path  # what paths in it are relative to, where nothing else is said
    split: str = ""  # that all its rows belong to; "": it does not say


def open_table(path: Path, split: str = "") -> Table:
    """The table of a file by its suffix: .csv .tsv .jsonl .ndjson .json .parquet.

    Raises `DataError`, naming file and line, for a file that is empty, damaged or not what its suffix says.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{path} does not end in {', '.join(SUFFIXES)}")
    try:
        if suffix == ".parquet":
            columns, read = _parquet(path)
        else:
            columns, read = _csv(path) if suffix in (".csv", ".tsv") else _json(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    return Table(path.name, columns, read, path.absolute().parent, split)


def stored_table(name: str, stored: Dataset, folder: Path, split: str = "") -> Table:
    """A table of the `datasets` library, its pictures left encoded; `folder`: what paths in it are relative to."""

    def read(columns: Sequence[str]) -> Iterator[Row]:
        return _arrow_rows(stored.select_columns(list(columns)).with_format("arrow").iter(_BATCH))

    return Table(name, stored.column_names, read, folder, split)


def _arrow_rows(batches: Iterable[pa.RecordBatch | pa.Table]) -> Iterator[Row]:
    """The rows of pieces of an Arrow table, as Python values."""
    number = 0
    for batch in batches:
        for values in batch.to_pylist():
            number += 1
            yield Row(f"row {number}", values)


def _parquet(path: Path) -> tuple[list[str], Callable[[Sequence[str]], Iterator[Row]]]:
    def batches(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        try:
            with pq.ParquetFile(path) as file:
                yield from file.iter_batches(batch_size=_BATCH, columns=list(columns))
        except (pa.ArrowException, ValueError) as error:
            raise DataError(f"{path} is no Parquet file that can be read ({error}); write it again") from error

    try:
        names = pq.read_schema(path).names
    except (pa.ArrowException, ValueError) as error:
        raise DataError(f"{path} is no Parquet file that can be read ({error}); write it again") from error
    return names, lambda columns: _arrow_rows(batches(columns))


# ---- CSV


def _csv(path: Path) -> tuple[list[str], Callable[[Sequence[str]], Iterator[Row]]]:
    """The first line that is not empty names the columns; `,` `;` or a tab stands between the cells."""
    first = next((line for line in _lines(path) if line.strip()), "")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(first)
    heading = next(_cells(path, delimiter), None)
    if heading is None:
        raise DataError(f"{path} is empty; its first line must name the columns")
    columns = [name.strip() for name in heading[1]]
    if twice := {name for name in columns if name and columns.count(name) > 1}:
        raise DataError(f"{path}: two columns have the name {min(twice)!r}; rename one")

    def read(wanted: Sequence[str]) -> Iterator[Row]:
        places = [(name, columns.index(name)) for name in wanted]
        for line, cells in islice(_cells(path, delimiter), 1, None):
            if len(cells) == len(columns):
                yield Row(f"line {line}", {name: cells[place] for name, place in places})
            else:
                what = f"{len(cells)} cells under {len(columns)} columns (is there a {delimiter!r} that needs quotes?)"
                yield Row(f"line {line}", {}, what)

    return [name for name in columns if name], read


def _delimiter(line: str) -> str:
    """What stands most often between the names of the columns, outside of quotes."""
    outside = "".join(line.split('"')[::2])
    return max(_DELIMITERS, key=outside.count)


def _cells(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The line at which each record begins, and its cells; empty lines are passed over."""
    reader = csv.reader(_lines(path), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"{path}, line {line}: {error}; is a quote opened there that is never closed? A quote inside a quoted "
                f"cell is written twice"
            ) from error
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            yield line, cells


def _lines(path: Path) -> Iterator[str]:
    """Lines with their ends, of UTF-8 with or without a byte order mark, or of UTF-16 with one."""
    with open(path, "rb") as file:
        start = file.read(3)
        if start.startswith(_UTF16):
            with open(path, encoding="utf-16", newline="") as text:
                try:
                    yield from text
                except UnicodeError as error:
                    raise DataError(f"{path} is cut off or damaged UTF-16 ({error}); save it as UTF-8") from error
            return
        file.seek(3 if start == b"\xef\xbb\xbf" else 0)
        for number, line in enumerate(file, 1):
            try:
                yield line.decode()
            except UnicodeDecodeError as error:
                wrong = line[error.start : error.start + 1]
                raise DataError(f"{path}, line {number}: {wrong!r} is not UTF-8; save the file as UTF-8") from error


# ---- JSON


def _json(path: Path) -> tuple[list[str], Callable[[Sequence[str]], Iterator[Row]]]:
    """Objects, one a line, or in one list. The columns are the keys of the first of them."""
    first = next((line.strip() for line in _lines(path) if line.strip()), "")
    objects = _items if first.startswith("[") else _objects
    columns = dict.fromkeys(key for row in islice(objects(path), _SAMPLE) for key in row.values)
    if not columns:
        raise DataError(f"{path} has no row; it must hold one JSON object a line, or one list of objects")

    def read(wanted: Sequence[str]) -> Iterator[Row]:
        for row in objects(path):
            yield row._replace(values={name: row.values.get(name) for name in wanted})

    return list(columns), read


def _objects(path: Path) -> Iterator[Row]:
    """The lines that are not empty."""
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            try:
                yield _object(f"line {number}", json.loads(line.rstrip()))  # else a fault may lie in its next line
            except (ValueError, RecursionError) as error:
                yield Row(f"line {number}", {}, f"not JSON: {_said(error)}")


def _said(error: Exception) -> str:
    """What is wrong with one line; Python counts its lines anew."""
    return f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def _items(path: Path) -> Iterator[Row]:
    """The items of one list; such a file is read whole."""
    try:
        items = json.loads("".join(_lines(path)))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}; it must hold one list of objects, or one a line") from error
    for number, item in enumerate(items, 1):
        yield _object(f"item {number}", item)


def _object(place: str, value: Any) -> Row:
    if not isinstance(value, dict):
        return Row(place, {}, f"no JSON object but {json.dumps(value)[:40]}")
    return Row(place, value)
