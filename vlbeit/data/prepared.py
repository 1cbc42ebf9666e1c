"""Folders that `vlbeit prepare` made: Parquet shards of records, and prepared.json that names them.

Pictures and masks are either paths (relative ones to the folder) or encoded bytes inside the shards. Bytes stay there:
the shards hold them uncompressed one behind the other (Parquet's PLAIN encoding: four bytes of length, then the value),
and the memory-mapped index of the other fields says at which byte each begins. A read costs what it reads.

A row of the kind `pairs` is a picture with the list of its texts; each text is a record.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from vlbeit.data.index import cached_table
from vlbeit.data.records import KINDS, PREPARED, FieldColumn, TableRecords
from vlbeit.errors import DataError, MissingSplitError
from vlbeit.types import Record, Records

ORIGIN = "vlbeit:origin"
"""A column of prepared records whose pictures are encoded bytes: of each the shard, its size and time, and the place in
it. Who keeps something that was computed from a picture knows by it whether that is still the picture."""

_VERSION = 1  # of the layout of prepared.json and the shards; the writer is vlbeit.data_prep.shards
_FILES = ("image", "mask", "image_0", "image_1")  # fields that are a path or the encoded bytes
_PREFIX = struct.Struct("<I")  # before every value of a plain Parquet page

Read = Callable[[int, int], bytes]  # of a file: from which byte, how many


def prepared_records(root: Path, kind: str, split: str, cache: str | Path = "") -> Records | None:
    """Records of a prepared folder; None where `root` was not made by `vlbeit prepare`.

    `image` and `mask` come as encoded bytes or as absolute paths (str). Any folder with pictures also gives the kind
    `images`, and one of `pairs` the kind `text`. Raises `DataError` for another kind or an unknown split, and for
    shards that are missing or cut short.
    """
    found = _split(root, kind, split)
    if found is None:
        return None
    facts, shards = found
    inside = [name for name in KINDS[kind] if name in _FILES and facts["format"] == "parquet"]
    outside = [name for name in KINDS[kind] if name not in inside]
    columns = [*outside, *(f"{name}_{part}" for name in inside for part in ("at", "bytes")), *["shard"][: len(inside)]]
    name = f"prepared-{kind}-{split}"
    table = cached_table(cache, name, [root / PREPARED], columns, lambda: _rows(shards, outside, inside))
    return PreparedRecords(root, table, [shard.path for shard in shards], inside)


def prepared_classes(root: Path, kind: str) -> list[str] | None:
    """Names of the classes 0, 1, ... of a folder prepared for this kind of record; None for every other folder."""
    facts = _facts(root)
    return list(facts["classes"]) if facts is not None and facts["kind"] == kind else None


def prepared_arguments(root: Path) -> dict[str, Any] | None:
    """What a folder was prepared with; None where `root` was not made by `vlbeit prepare`."""
    facts = _facts(root)
    return None if facts is None else dict(facts.get("arguments", {}))


def prepared_kinds(root: Path) -> set[str] | None:
    """The kinds of record that a folder gives; None where `root` was not made by `vlbeit prepare`."""
    facts = _facts(root)
    return None if facts is None else kinds_with(facts["kind"])


def kinds_with(kind: str) -> set[str]:
    """The kinds of record that data of this kind give."""
    return {kind} | ({"images"} if "image" in KINDS[kind] else set()) | ({"text"} if kind == "pairs" else set())


class _Shard(NamedTuple):
    path: Path
    rows: int
    size: int  # bytes


def _split(root: Path, kind: str, split: str) -> tuple[dict[str, Any], list[_Shard]] | None:
    """What prepared.json says, and the shards of a split, all there; None where there is no prepared.json."""
    facts = _facts(root)
    if facts is None:
        return None
    if kind not in kinds_with(facts["kind"]):
        raise DataError(f"{root} was prepared for {facts['kind']} records, not {kind}; choose the data= that fits")
    if split not in facts["splits"]:
        raise MissingSplitError(
            f"{root} has no split {split!r}, it was prepared with {', '.join(facts['splits'])}: "
            f"set data.train_split=, data.val_split=, or prepare it anew with the missing archive"
        )
    shards = [_Shard(root / item["file"], item["rows"], item["size"]) for item in facts["splits"][split]["shards"]]
    _check_shards(shards)
    return facts, shards


def _facts(root: Path) -> dict[str, Any] | None:
    """What prepared.json says; None where there is none."""
    path = root / PREPARED
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        found = facts["version"]
        {name: facts[name] for name in ("kind", "format", "classes", "splits")}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged ({type(error).__name__}: {error}); prepare the folder anew") from error
    if found != _VERSION:
        raise DataError(f"{path} has layout {found}, this version reads {_VERSION}; prepare the folder anew")
    return facts


def _check_shards(shards: Sequence[_Shard]) -> None:
    for shard in shards:
        size = shard.path.stat().st_size if shard.path.is_file() else None
        if size != shard.size:
            found = "is missing" if size is None else f"has {size} bytes instead of {shard.size}"
            raise DataError(f"{shard.path} {found}; copy it again, or remove the folder and prepare it anew")


def _rows(shards: Sequence[_Shard], outside: list[str], inside: list[str]) -> Iterator[Record]:
    """The fields outside the shards, and where those inside lie: `shard`, and for each `_at` and `_bytes`."""
    lengths = [f"{name}_bytes" for name in inside]
    for number, shard in enumerate(shards):
        try:
            with pq.ParquetFile(shard.path) as file:
                for group in range(file.num_row_groups):
                    rows = file.read_row_group(group, columns=[*outside, *lengths]).to_pylist()
                    for name in inside:
                        places = _places(file, group, name, [row[f"{name}_bytes"] for row in rows])
                        for row, place in zip(rows, places, strict=True):
                            row |= {f"{name}_at": place, "shard": number}
                        _check_place(partial(_bytes, shard.path), places[-1], rows[-1][f"{name}_bytes"])
                    yield from (record for row in rows for record in _each_text(row))
        except (ValueError, pa.ArrowException) as error:
            raise DataError(f"{shard.path} is damaged ({error}); remove the folder and prepare it anew") from error


def _each_text(row: Record) -> list[Record]:
    """The row itself; of a picture with a list of texts a record for each of them."""
    texts = row.get("text")
    if not isinstance(texts, list):
        return [row]
    return [{**row, "id": f"{row['id']}#{place}", "text": text} for place, text in enumerate(texts)]


def _places(file: pq.ParquetFile, group: int, name: str, lengths: Sequence[int]) -> list[int]:
    """Where in the file the values of one column of one row group begin.

    The writer makes one page of each column of a row group, not compressed, of a field that is never null: a header,
    then length and value in turns.
    """
    chunks = file.metadata.row_group(group)
    chunk = next(c for c in map(chunks.column, range(chunks.num_columns)) if c.path_in_schema == name)
    place = chunk.data_page_offset + chunk.total_compressed_size - sum(lengths) - _PREFIX.size * len(lengths)
    places = []
    for length in lengths:
        places.append(place + _PREFIX.size)
        place += _PREFIX.size + length
    return places


def _check_place(read: Read, at: int, length: int) -> None:
    """ValueError unless the length of a value stands before it."""
    if at < _PREFIX.size or _PREFIX.unpack(read(at - _PREFIX.size, _PREFIX.size)) != (length,):
        raise ValueError("its pictures are not stored plainly")


class PreparedRecords:
    """Records of a prepared folder: fields from the index, bytes from the shards."""

    def __init__(self, root: Path, table: TableRecords, shards: Sequence[Path], inside: Sequence[str]) -> None:
        self._root, self._table, self._shards, self._inside = root, table, shards, inside

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        record = self._table[index]
        for name in _FILES:
            if name in record:
                record[name] = str(self._root / record[name])  # an absolute path stays as it is
        if self._inside:
            shard = self._shards[record.pop("shard")]
            for name in self._inside:
                record[name] = _bytes(shard, record.pop(f"{name}_at"), record.pop(f"{name}_bytes"))
        return record

    def column(self, name: str) -> Sequence[Any]:
        if name == ORIGIN and self._inside:
            return self._origins()
        if name in self._inside:
            return FieldColumn(self, name)
        column = self._table.column(name)
        return [str(self._root / path) for path in column[:]] if name in _FILES else column

    def _origins(self) -> list[str]:
        stats = [(path.absolute(), path.stat()) for path in self._shards]
        files = [f"{path} {facts.st_size} {facts.st_mtime_ns}" for path, facts in stats]
        places = zip(self._table.column("shard"), self._table.column("image_at"), strict=True)
        return [f"{files[shard]} {place}" for shard, place in places]


def _bytes(shard: Path, at: int, length: int) -> bytes:
    """A part of a file. It is opened for every read: workers share nothing, and shards may be thousands."""
    try:
        with open(shard, "rb", buffering=0) as file:
            file.seek(at)
            data = file.read(length)
    except OSError as error:
        raise DataError(f"{shard} cannot be read: {error.strerror or error}") from error
    if len(data) != length:
        raise DataError(f"{shard} ends before byte {at + length}; copy it again, or prepare the folder anew")
    return data


# ---- for a stream over the shards


def shard_paths(root: Path, kind: str, split: str) -> list[Path] | None:
    """The shards of a split, none of them missing or cut short; None where `root` was not made by `vlbeit prepare`.

    Raises `DataError` for another kind, and `MissingSplitError`.
    """
    found = _split(root, kind, split)
    return None if found is None else [shard.path for shard in found[1]]


def plain_places(file: pq.ParquetFile, read: Read, group: int, name: str, lengths: Sequence[int]) -> list[int]:
    """At which byte each value of a column of a row group begins. ValueError where they are not stored plainly."""
    places = _places(file, group, name, lengths)
    _check_place(read, places[-1], lengths[-1])
    return places
