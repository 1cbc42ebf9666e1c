"""Loaders: which samples a step sees, and how they are read.

Everything about a sample hangs on (seed, epoch, index) alone, and which one stands where on the seed and the position:
an epoch is permuted here, or the records bring an order of their own (`vlbeit.data.order`). So any number of workers
gives the same data, any step can be the first one at no cost, and no random state is ever saved. Where pictures have
grids of their own, which ones share a micro-batch, and so the grid of one now and then, hangs on its size too.
"""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import chain
from multiprocessing.synchronize import Semaphore

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from vlbeit import dist
from vlbeit.data.layout import Grid, bucketed, evaluation_windows, in_turn
from vlbeit.data.order import order_of
from vlbeit.data.randomness import seeded, stream
from vlbeit.data.records import IncompleteError, SampleError
from vlbeit.data.stand_in import stand_in
from vlbeit.data.unusable import Bad, BadSamples
from vlbeit.errors import DataError, UsageError, UserError
from vlbeit.types import Batch, DataSpec, Layout, Record, Sample

_ORDER, _SAMPLE, _REPLACE, _BUCKETS = 0, 1, 2, 3  # what a random stream is for
_ATTEMPTS = 10  # replacements that are drawn near a sample, and as many anywhere
_GRACE = 2.0  # seconds that a worker gets to end by itself
_LOOK = 5.0  # seconds between two looks whether the main process is there

Place = tuple[int, int, Grid | None]  # epoch, index, and the patch grid of its batch where the layout has grids


class TrainLoader:
    """The endless stream of training samples, cut into optimizer steps and micro-batches.

    Position p of the stream is item p % n of the shuffled epoch p // n (n records), or what the order of the records
    says; step t sees the positions [t * G, (t + 1) * G) with G = `global_batch_size`, each process its part of them.
    A sample that cannot be used is replaced by another one, named in `batch["bad"]` and in the log.

    Where the layout has grids, the shuffled epoch is rearranged so that every micro-batch is of one grid: it takes that
    of its middle sample, to which a few samples at the border of two grids, and those of the micro-batch that two
    epochs share, are fitted. Still every sample is seen once an epoch.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        seed: int,
        global_batch_size: int,
        micro_batch_size: int,
        workers: int,
        max_bad_fraction: float,
        pin_memory: bool = False,
    ) -> None:
        """Raises `UsageError` where the batch sizes do not divide each other."""
        world = dist.world_size()
        if global_batch_size % (world * micro_batch_size):
            own = f"global_batch_size={global_batch_size} over {world} process{'es' * (world > 1)}"
            raise UsageError(f"{own} is not a multiple of micro_batch_size={micro_batch_size}; change one of them")
        self.spec, self.seed = spec, seed
        self.global_batch_size, self.micro_batch_size = global_batch_size, micro_batch_size
        self.accumulation = global_batch_size // (world * micro_batch_size)
        self._workers, self._pin_memory = workers, pin_memory
        self._bad = BadSamples(max_bad_fraction, len(spec.records))
        self._shuffled: tuple[int, np.ndarray] | None = None  # the epoch in use and its order
        # batches of one grid are made of a whole epoch at once
        self._stream = order_of(spec.records) if spec.layout.grids is None else None

    def steps(self, start: int, stop: int) -> Iterator[list[Batch]]:
        """For each step from `start` to `stop` (excluded) the micro-batches of this process.

        Closing the iterator ends the workers. Raises `DataError` once too many samples are unreadable.
        """
        samples = _Samples(self.spec, self.seed, replace=True)
        batches = _batches(samples, self._places(start, stop), self._workers, self._bad, self._pin_memory)
        try:
            for _ in range(start, stop):
                yield [next(batches) for _ in range(self.accumulation)]
        finally:
            batches.close()

    def unusable(self) -> str:
        """The samples that this process and all others could not use, by reason, in one line; "" for none.

        Every process must call it.
        """
        return self._bad.summary()

    def first(self, count: int) -> Batch:
        """The first `count` samples of step 0 (at most a whole step) as one batch, to be looked at: read here and now.

        At most a micro-batch where the layout has grids. What can be looked at is up to `DataSpec.shown`.

        The steps that follow are the same with or without it. Raises as a step does, but counts no unreadable sample.
        """
        if self.spec.layout.grids is not None:
            return self._read(self.spec, self._micro_batch(0)[:count])
        positions = range(min(count, self.global_batch_size))
        return self._read(self.spec.shown or self.spec, [(*self._place(position), None) for position in positions])

    def heaviest(self) -> Batch:
        """A micro-batch that needs as much memory as any: the first, of the largest grid where the layout has grids."""
        grids = self.spec.layout.grids
        grid = None if grids is None else max(grids, key=lambda grid: grid[0] * grid[1])
        return self._read(self.spec, [(epoch, index, grid) for epoch, index, _ in self._micro_batch(0)])

    def _read(self, spec: DataSpec, places: list[Place]) -> Batch:
        samples = _Samples(spec, self.seed, replace=True)
        found = _Collate(spec)([samples[place] for place in places])
        if isinstance(found, UserError):
            raise found
        batch, _ = found
        return batch

    def _places(self, start: int, stop: int) -> Iterator[list[Place]]:
        """Of every micro-batch of this process the samples."""
        share = self.accumulation * self.micro_batch_size
        for step in range(start, stop):
            first = step * self.global_batch_size + dist.rank() * share
            for begin in range(first, first + share, self.micro_batch_size):
                yield self._micro_batch(begin)

    def _micro_batch(self, begin: int) -> list[Place]:
        places = [self._place(position) for position in range(begin, begin + self.micro_batch_size)]
        grids = self.spec.layout.grids
        _, middle = places[len(places) // 2]
        grid = None if grids is None else grids[middle]
        return [(epoch, index, grid) for epoch, index in places]

    def _place(self, position: int) -> tuple[int, int]:
        if self._stream is not None:
            return self._stream.place(self.seed, position)
        count = len(self.spec.records)
        epoch, item = divmod(position, count)
        if self._shuffled is None or self._shuffled[0] != epoch:
            self._shuffled = epoch, self._order(epoch, count)
        return epoch, int(self._shuffled[1][item])

    def _order(self, epoch: int, count: int) -> np.ndarray:
        order, grids = stream(self.seed, _ORDER, epoch).permutation(count), self.spec.layout.grids
        if grids is None:
            return order
        head = -epoch * count % self.micro_batch_size  # what the micro-batch before the first whole one still takes
        return bucketed(order, grids, self.micro_batch_size, head, (self.seed, _BUCKETS, epoch))


class EvalLoader:
    """The samples of a split in order, each once over all processes: batch i goes to process i % world size.

    A batch of one is made of a split of one only: losses between samples, such as contrast, mean nothing on it. With a
    layout (see `vlbeit.data.layout`) the order is another, a batch may be of one, and a process has windows of batches.
    An unreadable image is taken for a mid-grey one, an unreadable mask for one without labels; they are named in
    `batch["bad"]` and in the log.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        batch_size: int,
        workers: int,
        max_bad_fraction: float,
        pin_memory: bool = False,
    ) -> None:
        self.spec, self.batch_size = spec, batch_size
        self._workers, self._pin_memory = workers, pin_memory
        self._bad = BadSamples(max_bad_fraction, len(spec.records))

    def __len__(self) -> int:
        """Number of batches of this process."""
        return len(self._indices())

    def __iter__(self) -> Iterator[Batch]:
        """Batches; whatever a transform draws is the same at every evaluation."""
        batches, grids = self._indices(), self.spec.layout.grids
        places = ([(0, index, grids[index] if grids else None) for index in indices] for indices in batches)
        samples = _Samples(self.spec, seed=0, replace=False)
        yield from _batches(samples, places, min(self._workers, len(batches)), self._bad, self._pin_memory)

    def _indices(self) -> Sequence[Sequence[int]]:
        """The batches of this process. Without a layout a single sample left over joins the batch before it."""
        count, size = len(self.spec.records), self.batch_size
        if self.spec.layout != Layout():
            windows = evaluation_windows(self.spec.layout, count, size, dist.world_size())
            return in_turn(windows[dist.rank() :: dist.world_size()], max(1, self._workers))
        starts = [start for start in range(0, count, size) if start == 0 or size == 1 or count - start > 1]
        stops = [*starts[1:], count]
        return [range(*ends) for ends in zip(starts, stops, strict=True)][dist.rank() :: dist.world_size()]


class _Samples(Dataset):  # type: ignore[type-arg]
    """(epoch, index) -> a sample and the bad ones met on the way, or the error that the main process shall raise."""

    def __init__(self, spec: DataSpec, seed: int, *, replace: bool) -> None:
        self.spec, self._seed, self._replace = spec, seed, replace

    def __getitem__(self, place: Place) -> tuple[Sample, list[Bad]] | UserError:
        try:
            return self._replaced(place) if self._replace else self._greyed(place)
        except UserError as error:
            return error

    def _replaced(self, place: Place) -> tuple[Sample, list[Bad]]:
        """The sample, or else the first usable one of others drawn in its place, near it first."""
        epoch, index, grid = place
        bad: list[Bad] = []
        tried: set[int] = set()
        for candidate in chain((index,), self._others(epoch, index)):
            if candidate in tried:
                continue
            tried.add(candidate)
            try:
                record = self._record(candidate, grid)
            except IncompleteError as error:
                bad.append((error.record["id"], error.reason, str(error)))
                continue
            try:
                with seeded(self._seed, _SAMPLE, epoch, candidate):
                    return self.spec.transform(record), bad
            except SampleError as error:
                bad.append((record["id"], error.reason, str(error)))
        names = "; ".join(dict.fromkeys(message for _, _, message in bad))
        found = f"{len(bad)} unusable sample{'s' * (len(bad) > 1)} in a row"
        raise DataError(f"{found}: {names}; restore or correct them, or remove their records")

    def _others(self, epoch: int, index: int) -> Iterator[int]:
        """What is tried in place of a record: of a stream others of the shard that is open already, then any."""
        records = self.spec.records
        near: range = records.near(index) if hasattr(records, "near") else range(len(records))
        draws = stream(self._seed, _REPLACE, epoch, index)
        yield from draws.integers(near.start, near.stop, size=_ATTEMPTS).tolist()
        yield from draws.integers(len(records), size=_ATTEMPTS).tolist()

    def _greyed(self, place: Place) -> tuple[Sample, list[Bad]]:
        """The sample, or else what it is with a stand-in for its image or mask."""
        epoch, index, grid = place
        bad: list[Bad] = []
        try:
            record = self._record(index, grid)
        except IncompleteError as error:
            bad.append((error.record["id"], error.reason, str(error)))
            record = error.record if error.record.get("image", True) else stand_in(error.record)
        try:
            with seeded(self._seed, _SAMPLE, epoch, index):
                return self.spec.transform(record), bad
        except SampleError as error:
            bad.append((record["id"], error.reason, str(error)))
            with seeded(self._seed, _SAMPLE, epoch, index):
                return self.spec.transform(stand_in(record)), bad[:1]

    def _record(self, index: int, grid: Grid | None) -> Record:
        record = self.spec.records[index]
        return record if grid is None else {**record, "grid": grid}


class _Collate:
    """Collates in the worker, and hands on the bad samples or the first error."""

    def __init__(self, spec: DataSpec) -> None:
        self._collate = spec.collate

    def __call__(self, items: list[tuple[Sample, list[Bad]] | UserError]) -> tuple[Batch, list[Bad]] | UserError:
        samples: list[Sample] = []
        bad: list[Bad] = []
        for item in items:
            if isinstance(item, UserError):
                return item
            samples.append(item[0])
            bad += item[1]
        batch = self._collate(samples)
        batch["bad"] = [sample_id for sample_id, _, _ in bad]
        return batch, bad


def _batches(
    samples: _Samples, places: Iterable[list[Place]], workers: int, bad: BadSamples, pin_memory: bool
) -> Generator[Batch, None, None]:
    """The batches of the places, in order. Closing the iterator ends the workers."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive a fork
    ends = multiprocessing.Semaphore(0) if workers else None

    def let_go() -> None:
        if ends is not None:
            for _ in range(workers):
                ends.release()

    loader = DataLoader(
        samples,
        batch_sampler=places,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=_Collate(samples.spec),
        worker_init_fn=None if ends is None else functools.partial(_obey_main_alone, ends),
        generator=torch.Generator(),  # of its own: the global one is not touched
        pin_memory=pin_memory,
    )
    if ends is not None:
        atexit.register(let_go)  # comes before Python's own waiting for the workers
    batches = iter(loader)
    try:
        for item in batches:
            if isinstance(item, UserError):
                raise item
            batch, found = item
            bad.add(found)
            yield batch
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise  # from inside a transform
        reason = str(error).partition("\n")[0]
        raise DataError(f"a loader process died, for lack of memory perhaps: fewer data.workers= ({reason})") from error
    finally:
        atexit.unregister(let_go)
        let_go()
        del batches  # the workers end with it


def _obey_main_alone(ends: Semaphore, worker: int) -> None:
    """A loader process ends when the main process says so or is gone, and stuck in a read too.

    Ctrl-C and a scheduler's SIGTERM may reach the whole process group, and the main process decides how to stop. So
    they are ignored; torch's own way to end a worker, SIGTERM, is so too.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_when_told, args=(ends,), daemon=True).start()


def _end_when_told(ends: Semaphore) -> None:
    main = os.getppid()
    while os.getppid() == main and not ends.acquire(timeout=_LOOK):
        pass
    time.sleep(_GRACE)
    os._exit(0)
