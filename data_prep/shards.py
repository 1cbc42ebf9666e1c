"""Writing prepared folders: Parquet shards, a journal by which a stopped preparation goes on, prepared.json at the end.

A shard has its name from the moment that it is whole; its line of the journal says how far the source was read, so
that the same command goes on behind it. `prepared.json` and `bad.jsonl` replace the journal at the end;
vlbeit.data.prepared reads them.

Formats: `parquet` keeps the encoded pictures inside the shards, plainly, with their lengths in a column of their own,
so that a reader finds each by its first byte; `folder` writes them as files and `index` leaves them
where they are: the shards hold paths, relative to the folder or absolute.

Of the kind `pairs` a row is a picture with the list of its texts, and each text becomes a record of its own when it is
read: the picture is stored once.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from vlbeit.data.names import Names
from vlbeit.data.records import KINDS, PREPARED
from vlbeit.errors import DataError
from vlbeit.files import write_json, write_text
from vlbeit.types import Record

from .journal import JOURNAL, begin, note

VERSION = 1  # of this layout
BAD = "bad.jsonl"
_ROWS = 20_000  # of a shard at most
_GROUP_ROWS, _GROUP_BYTES = 64, 32 * 2**20  # of a row group at most, which is kept in memory and becomes one page
_LOOKAHEAD = 64  # items examined at a time,
_LOOKAHEAD_BYTES = 2**28  # or fewer: no more are read when these many bytes are in memory
_FILES = ("image", "mask", "image_0", "image_1")
_SHARING = ("vqa", "nlvr2")  # kinds of which several records have one picture: it is written, and its bytes count, once
_TYPES = {
    "id": pa.string(), "label": pa.int64(), "image_id": pa.int64(), "boxes": pa.list_(pa.list_(pa.float64())),
    "labels": pa.list_(pa.int64()), "areas": pa.list_(pa.float64()), "crowd": pa.list_(pa.bool_()),
    "outlines": pa.list_(pa.string()), "question": pa.string(), "question_id": pa.int64(),
    "question_type": pa.string(), "answer_type": pa.string(), "answers": pa.list_(pa.string()),
    "multiple_choice_answer": pa.string(), "text": pa.string(), "picture": pa.string(), "title": pa.string(),
    "sentence": pa.string(),
}  # fmt: skip
_LISTS = {"pairs": "text"}  # kind -> the field of which a row has a list, and each value makes a record
Position = tuple[int, ...]


class Fault(NamedTuple):
    """Something wrong with one record: what, and whether the record is left out because of it."""

    what: str
    left_out: bool


class Item(NamedTuple):
    """One record of a source, and its place in the order in which the source is read."""

    position: Position
    record: Record  # `image` and `mask`: encoded bytes, or the Path of a file
    targets: Mapping[str, str] = {}  # of image and mask: file that --format folder writes, relative to the folder
    faults: tuple[Fault, ...] = ()  # known before anything is decoded
    origin: str = ""  # archive and name in it, where the id is made from them


class Finding(NamedTuple):
    """What an examination found: width and height in pixels, faults, what to count by class beside `label`."""

    size: tuple[int, int] | None = None
    faults: tuple[Fault, ...] = ()
    classes: Sequence[int] = ()


class Layout(NamedTuple):
    """What a folder is to become. `arguments`: whatever a restarted preparation must find unchanged."""

    kind: str
    format: str  # index | folder | parquet
    arguments: Mapping[str, Any]
    more: tuple[str, ...] = ()  # columns beside the fields of the kind


class Folder:
    """A prepared folder in the making."""

    def __init__(self, out: Path, layout: Layout, *, shard_bytes: int) -> None:
        self.out, self.layout, self.shard_bytes = out, layout, shard_bytes
        self.lines, self.lost = begin(out, {"kind": layout.kind, "format": layout.format, **layout.arguments})

    @property
    def done(self) -> bool:
        """Whether prepared.json is there, made with the same arguments."""
        return (self.out / PREPARED).is_file()

    def finished(self, split: str) -> bool:
        """Whether all of a split has been written."""
        return any(line["split"] == split and "end" in line for line in self.lines)

    def position(self, split: str) -> Position:
        """Place in the source's order of the last item that a whole shard covers; () before the first."""
        places = [line["position"] for line in self.lines if line["split"] == split and "file" in line]
        return tuple(places[-1]) if places else ()

    def bytes(self) -> int:
        """Bytes of pictures that whole shards cover."""
        return sum(line["bytes"] for line in self.lines if "file" in line)

    def records(self, split: str) -> int:
        """Records in the whole shards of a split."""
        return sum(_records(line) for line in self.lines if line["split"] == split and "file" in line)

    def write(
        self, split: str, items: Iterable[Item], examine: Callable[[Item], Finding], threads: int
    ) -> Iterator[int]:
        """Write the rest of a split, from items whose position lies behind `position(split)`.

        Gives the bytes of every item that is taken in, for progress. Faulty ones are named in bad.jsonl, not written
        where they are left out; so are those whose id a record of the split has already. Items are examined `threads`
        at a time.
        """
        names = self._names(split)
        number = sum(line["split"] == split and "file" in line for line in self.lines)
        shard: _Shard | None = None
        stored: set[str] = set()
        try:
            for item, finding in _examined(items, examine, threads):
                shard = shard or _Shard(self.out, self.layout, split, number, names, stored)
                yield shard.add(item, finding)
                if shard.bytes >= self.shard_bytes or shard.rows >= _ROWS:
                    self._note(shard.finish())
                    shard, number = None, number + 1
            if shard is not None:
                self._note(shard.finish())
            self._note({"split": split, "end": True})
        finally:
            if shard is not None:
                shard.abandon()

    def finish(self, classes: Sequence[str]) -> dict[str, Any]:
        """Write bad.jsonl and prepared.json, remove the journal; returns what prepared.json holds.

        Raises `DataError` where a split has pictures but not one that is sound: then nothing is finished.
        """
        bad = [{"split": line["split"], **entry} for line in self.lines for entry in line.get("bad", [])]
        splits = {line["split"]: self._split(line["split"], classes) for line in self.lines if "end" in line}
        for name, split in splits.items():
            if not split["records"]:
                first = next((f": {entry['id']}: {entry['what']}" for entry in bad if entry["split"] == name), "")
                raise DataError(f"{self.out}: the split {name!r} has no record that can be used{first}")
        facts = {
            "version": VERSION, "kind": self.layout.kind, "format": self.layout.format,
            "classes": list(classes), "splits": splits, "bad": dict(Counter(_sort(entry) for entry in bad)),
            "arguments": dict(self.layout.arguments),
        }  # fmt: skip
        write_text(self.out / BAD, "".join(json.dumps(entry) + "\n" for entry in bad))
        write_json(self.out / PREPARED, facts, indent=1)
        (self.out / JOURNAL).unlink()
        return facts

    def _split(self, split: str, classes: Sequence[str]) -> dict[str, Any]:
        """Summary of one split: records, bytes, sizes, records of each class, bad ones, shards."""
        lines = [line for line in self.lines if line["split"] == split and "file" in line]
        counts: Counter[int] = Counter()
        for line in lines:
            counts.update({int(label): count for label, count in line["classes"].items()})
        sizes = [size for line in lines for size in line["sizes"]]
        area = sorted(sizes, key=lambda size: size[0] * size[1])
        return {
            "records": sum(map(_records, lines)),
            "bytes": sum(line["bytes"] for line in lines),
            "smallest": area[0] if area else None,
            "largest": area[-1] if area else None,
            "left_out": sum(line["left_out"] for line in lines),
            "noted": sum(line["noted"] for line in lines),
            "classes": {name: counts[label] for label, name in enumerate(classes)} if counts else {},
            "shards": [{name: line[name] for name in ("file", "rows", "size")} for line in lines],
        }

    def _note(self, line: dict[str, Any]) -> None:
        note(self.out, line)
        self.lines.append(line)

    def _names(self, split: str) -> Names:
        """The ids in the whole shards of a split."""
        names = Names()
        for line in self.lines:
            if line["split"] == split and "file" in line:
                for name in pq.read_table(self.out / line["file"], columns=["id"])["id"].to_pylist():
                    names.add(name)
        return names


def _records(line: Mapping[str, Any]) -> int:
    """Records of a shard, by its line of the journal."""
    return line.get("texts", line["rows"])


def _sort(entry: Mapping[str, Any]) -> str:
    """The fault without its details: `cannot be read`, `CMYK`."""
    return entry["what"].partition(":")[0]


def _examined(
    items: Iterable[Item], examine: Callable[[Item], Finding], threads: int
) -> Iterator[tuple[Item, Finding]]:
    """The items in their order, each with what was found; Pillow decodes outside Python's lock."""
    iterator = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        while chunk := _chunk(iterator):
            yield from zip(chunk, pool.map(examine, chunk), strict=True)
            chunk.clear()  # before the next ones are read


def _chunk(items: Iterator[Item]) -> list[Item]:
    """The next items to examine: few where they are large, at least one while there are any."""
    chunk: list[Item] = []
    held = 0
    for item in items:
        chunk.append(item)
        held += sum(len(value) for value in map(item.record.get, _FILES) if isinstance(value, bytes))
        if len(chunk) >= _LOOKAHEAD or held >= _LOOKAHEAD_BYTES:
            break
    return chunk


class _Shard:
    """One shard being written, under a temporary name until it is whole."""

    def __init__(self, out: Path, layout: Layout, split: str, number: int, names: Names, stored: set[str]) -> None:
        """`stored`: targets of the pictures that this and earlier shards have."""
        self.rows = self.bytes = self._texts = self._left_out = self._noted = 0
        self._out, self._layout, self._split, self._names, self._stored = out, layout, split, names, stored
        self._path = out / f"{split}-{number:05d}.parquet"
        self._temporary = out / f".tmp-{self._path.name}"
        self._schema = schema(layout)
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[Record] = []  # the rows of the next row group
        self._waiting_bytes = 0
        self._position: Position = ()
        self._sizes: list[tuple[int, int]] = []
        self._classes: Counter[int] = Counter()
        self._bad: list[dict[str, Any]] = []

    def add(self, item: Item, finding: Finding) -> int:
        """Take in one item; returns its bytes."""
        self._position = item.position
        faults = (*item.faults, *finding.faults)
        left_out = any(fault.left_out for fault in faults)
        if not left_out and not self._names.add(item.record["id"]):
            what = f"name is taken: by another picture of {self._split}" + (f"; {item.origin}" if item.origin else "")
            faults, left_out = (Fault(what, True), *faults), True
        self._left_out += left_out
        self._noted += bool(faults) and not left_out
        self._bad += [{"id": item.record["id"], "what": what, "left_out": out} for what, out in faults]
        new = [name for name in _FILES if name in item.record and item.targets.get(name) not in self._stored]
        size = sum(_length(item.record[name]) for name in new) + _text_bytes(item.record, self._layout)
        self.bytes += size
        if not left_out:
            files = {name: self._store(item, name) for name in _FILES if name in item.record}
            lengths = {f"{name}_bytes": len(data) for name, data in files.items() if isinstance(data, bytes)}
            if self._layout.kind in _SHARING:
                self._stored.update(item.targets[name] for name in new)
            self._waiting.append(item.record | files | lengths)
            self._waiting_bytes += size
            self._classes.update([item.record["label"]] if "label" in item.record else finding.classes)
            self._sizes += [finding.size] if finding.size else []
            self.rows += 1
            self._texts += len(item.record[_LISTS[self._layout.kind]]) if self._layout.kind in _LISTS else 0
        if len(self._waiting) == _GROUP_ROWS or self._waiting_bytes >= _GROUP_BYTES:
            self._write()
        return size

    def finish(self) -> dict[str, Any]:
        """Make the shard whole; returns its line of the journal."""
        self._write()
        assert self._writer is not None
        self._writer.close()
        if self._layout.format == "folder":
            os.sync()  # one for all pictures of this shard: after it they are on the disk as well
        with open(self._temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(self._temporary, self._path)
        area = sorted(self._sizes, key=lambda size: size[0] * size[1])
        return {
            "split": self._split, "file": self._path.name, "rows": self.rows, "size": self._path.stat().st_size,
            "bytes": self.bytes, "position": self._position, "sizes": [*area[:1], *area[-1:]],
            "classes": dict(self._classes), "left_out": self._left_out, "noted": self._noted, "bad": self._bad,
            **({"texts": self._texts} if self._layout.kind in _LISTS else {}),
        }  # fmt: skip

    def abandon(self) -> None:
        """Remove what is not whole."""
        if self._writer is not None:
            with contextlib.suppress(OSError):  # a full disk, which is why it is abandoned
                self._writer.close()
        self._temporary.unlink(missing_ok=True)

    def _write(self) -> None:
        if self._writer is None:  # pictures are compressed already, and no two are alike
            self._writer = pq.ParquetWriter(
                self._temporary, self._schema, compression="zstd" if self._layout.kind == "text" else "none",
                use_dictionary=False, write_statistics=False, data_page_size=2**30,
            )  # fmt: skip
        if self._waiting:
            self._writer.write_table(pa.Table.from_pylist(self._waiting, schema=self._schema))
            self._waiting, self._waiting_bytes = [], 0

    def _store(self, item: Item, name: str) -> str | bytes:
        """The value of `image` or `mask` in the shard."""
        value = item.record[name]
        if self._layout.format == "index":
            return str(value)
        data = value.read_bytes() if isinstance(value, Path) else value
        if self._layout.format == "parquet":
            return data
        if item.targets[name] in self._stored:
            return item.targets[name]
        path = self._out / item.targets[name]
        if Path(item.targets[name]).is_absolute() or ".." in Path(item.targets[name]).parts:
            raise DataError(f"{item.record['id']}: its file {item.targets[name]!r} would lie outside of {self._out}")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".tmp-{path.name}")
        temporary.write_bytes(data)
        os.replace(temporary, path)
        return item.targets[name]


def schema(layout: Layout) -> pa.Schema:
    """Columns of a shard: those of the kind, and the lengths of what lies inside. None is ever null."""
    inside = layout.format == "parquet"
    files = pa.binary() if inside else pa.string()
    types = _TYPES | {name: pa.list_(pa.string()) for kind, name in _LISTS.items() if kind == layout.kind}
    fields = [(name, types.get(name, files)) for name in (*KINDS[layout.kind], *layout.more)]
    lengths = [(f"{name}_bytes", pa.int64()) for name in _FILES if inside and name in KINDS[layout.kind]]
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in (*fields, *lengths)])


def _text_bytes(record: Record, layout: Layout) -> int:
    """Of a record that is text alone; beside pictures texts do not count."""
    return len(record["text"].encode()) if layout.kind == "text" and "text" in record else 0


def _length(value: bytes | Path) -> int:
    return value.stat().st_size if isinstance(value, Path) else len(value)
