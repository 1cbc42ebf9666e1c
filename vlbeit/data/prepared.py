"""Folders that `vlbeit prepare` made: Parquet shards of records, and prepared.json that names them.

Pictures and masks are either paths (relative ones to the folder) or encoded bytes inside the shards. Bytes are read
where they lie, row group by row group; everything else goes into a memory-mapped index as with any source.
"""

from __future__ import annotations

import bisect
import json
import os
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from vlbeit.data.index import cached_table
from vlbeit.data.records import KINDS, PREPARED, TableRecords
from vlbeit.errors import DataError
from vlbeit.types import Record, Records

_VERSION = 1  # of the layout of prepared.json and the shards; the writer is vlbeit.data_prep.shards
_FILES = ("image", "mask")  # fields that are a path or the encoded bytes


def prepared_records(root: Path, kind: str, split: str, cache: str | Path = "") -> Records | None:
    """Records of a prepared folder; None where `root` was not made by `vlbeit prepare`.

    `image` and `mask` come as encoded bytes or as absolute paths (str). Any folder with pictures also gives the kind
    `images`. Raises `DataError` for another kind or an unknown split, and for shards that are missing or cut short.
    """
    facts = _facts(root)
    if facts is None:
        return None
    if kind not in (facts["kind"], "images"):
        raise DataError(f"{root} was prepared for {facts['kind']} records, not {kind}; choose the data= that fits")
    if split not in facts["splits"]:
        raise DataError(
            f"{root} has no split {split!r}, it was prepared with {', '.join(facts['splits'])}: "
            f"set data.train_split=, data.val_split=, or prepare it anew with the missing archive"
        )
    shards = [_Shard(root / item["file"], item["rows"], item["size"]) for item in facts["splits"][split]["shards"]]
    _check_shards(shards)
    inside = [name for name in KINDS[kind] if name in _FILES and facts["format"] == "parquet"]
    outside = [name for name in KINDS[kind] if name not in inside]
    name = f"prepared-{kind}-{split}"
    table = cached_table(cache, name, [root / PREPARED], outside, lambda: _rows(shards, outside))
    return PreparedRecords(root, table, _Bytes(shards, facts["group"], inside))


def prepared_classes(root: Path, kind: str) -> list[str] | None:
    """Names of the classes 0, 1, ... of a folder prepared for this kind of record; None for every other folder."""
    facts = _facts(root)
    return list(facts["classes"]) if facts is not None and facts["kind"] == kind else None


class _Shard(NamedTuple):
    path: Path
    rows: int
    size: int  # bytes


def _facts(root: Path) -> dict[str, Any] | None:
    """What prepared.json says; None where there is none."""
    path = root / PREPARED
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        found = facts["version"]
        {name: facts[name] for name in ("kind", "format", "group", "classes", "splits")}
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


def _rows(shards: Sequence[_Shard], fields: list[str]) -> Iterator[Record]:
    for shard in shards:
        with pq.ParquetFile(shard.path) as file:
            for batch in file.iter_batches(columns=fields):
                yield from batch.to_pylist()


class PreparedRecords:
    """Records of a prepared folder: fields from the index, bytes from the shards."""

    def __init__(self, root: Path, table: TableRecords, data: _Bytes) -> None:
        self._root, self._table, self._data = root, table, data

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        record = self._table[index]
        for name in _FILES:
            if name in record:
                record[name] = str(self._root / record[name])  # an absolute path stays as it is
        return record | {name: self._data.read(name, index) for name in self._data.fields}

    def column(self, name: str) -> Sequence[Any]:
        return _Files(self, name) if name in _FILES else self._table.column(name)


class _Files(Sequence[Any]):
    """The images or masks of records, each read when asked for."""

    def __init__(self, records: PreparedRecords, name: str) -> None:
        self._records, self._name = records, name

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        return self._records[index][self._name]


class _Bytes:
    """Fields whose bytes lie in the shards, in row groups of `group` rows."""

    def __init__(self, shards: Sequence[_Shard], group: int, fields: Sequence[str]) -> None:
        self.fields = fields
        self._shards, self._group = shards, group
        self._ends = list(accumulate(shard.rows for shard in shards))
        self._open: dict[tuple[int, int], pq.ParquetFile] = {}

    def read(self, field: str, index: int) -> bytes:
        """One value. Raises `DataError` naming the shard that cannot be read."""
        number = bisect.bisect_right(self._ends, index)
        group, row = divmod(index - self._ends[number] + self._shards[number].rows, self._group)
        try:
            table = self._file(number).read_row_group(group, columns=[field], use_threads=False)
        except (OSError, pa.ArrowException) as error:
            path = self._shards[number].path
            raise DataError(f"{path}: row group {group} cannot be read ({error}); prepare the folder anew") from error
        return table.column(0)[row].as_py()

    def _file(self, number: int) -> pq.ParquetFile:
        """Opened once a process: workers neither share readers nor get them sent."""
        key = (os.getpid(), number)
        if key not in self._open:
            self._open[key] = pq.ParquetFile(self._shards[number].path, memory_map=True)
        return self._open[key]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}
