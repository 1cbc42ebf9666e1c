"""Records in shards: WebDataset tars and Parquet files, read by offset, in any number.

Of a shard that is used for the first time an index is made and kept (`vlbeit.data.shard_index`). What stays in memory
are a few numbers per shard, and in every process the handles of the last shards and some pictures of Parquet files
whose row groups can only be read whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlbeit.data.index import cache_folder
from vlbeit.data.order import CHUNK, Member, Sharded, StreamOrder
from vlbeit.data.recent import Recent
from vlbeit.data.records import FieldColumn, IncompleteError, StreamedTexts
from vlbeit.data.shard_files import LocalFiles, ShardFile
from vlbeit.data.shard_index import FORMAT, Entry, ShardIndex, write_index
from vlbeit.data.shard_rows import Columns, columns_of, is_tar, parquet_rows, tar_rows
from vlbeit.errors import DataError
from vlbeit.types import Record

_HANDLES = 64  # files that a process keeps open, of indexes and of shards each
DECODED = 2**28  # bytes of row groups that a process keeps


class Reading(NamedTuple):
    """How shards are read."""

    kind: str  # pairs, images or text
    cache: str  # as data.cache
    cache_gb: float | None = None  # room for copies of remote shards
    prepared: str = ""  # the folder that `vlbeit prepare` wrote; "": shards of others


class Counted(NamedTuple):
    """What is known of a shard before it is read."""

    samples: int
    chunk: int = CHUNK  # samples that are best read together
    decoded: int = 0  # bytes of its pictures, where they are in row groups that can only be read whole


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
        data = self._handles.get(shard, lambda: self._open(shard)).read(at, length)
        if len(data) != length:
            raise DataError(f"{shard.name} ends before byte {at + length}; copy or download it again")
        return data

    def in_group(self, shard: ShardFile, column: str, group: int, row: int) -> Any:
        """The value of a column in a row of a row group, which is kept for its neighbours."""
        return self._groups.get((shard, group), lambda: self._group(shard, column, group))[row].as_py()

    def columns(self, shard: ShardFile, file: pq.ParquetFile) -> Columns:
        """Which columns of an open Parquet file mean what."""
        return columns_of(file.schema_arrow, self.reading.kind, shard.name, prepared=bool(self.reading.prepared))

    def local(self, shard: ShardFile) -> Path:
        """The shard as a local file."""
        return self._files.path(shard, _hash(shard)[:16])

    def _open_index(self, shard: ShardFile) -> ShardIndex:
        from filelock import FileLock

        path = self._index_path(shard)
        try:
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(f"{path}.lock"):
                    if not path.exists():
                        write_index(path, self._rows(shard))
            return ShardIndex(path)
        except OSError as error:
            raise DataError(f"cannot write the index {path}: {error.strerror or error}; set data.cache=DIR") from error

    def _index_path(self, shard: ShardFile) -> Path:
        """One index serves pairs and images and their texts; texts alone are of other columns."""
        what = "text" if self.reading.kind == "text" and not is_tar(shard.name) else "pictures"
        key = hashlib.sha256(json.dumps([FORMAT, *shard, what, self.reading.prepared]).encode()).hexdigest()[:24]
        return cache_folder(self.reading.cache) / "shard-index" / key[:2] / f"{key}.idx"

    def _rows(self, shard: ShardFile) -> Iterator[Any]:
        path = self.local(shard)
        if not path.is_file():
            raise DataError(f"{shard.name} is gone; put it back, or start the run again without it")
        if is_tar(shard.name):
            return tar_rows(path, shard.name)
        with open_parquet(path, shard.name) as file:
            columns = self._all_columns(shard, file)
        return parquet_rows(path, shard.name, columns)

    def _all_columns(self, shard: ShardFile, file: pq.ParquetFile) -> Columns:
        """Of a shard that is read for pictures the texts too, where it has any: the index serves both kinds."""
        columns = self.columns(shard, file)
        if self.reading.kind != "images":
            return columns
        try:
            return columns_of(file.schema_arrow, "pairs", shard.name, prepared=bool(self.reading.prepared))
        except DataError:
            return columns

    def _open(self, shard: ShardFile) -> _Handle:
        for _ in range(3):  # a copy may be removed for others between these two lines
            path = self.local(shard)
            try:
                return _Handle(path, shard)
            except FileNotFoundError:
                if not shard.remote:
                    break
        raise DataError(f"{shard.name} is gone; put it back, or start the run again without it")

    def _group(self, shard: ShardFile, column: str, group: int) -> pa.ChunkedArray:
        self._open(shard)  # complains where it is another file
        with open_parquet(self.local(shard), shard.name) as file:
            try:
                return file.read_row_group(group, columns=[column]).column(0)
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


class ShardRecords:
    """The records of one kind in shards, with an order of their own."""

    def __init__(self, shards: Sequence[ShardFile], counted: Sequence[Counted], store: ShardStore) -> None:
        self._shards, self._counted, self._store = shards, counted, store
        self._ends = np.cumsum([each.samples for each in counted], dtype=np.int64)
        self.order: StreamOrder | None = None  # as `ordered` makes it

    def ordered(self, open_shards: int, window: int) -> ShardRecords:
        """The same records, with an order: so many shards at a time, about so many samples permuted together."""
        self.order = StreamOrder([Member(self.part(open_shards))], min(window, self.near_samples() or window))
        return self

    def part(self, open_shards: int) -> Sharded:
        """The rows as a member of a stream."""
        return Sharded([each.samples for each in self._counted], [each.chunk for each in self._counted], open_shards)

    def near_samples(self) -> int | None:
        """Of how many samples the row groups fit into memory; None where no row groups are read whole."""
        decoded = sum(each.decoded for each in self._counted)
        return None if not decoded else max(1, int(DECODED * len(self) / decoded))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Record:
        """Raises `IncompleteError` for a sample that lacks its picture or text, `DataError` for a lost shard."""
        number, place = self._find(index)
        shard, kind = self._shards[number], self._store.reading.kind
        table = self._store.index(shard)
        if place >= (found := table.pictures if kind == "images" else table.samples):
            what = f"{shard.name} has {found} samples, not {self._counted[number].samples} as its counts say"
            raise IncompleteError(what, "not in its shard", {"id": f"{shard.stem}/{place}", "image": b"", "text": ""})
        entry = table.of_picture(place) if kind == "images" else table.entry(place)
        return self._record(shard, entry, kind)

    def near(self, index: int) -> range:
        """Indices of records that are cheap to read beside this one: those of its shard."""
        number, place = self._find(index)
        return range(index - place, int(self._ends[number]))

    def column(self, name: str) -> Sequence[Any]:
        if name == "text" and self._store.reading.kind != "images":
            return ShardTexts(self._shards, self._ends, self._store)
        return FieldColumn(self, name)

    def _find(self, index: int) -> tuple[int, int]:
        """Number of the shard of a record, and the record's number in it."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        return number, int(index) - (int(self._ends[number - 1]) if number else 0)

    def _record(self, shard: ShardFile, entry: Entry, kind: str) -> Record:
        prepared = self._store.reading.prepared
        name = entry.key if prepared else f"{shard.stem}/{entry.key}"
        record: Record = {"id": f"{name}#{entry.position}" if entry.position and kind != "images" else name}
        lacking = ""
        if kind != "text":
            record["image"] = self._image(shard, entry)
            lacking = "" if record["image"] else "picture"
        if kind != "images":
            record["text"] = entry.text or ""
            lacking = lacking or ("" if record["text"] else "caption" if kind == "pairs" else "text")
        if kind == "pairs":
            record["picture"] = entry.picture or f"{shard.name}#{entry.key}"
        if lacking:
            raise IncompleteError(f"{shard.name}: {entry.key} has no {lacking}", f"no {lacking}", record)
        return record

    def _image(self, shard: ShardFile, entry: Entry) -> str | bytes:
        """Encoded bytes or a path; empty where there is none."""
        prepared = self._store.reading.prepared
        if entry.path:
            folder = Path(prepared) if prepared else Path(shard.name).parent
            return str(folder / entry.path)
        if entry.at < 0:
            return b""
        if is_tar(shard.name) or prepared:
            return self._store.read(shard, entry.at, entry.length)
        return _bytes_of(self._store.in_group(shard, self._image_column(shard), entry.at, entry.length), shard)

    def _image_column(self, shard: ShardFile) -> str:
        if not hasattr(self, "_column"):  # the same in all shards, which are of one make
            with open_parquet(self._store.local(shard), shard.name) as file:
                self._column = self._store.columns(shard, file).image
        return self._column


class ShardTexts(StreamedTexts):
    """The texts of all samples: read in order it costs no more than the texts themselves."""

    def __init__(self, shards: Sequence[ShardFile], ends: np.ndarray, store: ShardStore) -> None:
        self._shards, self._ends, self._store = shards, ends, store

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            return list(islice(self._from(start), 0, max(0, stop - start), step)) if step > 0 else list(self)[index]
        if not -len(self) <= index < len(self):
            raise IndexError(f"text {index} of {len(self)}")
        return next(self._from(index % len(self)))

    def __iter__(self) -> Iterator[str]:
        return self._from(0)

    def _from(self, index: int) -> Iterator[str]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        for shard in range(number, len(self._shards)):
            begin = int(self._ends[shard - 1]) if shard else 0
            count, skipped = int(self._ends[shard]) - begin, max(0, index - begin)
            found = chain(self._store.index(self._shards[shard]).texts(skipped), iter(lambda: "", None))
            yield from islice(found, count - skipped)


class _Handle:
    """An open shard. The file is closed with the object."""

    def __init__(self, path: Path, shard: ShardFile) -> None:
        self._file = os.open(path, os.O_RDONLY)
        self._shard = shard
        self.check()

    def check(self) -> None:
        """Raise `DataError` where the file is not what it was when it was listed; a copy is ours."""
        facts = os.fstat(self._file)
        if not self._shard.remote and (facts.st_size, str(facts.st_mtime_ns)) != self._shard[1:]:
            raise DataError(f"{self._shard.name} was changed while it was in use; restore it, or start the run anew")

    def read(self, at: int, length: int) -> bytes:
        try:
            self.check()
            return os.pread(self._file, length, at)
        except OSError as error:
            raise DataError(f"{self._shard.name} cannot be read: {error.strerror or error}") from error

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)


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


def _bytes_of(value: Any, shard: ShardFile) -> str | bytes:
    """What an image column holds: bytes, or {bytes, path} as `datasets` writes them."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        return str(Path(shard.name).parent / value)
    return value or b""


def _hash(shard: ShardFile) -> str:
    return hashlib.sha256(json.dumps(list(shard)).encode()).hexdigest()
