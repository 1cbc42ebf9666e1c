"""The order of a stream of samples: position -> sample, a pure function that holds nothing of the size of the data.

A stream has one member or several. Of each it takes in every epoch so many samples as its weight says, spread evenly
over the epoch; a member's own passes over its rows follow each other without a gap, whatever the weight: with 0.5 two
epochs see every row once. Where weight times rows is no whole number, epochs differ by a sample: 4 rows at 0.1 give
one sample in two epochs of five, so that no member is ever left out. An epoch is cut into windows, the samples of a
window are permuted. So position p hangs on (seed, p) alone, and any number of processes, workers and micro-batches
gives the same stream.

Within one pass the rows of a member are in shards, or scattered:

- `Sharded`: shards are permuted and taken a few at a time; the chunks of those few are permuted. Reading stays near.
- `Scattered`: every row stands alone, for records that cost the same wherever they lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple, Protocol

import numpy as np

from vlbeit.data.randomness import stream
from vlbeit.data.recent import Recent

_SHARDS, _CHUNKS, _MEMBER, _WINDOW = 10, 11, 12, 13  # what a random stream is for; the loader has 0 to 3
_ROUNDS = 6  # of the cipher that scatters
CHUNK = 100  # rows that stay together where nothing else is known

Key = tuple[int, ...]
Chunks = int | Sequence[int]  # rows of a chunk, the last one may have fewer; or where each chunk ends


class Part(Protocol):
    """The rows of one member in an order of their own for every key."""

    def __len__(self) -> int: ...

    def rows(self, key: Key, start: int, stop: int) -> np.ndarray:
        """int64 [stop - start]: what stands at these places of the permutation that belongs to the key."""
        ...


class Member(NamedTuple):
    """One member of a stream."""

    part: Part
    weight: float = 1.0  # passes over its rows in an epoch


class Order(Protocol):
    """What records may bring along as `order`: then the loader asks it, instead of permuting rows itself."""

    def __len__(self) -> int:
        """Samples of an epoch."""
        ...

    def place(self, seed: int, position: int) -> tuple[int, int]:
        """Which pass over which row of the records stands at this position of the endless stream."""
        ...


def order_of(records: object) -> Order | None:
    """The order that records bring along; None where they are to be permuted as a whole."""
    return getattr(records, "order", None)


def epoch_length(records: Sequence[object] | object) -> int:
    """Samples of an epoch: for a mix with weights more or fewer than it has rows."""
    order = order_of(records)
    return len(order if order is not None else records)  # type: ignore[arg-type]


class StreamOrder:
    """The members joined to one stream. A row's number counts the rows of the members one behind the other."""

    def __init__(self, members: Sequence[Member], window: int) -> None:
        """`window`: samples that are permuted together, about."""
        self._parts = [member.part for member in members]
        self._first = np.cumsum([0, *map(len, self._parts)]).tolist()
        # samples an epoch, exactly: as the weight is written
        self._rates = [Fraction(str(member.weight)) * len(member.part) for member in members]
        self._rate = sum(self._rates, Fraction())
        self._windows = max(1, -(-len(self) // max(1, window)))
        self._made: Recent[tuple[np.ndarray, np.ndarray]] = Recent(4)

    def __len__(self) -> int:
        """Samples of an epoch; the mean where epochs differ by a few."""
        return max(1, round(self._rate))

    def place(self, seed: int, position: int) -> tuple[int, int]:
        """Which pass over which row stands at this position."""
        epoch = int(position / self._rate)  # or a later one: before it there are that many samples or fewer
        while (end := sum(self._before(epoch + 1))) <= position:
            epoch += 1
        starts = self._before(epoch)
        begin = sum(starts)
        ends = self._before(epoch + 1)
        shares = [stop - start for start, stop in zip(starts, ends, strict=True)]
        item, count = position - begin, end - begin
        window = item * self._windows // count
        while self._begin(shares, window) > item:
            window -= 1
        while self._begin(shares, window + 1) <= item:
            window += 1
        passes, rows = self._made.get((seed, epoch, window), lambda: self._window(seed, epoch, window))
        place = item - self._begin(shares, window)
        return int(passes[place]), int(rows[place])

    def _before(self, epoch: int) -> list[int]:
        """Samples of every member in all epochs before this one."""
        return [rate.numerator * epoch // rate.denominator for rate in self._rates]

    def _begin(self, shares: Sequence[int], window: int) -> int:
        """First item of a window: of every member it has the same share, to the nearest whole sample below."""
        return sum(share * window // self._windows for share in shares)

    def _window(self, seed: int, epoch: int, window: int) -> tuple[np.ndarray, np.ndarray]:
        """The passes and rows of one window."""
        passes, rows = [], []
        spans = zip(self._before(epoch), self._before(epoch + 1), strict=True)
        for number, (part, (first, last)) in enumerate(zip(self._parts, spans, strict=True)):
            share = last - first
            start = first + share * window // self._windows
            stop = first + share * (window + 1) // self._windows
            while start < stop:
                turn, begin = divmod(start, len(part))
                count = min(stop - start, len(part) - begin)
                found = part.rows((seed, _MEMBER, number, turn), begin, begin + count)
                rows.append(found + self._first[number])
                passes.append(np.full(count, turn))
                start += count
        order = stream(seed, _WINDOW, epoch, window).permutation(sum(map(len, rows)))
        return np.concatenate(passes)[order], np.concatenate(rows)[order]


class Sharded:
    """Rows in shards, taken a few shards at a time, in chunks of rows that follow each other."""

    def __init__(self, sizes: Sequence[int], chunks: int | Sequence[Chunks] = CHUNK, open_shards: int = 16) -> None:
        """`sizes`: rows of every shard; `chunks`: how each of them is cut, or all."""
        self._sizes = np.asarray(sizes, dtype=np.int64)
        self._chunks = [chunks] * len(sizes) if isinstance(chunks, int) else chunks
        self._first = np.cumsum(self._sizes) - self._sizes
        self._open = open_shards
        self._passes: Recent[tuple[np.ndarray, np.ndarray]] = Recent(2)
        self._groups: Recent[tuple[np.ndarray, np.ndarray, np.ndarray]] = Recent(2)

    def __len__(self) -> int:
        return int(self._sizes.sum())

    def rows(self, key: Key, start: int, stop: int) -> np.ndarray:
        """int64 [stop - start]."""
        shards, ends = self._passes.get(key, lambda: self._pass(key))
        pieces = [np.zeros(0, dtype=np.int64)]
        while start < stop:
            group = int(np.searchsorted(ends, start, side="right"))
            begin = int(ends[group - 1]) if group else 0
            until = min(stop, int(ends[group]))
            pieces.append(self._in_group(key, group, shards, start - begin, until - begin))
            start = until
        return np.concatenate(pieces)

    def _pass(self, key: Key) -> tuple[np.ndarray, np.ndarray]:
        """The shards of a pass in their order, and where each group of them ends."""
        shards = stream(*key, _SHARDS).permutation(len(self._sizes))
        ends = np.cumsum(self._sizes[shards])
        lasts = [*range(self._open, len(ends), self._open), len(ends)]
        return shards, ends[np.array(lasts) - 1]

    def _in_group(self, key: Key, group: int, shards: np.ndarray, start: int, stop: int) -> np.ndarray:
        own = shards[group * self._open : (group + 1) * self._open]
        begins, lengths, ends = self._groups.get((key, group), lambda: self._group(key, group, own))
        first, last = (int(np.searchsorted(ends, place, side="right")) for place in (start, stop - 1))
        some = slice(first, last + 1)
        offsets = begins[some] - (ends[some] - lengths[some])  # row minus place, the same in all of a chunk
        skipped = start - int(ends[first] - lengths[first])
        return np.repeat(offsets, lengths[some])[skipped : skipped + stop - start] + np.arange(start, stop)

    def _group(self, key: Key, group: int, shards: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """First row, length and end of every chunk of a group of shards, permuted."""
        parts = [_begins(self._chunks[shard], int(self._sizes[shard])) for shard in shards]
        lengths = [np.diff(part, append=self._sizes[shard]) for shard, part in zip(shards, parts, strict=True)]
        begins = np.concatenate([part + self._first[n] for n, part in zip(shards, parts, strict=True)])
        order = stream(*key, _CHUNKS, group).permutation(len(begins))
        sizes = np.concatenate(lengths)[order]
        return begins[order], sizes, np.cumsum(sizes)


def _begins(chunks: Chunks, size: int) -> np.ndarray:
    """First row of every chunk of a shard."""
    if isinstance(chunks, int):
        return np.arange(0, size, max(1, chunks))
    starts = np.unique(np.array([0, *chunks], dtype=np.int64))  # of groups without rows none
    return starts[starts < size]


class Scattered:
    """Rows permuted one by one, and no list of them: a cipher on their numbers, whose key is that of the pass.

    A Feistel network permutes the numbers below a power of four; one that falls outside of the rows is enciphered
    again until it does not (cycle walking: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._bits = np.uint64(max(1, -(-max(1, count - 1).bit_length() // 2)))  # of half a number

    def __len__(self) -> int:
        return self._count

    def rows(self, key: Key, start: int, stop: int) -> np.ndarray:
        """int64 [stop - start]."""
        keys = np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)
        numbers = self._enciphered(np.arange(start, stop, dtype=np.uint64), keys)
        while (outside := numbers >= np.uint64(self._count)).any():
            numbers[outside] = self._enciphered(numbers[outside], keys)
        return numbers.astype(np.int64)

    def _enciphered(self, numbers: np.ndarray, keys: np.ndarray) -> np.ndarray:
        mask = np.uint64((1 << int(self._bits)) - 1)
        left, right = numbers >> self._bits, numbers & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right + key) & mask)
        return (left << self._bits) | right


def _mixed(values: np.ndarray) -> np.ndarray:
    """64 bits stirred: the last steps of SplitMix64 (Steele, Lea and Flood, 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
