"""Features on disk: computed once, read row by row ever after.

    FOLDER/  shard-00000.npy  shard-00001.npy  shard-00001.bad.json  ...  features.json

A shard has a fixed number of rows and is put in place whole; `features.json` is written last. Computing that was broken
off goes on with the shards that are missing, on any number of processes.

Legend: F width of all features side by side.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vlbeit import dist, files
from vlbeit.engine.folder import write_errors
from vlbeit.errors import DataError

_SHARD_BYTES, _SHARD_ROWS = 2**26, 512
_LAST = "features.json"

Columns = Sequence[tuple[str, int]]  # name and width, in the order in which they lie side by side


class Part(NamedTuple):
    """Features of some pictures."""

    rows: np.ndarray  # [n, F]
    bad: list[bool]  # the picture could not be read, a grey one took its place


class FeatureFolder:
    """The features of one split, once they are complete. Shards are mapped into memory when first read."""

    def __init__(self, folder: Path, rows: int, columns: Columns, dtype: str) -> None:
        self.folder, self.rows, self.columns, self.dtype = folder, rows, list(columns), np.dtype(dtype)
        self.width = sum(width for _, width in columns)
        # of the sizes alone, never of the number of processes: so any number of them may go on
        self.per_shard = max(1, min(_SHARD_ROWS, _SHARD_BYTES // (self.width * self.dtype.itemsize)))
        self._maps: dict[int, np.ndarray] = {}
        self._bad: set[int] | None = None

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.rows // self.per_shard)

    @property
    def bytes(self) -> int:
        """Size of all rows."""
        return self.rows * self.width * self.dtype.itemsize

    def is_complete(self) -> bool:
        """Whether everything is there."""
        return (self.folder / _LAST).is_file()

    def missing(self) -> list[int]:
        """Shards that this process is to compute: its share of those that are not there."""
        absent = [shard for shard in range(self.shards) if not self._file(shard).is_file()]
        return absent[dist.rank() :: dist.world_size()]

    def rows_of(self, shard: int) -> range:
        """The rows that a shard holds."""
        return range(shard * self.per_shard, min(self.rows, (shard + 1) * self.per_shard))

    def check_space(self) -> None:
        """Make the folder. Raises DataError where the disk has not the room for what is missing."""
        with write_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
        there = sum(file.stat().st_size for file in self.folder.glob("shard-*.npy"))
        if self.bytes - there > free:
            raise DataError(
                f"{self.folder} needs {(self.bytes - there) / 1e9:.1f} GB for features and the disk has "
                f"{free / 1e9:.1f}: set data.cache=DIR on another disk, task.layers= to fewer layers, or "
                f"task.dtype=float16"
            )

    def fill(self, shards: Sequence[int], parts: Iterable[Part]) -> Iterator[int]:
        """Write shards from the features of all their rows, in order; yields after each part the rows so far."""
        waiting, done, todo = [], 0, list(shards)
        for part in parts:
            largest = np.finfo(self.dtype).max
            if not (np.abs(part.rows) <= largest).all():  # nor is NaN
                raise DataError(f"features do not fit {self.dtype} or are not finite: try task.dtype=float32")
            waiting.append(part)
            while todo and sum(len(each.rows) for each in waiting) >= len(self.rows_of(todo[0])):
                waiting = [self._write(todo.pop(0), waiting)]
            done += len(part.rows)
            yield done
        assert not todo, f"shards {todo} got no rows"

    def _write(self, shard: int, parts: list[Part]) -> Part:
        """One shard from the first rows of the parts; returns what is left of them."""
        rows, bad = np.concatenate([part.rows for part in parts]), [flag for part in parts for flag in part.bad]
        count = len(self.rows_of(shard))
        with write_errors(self.folder):
            own_bad = [self.rows_of(shard)[i] for i in range(count) if bad[i]]
            if own_bad:
                files.write_json(self._bad_file(shard), own_bad)
            files.write_by(self._file(shard), lambda path: _save(path, rows[:count].astype(self.dtype)))
        return Part(rows[count:], bad[count:])

    def finish(self, facts: dict[str, Any]) -> None:
        """Say that all shards are there; `facts` are kept for whoever wonders what they are."""
        with write_errors(self.folder):
            files.write_json(self.folder / _LAST, {"columns": self.columns, "rows": self.rows, **facts}, indent=1)

    def row(self, index: int) -> np.ndarray:
        """Features of one picture [F]."""
        shard, place = divmod(index, self.per_shard)
        return self._shard(shard)[place]

    def is_bad(self, index: int) -> bool:
        """Whether the picture could not be read."""
        return index in self._unreadable

    def readable(self) -> np.ndarray:
        """Rows, rising, of the pictures that could be read."""
        return np.delete(np.arange(self.rows), sorted(self._unreadable))

    @property
    def _unreadable(self) -> set[int]:
        if self._bad is None:
            listed = (json.loads(file.read_text()) for file in self.folder.glob("shard-*.bad.json"))
            self._bad = {row for rows in listed for row in rows}
        return self._bad

    def slice(self, name: str) -> slice:
        """Where a column lies."""
        widths = [width for _, width in self.columns]
        index = [column for column, _ in self.columns].index(name)
        return slice(sum(widths[:index]), sum(widths[: index + 1]))

    def blocks(self, name: str | None = None) -> Iterator[np.ndarray]:
        """One column, or all, shard by shard: float32 [n, width]."""
        taken = slice(None) if name is None else self.slice(name)
        for shard in range(self.shards):
            yield np.array(self._shard(shard)[:, taken], dtype=np.float32)

    def readable_blocks(self, name: str | None = None) -> Iterator[np.ndarray]:
        """The same, of the rows of `readable` alone."""
        for shard, block in enumerate(self.blocks(name)):
            yield np.delete(block, [i for i, row in enumerate(self.rows_of(shard)) if self.is_bad(row)], axis=0)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of every feature over all pictures that could be read, [F] each."""
        total, squares, count = np.zeros(self.width), np.zeros(self.width), len(self.readable())
        for block in self.readable_blocks():
            total += block.sum(0, dtype=np.float64)
        mean = total / count
        for block in self.readable_blocks():
            squares += ((block - mean) ** 2).sum(0)
        return mean, np.sqrt(squares / count)

    def _shard(self, shard: int) -> np.ndarray:
        if shard not in self._maps:
            try:
                self._maps[shard] = np.load(self._file(shard), mmap_mode="r")
            except (OSError, ValueError) as error:
                raise DataError(f"{self._file(shard)} cannot be read ({error}): remove {self.folder}") from error
        return self._maps[shard]

    def _file(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.npy"

    def _bad_file(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.bad.json"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}  # a map would be pickled as a copy of what it maps


def _save(path: Path, array: np.ndarray) -> None:
    with open(path, "wb") as file:  # np.save would add a suffix to the path
        np.save(file, array)
