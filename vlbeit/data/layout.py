"""Which samples make a batch together: those of one patch grid, of texts of about one length, of one picture."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image

from vlbeit.data.randomness import stream
from vlbeit.types import Layout, Records

log = logging.getLogger(__name__)

Grid = tuple[int, int]  # rows and columns of patches

_WINDOW = 4  # batches of evaluation that one loader process reads, sorted by length: it keeps their pictures
_READERS = 8  # threads: they wait for the disk
_ON_ITS_SIDE = (5, 6, 7, 8)  # EXIF orientations that swap height and width


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

    def of(self, records: Records) -> list[Grid]:
        """The grid of every record's picture; `most` for one that cannot be read. Reads the pictures' headers only."""
        found = [value if isinstance(value, str) else picture_size(value) for value in records.column("image")]
        paths = dict.fromkeys(value for value in found if isinstance(value, str))
        if paths:
            log.info("reading the sizes of %d pictures", len(paths))
        with ThreadPoolExecutor(_READERS) as pool:
            of_path = dict(zip(paths, pool.map(picture_size, paths), strict=True))
        sizes = [of_path[value] if isinstance(value, str) else value for value in found]
        return [self.most if size is None else self.grid(size) for size in sizes]


def picture_size(value: str | Path | bytes | Image.Image) -> tuple[int, int] | None:
    """Height and width of a picture as people see it, of its header alone; None where that cannot be read."""
    try:
        if isinstance(value, Image.Image):
            return _upright_size(value)
        with Image.open(io.BytesIO(value) if isinstance(value, bytes) else value) as image:
            return _upright_size(image)
    except Exception:  # whatever a damaged file makes Pillow raise: reading the picture will name it
        return None


def _upright_size(image: Image.Image) -> tuple[int, int]:
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in _ON_ITS_SIDE
    except Exception:  # as `open_image`: damaged EXIF data turns nothing
        turned = False
    return (image.width, image.height) if turned else (image.height, image.width)


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


def evaluation_windows(layout: Layout, count: int, size: int) -> list[list[list[int]]]:
    """All records in batches of at most `size`, a few at a time in a window.

    A batch is of one grid. The samples of a picture are in one window, or in two that follow each other; within a
    window samples are sorted by length.
    """
    grids = layout.grids or [(0, 0)] * count
    pictures = layout.pictures or range(count)
    lengths = layout.lengths or [0] * count
    first_seen = {picture: place for place, picture in reversed(list(enumerate(pictures)))}
    by_grid: dict[Grid, list[int]] = {}
    for index in sorted(range(count), key=lambda index: first_seen[pictures[index]]):
        by_grid.setdefault(grids[index], []).append(index)
    windows = []
    for rows in by_grid.values():
        for window in _cut(rows, size * _WINDOW):
            windows.append(_cut(sorted(window, key=lambda index: lengths[index]), size))
    return windows


def in_turn(windows: list[list[list[int]]], readers: int) -> list[list[int]]:
    """The batches of the windows in the order in which `readers`, who take them in turn, each read whole windows."""
    queues = [[batch for window in windows[start::readers] for batch in window] for start in range(readers)]
    return [batch for turn in zip_longest(*queues) for batch in turn if batch is not None]


def _cut(values: list[Any], size: int) -> list[list[Any]]:
    return [values[start : start + size] for start in range(0, len(values), size)]
