"""Records in shards: WebDataset tars and Parquet files, read by offset, in any number.

What stays in memory are a few numbers per shard, and what the store of a process holds (`vlbeit.data.shard_store`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from itertools import chain, islice, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vlbeit.data import shard_store
from vlbeit.data.order import CHUNK, Chunks, Member, Sharded, StreamOrder
from vlbeit.data.records import FieldColumn, IncompleteError, StreamedTexts
from vlbeit.data.shard_files import ShardFile
from vlbeit.data.shard_index import FORMAT, Entry
from vlbeit.data.shard_rows import is_tar
from vlbeit.data.shard_store import ShardStore
from vlbeit.errors import DataError
from vlbeit.types import Record


class Counted(NamedTuple):
    """What is known of a shard before it is read."""

    samples: int
    chunks: Chunks = CHUNK  # samples that are best read together
    decoded: int = 0  # bytes of its pictures, where they are in row groups that can only be read whole


class ShardRecords:
    """The records of one kind in shards, with an order of their own."""

    def __init__(self, shards: Sequence[ShardFile], counted: Sequence[Counted], store: ShardStore) -> None:
        self._shards, self._counted, self._store = shards, counted, store
        self._ends = np.cumsum([each.samples for each in counted], dtype=np.int64)
        self._long = _long_names(shards)
        self.order: StreamOrder | None = None  # as `ordered` makes it
        self._together = 16, 10_000  # shards and samples

    def ordered(self, open_shards: int, window: int) -> ShardRecords:
        """The same records, with an order: so many shards at a time, about so many samples permuted together."""
        self._together = open_shards, window
        self.order = StreamOrder([Member(self.part(open_shards))], min(window, self.near_samples() or window))
        return self

    def first(self, count: int) -> ShardRecords:
        """The first records, in an order of the same kind."""
        last = int(np.searchsorted(self._ends, count))
        cut = self._counted[last]
        rest = count - (int(self._ends[last - 1]) if last else 0)
        counted = [*self._counted[:last], Counted(rest, cut.chunks, cut.decoded * rest // max(1, cut.samples))]
        return ShardRecords(self._shards[: last + 1], counted, self._store).ordered(*self._together)

    def part(self, open_shards: int) -> Sharded:
        """The rows as a member of a stream."""
        return Sharded([each.samples for each in self._counted], [each.chunks for each in self._counted], open_shards)

    def near_samples(self) -> int | None:
        """Of how many samples the row groups fit into memory; None where no row groups are read whole."""
        decoded = sum(each.decoded for each in self._counted)
        return None if not decoded else max(1, int(shard_store.DECODED * len(self) / decoded))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Record:
        """Raises `IncompleteError` for a sample that lacks its picture or text, `DataError` for a lost shard."""
        shard, entry, what = self._entry(index)
        record, kind = self._names(shard, entry), self._store.reading.kind
        lacking = ""
        if kind != "text":
            record["image"] = b"" if what else self._image(shard, entry)
            lacking = "" if record["image"] else "picture"
        if kind != "images":
            record["text"] = entry.text or ""
            lacking = lacking or ("" if record["text"] else "caption" if kind == "pairs" else "text")
        if what:
            raise IncompleteError(what, "not in its shard", record)
        if lacking:
            raise IncompleteError(f"{shard.name}: {entry.key} has no {lacking}", f"no {lacking}", record)
        return record

    @property
    def identity(self) -> str:
        """What differs where the records do: of the names, sizes and times of the shards."""
        reading = self._store.reading
        facts = [FORMAT, reading.kind, reading.prepared, [[*shard] for shard in self._shards], self._ends.tolist()]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def near(self, index: int) -> range:
        """Indices of records that are cheap to read beside this one: those of its shard."""
        number, place = self._find(index)
        return range(index - place, int(self._ends[number]))

    def column(self, name: str) -> Sequence[Any]:
        if name == "text" and self._store.reading.kind != "images":
            return ShardTexts(self._shards, self._ends, self._store)
        return NameColumn(self, name) if name in ("id", "picture") else FieldColumn(self, name)

    def _find(self, index: int) -> tuple[int, int]:
        """Number of the shard of a record, and the record's number in it."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        return number, int(index) - (int(self._ends[number - 1]) if number else 0)

    def _entry(self, index: int) -> tuple[ShardFile, Entry, str]:
        """The shard of a record, what its index says, and what is wrong where the shard ends before it."""
        number, place = self._find(index)
        shard, images = self._shards[number], self._store.reading.kind == "images"
        table = self._store.index(shard)
        if place >= (found := table.pictures if images else table.samples):
            what = f"{shard.name} has {found} samples, not {self._counted[number].samples} as its counts say"
            return shard, Entry(str(place), None, -1, -1, "", "", 0), what
        return shard, table.of_picture(place) if images else table.entry(place), ""

    def _names(self, shard: ShardFile, entry: Entry) -> Record:
        """The fields that are names: `id`, and of pairs `picture`."""
        kind, prepared = self._store.reading.kind, self._store.reading.prepared
        name = entry.key if prepared else f"{self._long.get(shard.name, shard.stem)}/{entry.key}"
        names: Record = {"id": f"{name}#{entry.position}" if entry.position and kind != "images" else name}
        if kind == "pairs":
            names["picture"] = entry.picture or self._path(shard, entry) or f"{shard.name}#{entry.key}"
        return names

    def _path(self, shard: ShardFile, entry: Entry) -> str:
        """Of a picture that is a file of its own; "" of others."""
        if entry.path and self._store.reading.prepared:
            return str(Path(self._store.reading.prepared) / entry.path)
        return entry.path and _beside(shard, entry.path)

    def _image(self, shard: ShardFile, entry: Entry) -> str | bytes:
        """Encoded bytes or a path; empty where there is none."""
        if path := self._path(shard, entry):
            return path
        if entry.at < 0:
            return b""
        if is_tar(shard.name) or self._store.reading.prepared:
            return self._store.read(shard, entry.at, entry.length)
        return _bytes_of(self._store.in_group(shard, entry.at, entry.length), shard)


class NameColumn(Sequence[str]):
    """A field that is a name, of all records: no picture is read, and a sample that lacks a part has one too."""

    def __init__(self, records: ShardRecords, name: str) -> None:
        self._records, self._name = records, name

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        shard, entry, _ = self._records._entry(index)
        return self._records._names(shard, entry)[self._name]


class ShardTexts(StreamedTexts):
    """The texts of all samples: read in order it costs no more than the texts themselves."""

    def __init__(self, shards: Sequence[ShardFile], ends: np.ndarray, store: ShardStore) -> None:
        self._shards, self._ends, self._store = shards, ends, store

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step < 0:
                return [self[place] for place in range(start, stop, step)]
            return list(islice(self._from(start), 0, max(0, stop - start), step))
        if not -len(self) <= index < len(self):
            raise IndexError(f"text {index} of {len(self)}")
        index %= len(self)
        number = int(np.searchsorted(self._ends, index, side="right"))
        table = self._store.index(self._shards[number])
        place = index - (int(self._ends[number - 1]) if number else 0)
        return (table.entry(place).text or "") if place < table.samples else ""

    def __iter__(self) -> Iterator[str]:
        return self._from(0)

    def _from(self, index: int) -> Iterator[str]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        for shard in range(number, len(self._shards)):
            begin = int(self._ends[shard - 1]) if shard else 0
            count, skipped = int(self._ends[shard]) - begin, max(0, index - begin)
            found = chain(self._store.index(self._shards[shard]).texts(skipped), iter(lambda: "", None))
            yield from islice(found, count - skipped)


def _long_names(shards: Sequence[ShardFile]) -> dict[str, str]:
    """Where several shards have one stem, what tells them apart: the path below the folder that all lie in."""
    if len({shard.stem for shard in shards}) == len(shards):
        return {}
    parts = [shard.name.split("/") for shard in shards]
    shared = sum(1 for _ in takewhile(lambda same: len(set(same)) == 1, zip(*parts, strict=False)))
    return {"/".join(each): "/".join(each[shared:]).rpartition(".")[0] for each in parts}


def _bytes_of(value: Any, shard: ShardFile) -> str | bytes:
    """What an image column holds: bytes, or {bytes, path} as `datasets` writes them."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    return _beside(shard, value) if isinstance(value, str) else value or b""


def _beside(shard: ShardFile, path: str) -> str:
    """A picture by its path, relative to the folder of the shard."""
    if shard.remote and not os.path.isabs(path):
        raise DataError(
            f"{shard.name} names pictures by paths ({path}), which cannot be fetched from there: copy the folder to a "
            "disk, or write the pictures into the shards"
        )
    return str(Path(shard.name).parent / path)
