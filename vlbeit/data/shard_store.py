"""The files of shards, opened when they are needed: local copies, indexes, the bytes of a picture.

Of a shard that is used for the first time an index is made and kept (`vlbeit.data.shard_index`). A process holds the
handles of the last shards, and some pictures of Parquet files whose row groups can only be read whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from vlbeit.data.index import cache_folder
from vlbeit.data.recent import Recent
from vlbeit.data.shard_files import LocalFiles, ShardFile
from vlbeit.data.shard_index import FORMAT, ShardIndex, write_index
from vlbeit.data.shard_rows import Columns, columns_of, is_tar, parquet_rows, tar_rows
from vlbeit.errors import DataError

_HANDLES = 64  # files that a process keeps open, of indexes and of shards each
DECODED = 2**28  # bytes of row groups that a process keeps


class Reading(NamedTuple):
    """How shards are read."""

    kind: str  # pairs, images or text
    cache: str  # as data.cache
    cache_gb: float | None = None  # room for copies of remote shards
    prepared: str = ""  # the folder that `vlbeit prepare` wrote; "": shards of others


class ShardStore:
    """Shards as local files, and their indexes. Handles are opened when they are needed, in every process its own."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self._files = LocalFiles(reading.cache, None if reading.cache_gb is None else reading.cache_gb * 1e9)
        self._forget()

    def index(self, shard: ShardFile) -> ShardIndex:
        """The index of a shard, made now where there is none yet."""
        return self._indexes.get(shard, lambda: self._open_index(shard))

    def read(self, shard: ShardFile, at: int, length: int) -> bytes:
        """Some bytes of a shard. Raises `DataError` where it is gone or another file than before."""
        data = self._handles.get(shard, lambda: _Handle(self._open(shard), shard)).read(at, length)
        if len(data) != length:
            raise DataError(f"{shard.name} ends before byte {at + length}; copy or download it again")
        return data

    def in_group(self, shard: ShardFile, group: int, row: int) -> Any:
        """The value of the picture's column in a row of a row group, which is kept for its neighbours."""
        return self._groups.get((shard, group), lambda: self._group(shard, group))[row].as_py()

    def columns(self, shard: ShardFile, file: pq.ParquetFile) -> Columns:
        """Which columns of an open Parquet file mean what."""
        return columns_of(file.schema_arrow, self.reading.kind, shard.name, prepared=bool(self.reading.prepared))

    def _open_index(self, shard: ShardFile) -> ShardIndex:
        from filelock import FileLock

        path = self._index_path(shard)
        try:
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(f"{path}.lock"):
                    if not path.exists():
                        with self._open(shard) as file:
                            write_index(path, self._rows(shard, file))
            return ShardIndex(path)
        except OSError as error:
            raise DataError(f"cannot write the index {path}: {error.strerror or error}; set data.cache=DIR") from error

    def _index_path(self, shard: ShardFile) -> Path:
        """One index serves pairs and images and their texts; texts alone are of other columns."""
        what = "text" if self.reading.kind == "text" and not is_tar(shard.name) else "pictures"
        key = hashlib.sha256(json.dumps([FORMAT, *shard, what, self.reading.prepared]).encode()).hexdigest()[:24]
        return cache_folder(self.reading.cache) / "shard-index" / key[:2] / f"{key}.idx"

    def _rows(self, shard: ShardFile, file: BinaryIO) -> Iterator[Any]:
        if is_tar(shard.name):
            return tar_rows(file, shard.name)
        with open_parquet(file, shard.name) as table:
            columns = self._all_columns(shard, table)
        return parquet_rows(file, shard.name, columns)

    def _all_columns(self, shard: ShardFile, file: pq.ParquetFile) -> Columns:
        """Of a shard that is read for pictures the texts too, where it has any: the index serves both kinds."""
        columns = self.columns(shard, file)
        if self.reading.kind != "images":
            return columns
        try:
            return columns_of(file.schema_arrow, "pairs", shard.name, prepared=bool(self.reading.prepared))
        except DataError:
            return columns

    def _open(self, shard: ShardFile) -> BinaryIO:
        """The shard, or its copy, which others may remove from now on: whatever is read of it is read of this file."""
        file = self._files.open(shard, _hash(shard)[:16])
        _check(file, shard)
        return file

    def _group(self, shard: ShardFile, group: int) -> pa.ChunkedArray:
        with self._open(shard) as source, open_parquet(source, shard.name) as file:
            try:
                return file.read_row_group(group, columns=[self.columns(shard, file).image]).column(0)
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{shard.name} is damaged ({error}); copy or download it again") from error

    def _forget(self) -> None:
        self._indexes: Recent[ShardIndex] = Recent(_HANDLES)
        self._handles: Recent[_Handle] = Recent(_HANDLES)
        self._groups = _Groups(DECODED)

    def __getstate__(self) -> dict[str, Any]:
        return {"reading": self.reading, "_files": self._files}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()


class _Handle:
    """An open shard. The file is closed with the object."""

    def __init__(self, file: BinaryIO, shard: ShardFile) -> None:
        self._file, self._shard = file, shard

    def read(self, at: int, length: int) -> bytes:
        try:
            _check(self._file, self._shard)
            return os.pread(self._file.fileno(), length, at)
        except OSError as error:
            raise DataError(f"{self._shard.name} cannot be read: {error.strerror or error}") from error

    def __del__(self) -> None:
        self._file.close()


def _check(file: BinaryIO, shard: ShardFile) -> None:
    """Raise `DataError` where the file is not what it was when it was listed; a copy is ours."""
    facts = os.fstat(file.fileno())
    if not shard.remote and (facts.st_size, str(facts.st_mtime_ns)) != shard[1:]:
        raise DataError(f"{shard.name} was changed while it was in use; restore it, or start the run anew")


class _Groups:
    """The last row groups that were read, as many as fit into some bytes, and one at least."""

    def __init__(self, most: int) -> None:
        self._most, self._held = most, 0
        self._kept: OrderedDict[Any, pa.ChunkedArray] = OrderedDict()

    def get(self, key: Any, make: Any) -> pa.ChunkedArray:
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        value = make()
        self._held += value.nbytes
        while self._kept and self._held > self._most:
            self._held -= self._kept.popitem(last=False)[1].nbytes
        self._kept[key] = value
        return value


def open_parquet(source: Any, name: str) -> pq.ParquetFile:
    """A Parquet file, by its path or an open file. Raises `DataError`, naming it, where it is none."""
    try:
        return pq.ParquetFile(source)
    except (pa.ArrowException, ValueError, OSError) as error:
        raise DataError(f"{name} is no Parquet file that can be read ({error}); copy or download it again") from error


def _hash(shard: ShardFile) -> str:
    return hashlib.sha256(json.dumps(list(shard)).encode()).hexdigest()
