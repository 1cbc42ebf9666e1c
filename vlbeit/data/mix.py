"""Several sets of records as one stream, each with its weight."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain
from typing import Any, NamedTuple

from vlbeit.data.order import Member, Scattered, StreamOrder
from vlbeit.data.records import FieldColumn, IncompleteError, StreamedTexts
from vlbeit.data.shards import ShardRecords
from vlbeit.errors import UsageError
from vlbeit.types import Record, Records

_WEIGHT = re.compile(r"(.*)\*(-?(?:\d+(?:\.\d+)?|\.\d+))")
_PIECE = 1000  # values of a column that are read at a time


class Entry(NamedTuple):
    """One entry of `data.mix`."""

    what: str  # a name, a path, an address, or SOURCE:ROOT
    weight: float  # passes an epoch

    @property
    def name(self) -> str:
        """A short name, for the ids of its samples: the last part of a path that is no pattern."""
        parts = re.split(r"[/:]", self.what.rstrip("/"))
        return next((part for part in reversed(parts) if part and not re.search(r"[*?\[{]", part)), self.what)


def parsed(entry: str) -> Entry:
    """`sbu*2` -> sbu, 2.0. Raises `UsageError` for one that names nothing or is never seen."""
    match = _WEIGHT.fullmatch(entry.strip())
    found = Entry(match[1], float(match[2])) if match else Entry(entry.strip(), 1.0)
    if not found.what or found.weight <= 0:
        raise UsageError(f"data.mix: {entry!r} must name a set, with a weight above 0 where there is one: [coco,sbu*2]")
    return found


class Part(NamedTuple):
    """The records of one member."""

    name: str
    records: Records
    weight: float = 1.0


class MixedRecords:
    """Records of several members one behind the other; the ids begin with the member's name.

    `order` is that of training: each member as often as its weight says.
    """

    def __init__(self, parts: Sequence[Part], open_shards: int, window: int) -> None:
        """`open_shards`: of each member; `window`: samples that are permuted together, at most."""
        self._parts = parts
        self._ends = list(accumulate(len(part.records) for part in parts))
        self._prefixes = [f"{part.name}:" for part in parts]
        members = [Member(_rows(part.records, open_shards), part.weight) for part in parts]
        samples = sum(part.weight * len(part.records) for part in parts)
        for part in parts:  # the row groups of a member's share of a window must fit into memory
            near = part.records.near_samples() if isinstance(part.records, ShardRecords) else None
            if near is not None:
                window = min(window, max(1, int(near * samples / (part.weight * len(part.records)))))
        self.order = StreamOrder(members, window)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record:
        part, place = self._find(index)
        try:
            record = part.records[place]
        except IncompleteError as error:
            known = {**error.record, "id": f"{part.name}:{error.record['id']}"}
            raise IncompleteError(str(error), error.reason, known) from error
        return {**record, "id": f"{part.name}:{record['id']}"}

    @property
    def identity(self) -> str | None:
        """What differs where the records do; None where a member does not tell."""
        known = [getattr(part.records, "identity", None) for part in self._parts]
        return None if None in known else " ".join(map(str, known))

    def near(self, index: int) -> range:
        """Indices of records that are cheap to read beside this one, all of the same member."""
        part, place = self._find(index)
        first = int(index) - place
        near = getattr(part.records, "near", None)
        own = near(place) if near is not None else range(len(part.records))
        return range(first + own.start, first + own.stop)

    def column(self, name: str) -> Sequence[Any]:
        if name == "text":
            return MixedTexts([part.records.column(name) for part in self._parts])
        if name == "image":
            return FieldColumn(self, name)
        return MixedColumn([part.records.column(name) for part in self._parts], self._prefixes if name == "id" else [])

    def _find(self, index: int) -> tuple[Part, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        number = bisect_right(self._ends, index)
        return self._parts[number], int(index) - (self._ends[number - 1] if number else 0)


class MixedColumn(Sequence[Any]):
    """A field of several members, one behind the other; texts where `prefixes` has what each begins with."""

    def __init__(self, columns: Sequence[Sequence[Any]], prefixes: Sequence[str] = ()) -> None:
        self._columns, self._prefixes = columns, prefixes
        self._ends = list(accumulate(map(len, columns)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            return self._slice(start, stop) if step == 1 else [self[place] for place in range(start, stop, step)]
        if not -len(self) <= index < len(self):
            raise IndexError(f"value {index} of {len(self)}")
        index %= len(self)
        return self._slice(index, index + 1)[0]

    def __iter__(self) -> Iterator[Any]:
        return _first(self, len(self))

    def _slice(self, start: int, stop: int) -> list[Any]:
        found: list[Any] = []
        for number, (column, first) in enumerate(zip(self._columns, [0, *self._ends], strict=False)):
            if start < first + len(column) and first < stop:
                values = column[max(0, start - first) : stop - first]
                prefix = self._prefixes[number] if self._prefixes else ""
                found += [prefix + value for value in values] if prefix else values
        return found


class MixedTexts(MixedColumn, StreamedTexts):
    """The texts of several members, one behind the other."""

    def sample(self, most: int) -> Iterator[str]:
        """Of every member its share."""
        return chain.from_iterable(
            _first(column, min(len(column), -(-most * len(column) // len(self)))) for column in self._columns
        )


def _first(column: Sequence[Any], count: int) -> Iterator[Any]:
    """The first values, read in pieces: a table is slow to read one by one."""
    pieces = (column[start : min(count, start + _PIECE)] for start in range(0, count, _PIECE))
    return chain.from_iterable(pieces)


def _rows(records: Records, open_shards: int) -> Any:
    """The rows of a member, in shards where it has any; those of a table can be read wherever they lie."""
    return records.part(open_shards) if isinstance(records, ShardRecords) else Scattered(len(records))
