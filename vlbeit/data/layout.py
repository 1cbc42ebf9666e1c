"""Which samples make a batch together: those of one patch grid, of texts of about one length, of one picture."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vlbeit.data.picture_sizes import picture_sizes
from vlbeit.data.randomness import stream
from vlbeit.data.records import ChosenRecords
from vlbeit.types import Layout, Records

Grid = tuple[int, int]  # rows and columns of patches

PICTURES = 128  # that evaluation keeps, so many as one window has at most; at 480 pixels 2.8 MB each
_WINDOW = 4  # batches of evaluation, at most, that one loader process reads, sorted by length
_ROUNDS = 8  # windows that every process gets where there are batches enough: the last round may be short of some


class NativeGrids(NamedTuple):
    """Pictures in about their own aspect: sides are multiples of the patch, as large as `most` allows.

    One side always has the patches of `most`, so that there are fewer grids than its rows and columns together.
    """

    patch: int  # side in pixels
    most: Grid

    def grid(self, size: tuple[int, int]) -> Grid:
        """For a picture of (height, width)."""
        scale = min(limit / side for limit, side in zip(self.most, size, strict=True))
        rows, columns = (min(limit, max(1, round(side * scale))) for limit, side in zip(self.most, size, strict=True))
        return rows, columns

    def pixels(self, grid: Grid) -> tuple[int, int]:
        """Height and width of a grid."""
        return grid[0] * self.patch, grid[1] * self.patch

    def of(self, records: Records, cache: str | Path) -> list[Grid]:
        """The grid of every record's picture; `most` for one that cannot be read. One `image_id` is one picture.

        Sizes are read once and kept in `cache`, which is as `data.cache`.
        """
        pictures = records.column("image_id")[:]
        row_of = {picture: row for row, picture in reversed(list(enumerate(pictures)))}
        sizes = picture_sizes(ChosenRecords(records, list(row_of.values())), cache)
        grids = [self.most if size is None else self.grid(size) for size in sizes]
        grid_of = dict(zip(row_of, grids, strict=True))
        return [grid_of[picture] for picture in pictures]


def bucketed(order: np.ndarray, grids: Sequence[Grid], size: int, head: int, key: Sequence[int]) -> np.ndarray:
    """A shuffled epoch, rearranged so that its micro-batches of `size` are each of one grid, or of like ones at worst.

    The first `head` samples fill up the micro-batch that the epoch before left open; they and the last ones, which do
    not fill one, stay where they are. The others are sorted by aspect, within a grid as they were shuffled, cut into
    micro-batches, and these are shuffled by `key`. Every sample is in there once.
    """
    whole = max(0, len(order) - head) // size * size
    body = order[head : head + whole]
    aspects = np.array([rows / columns for rows, columns in grids])
    micro = body[np.argsort(aspects[body], kind="stable")].reshape(-1, size)
    micro = micro[stream(*key).permutation(len(micro))]
    return np.concatenate([order[:head], micro.ravel(), order[head + whole :]])


def evaluation_windows(layout: Layout, count: int, size: int, processes: int = 1) -> list[list[list[int]]]:
    """All records in batches of at most `size`, a few at a time in a window: so few that `processes` get about as much.

    A batch is of one grid. The samples of a picture are in one window, or in two that follow each other; within a
    window samples are sorted by length, and are of `PICTURES` pictures at most where a batch is.
    """
    share = -(-count // size) // processes
    most = _WINDOW if processes == 1 else min(_WINDOW, max(1, share // _ROUNDS))
    grids = layout.grids or [(0, 0)] * count
    pictures = layout.pictures or range(count)
    lengths = layout.lengths or [0] * count
    first_seen = {picture: place for place, picture in reversed(list(enumerate(pictures)))}
    by_grid: dict[Grid, list[int]] = {}
    for index in sorted(range(count), key=lambda index: first_seen[pictures[index]]):
        by_grid.setdefault(grids[index], []).append(index)
    windows = []
    for rows in by_grid.values():
        for window in _windows(_cut(rows, size), pictures, most):
            windows.append(_cut(sorted(window, key=lambda index: lengths[index]), size))
    return windows


def _windows(batches: list[list[int]], pictures: Sequence[Any], most: int) -> list[list[int]]:
    """Batches put together, at most `most`, while they are of `PICTURES` at most."""
    windows: list[list[list[int]]] = []
    seen: set[Any] = set()
    for batch in batches:
        seen |= (own := {pictures[row] for row in batch})
        if not windows or len(windows[-1]) == most or len(seen) > PICTURES:
            windows.append([])
            seen = own
        windows[-1].append(batch)
    return [[row for batch in window for row in batch] for window in windows]


def in_turn(windows: list[list[list[int]]], readers: int) -> list[list[int]]:
    """The batches of the windows in the order in which `readers`, who take them in turn, each read whole windows."""
    queues = [[batch for window in windows[start::readers] for batch in window] for start in range(readers)]
    return [batch for turn in zip_longest(*queues) for batch in turn if batch is not None]


def _cut(values: list[Any], size: int) -> list[list[Any]]:
    return [values[start : start + size] for start in range(0, len(values), size)]
