"""The vectors of the pictures of a folder, kept in the cache: only pictures that are new or changed are read.

    CACHE/retrieval/KEY/  part-0.npz  part-1.npz ...

The key is made of the weights, of how pictures are looked at and of the folder's path. A part holds names, stamps (size
and time of change) and vectors of some pictures and is put in place whole: what was broken off goes on with the rest.

Legend: P pictures, E width of the vectors.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
from filelock import FileLock

from vlbeit import files
from vlbeit.data.index import cache_folder
from vlbeit.errors import DataError

log = logging.getLogger(__name__)

Compute = Callable[[Sequence[Path]], Iterator[tuple[list[int], np.ndarray]]]
"""Pictures -> a few at a time, the places of those that could be read and their vectors [n, E]."""

_PART_ROWS = 1024
_MOST_PARTS = 16  # more are put together


class Vectors(NamedTuple):
    """Vectors of pictures that could be read."""

    pictures: list[Path]
    vectors_PE: np.ndarray  # float32
    unreadable: list[Path]


class FolderVectors:
    """What is kept of one folder of pictures for one set of weights.

    Args:
        cache: as `data.cache`.
        facts: what the vectors hang on beside the pictures: weights, size, normalisation.
        folder: the pictures'.
    """

    def __init__(self, cache: str, facts: str, folder: Path) -> None:
        key = hashlib.sha256(f"{facts} {folder.absolute()}".encode()).hexdigest()[:20]
        self.place = cache_folder(cache) / "retrieval" / key
        self.top = folder.absolute()

    def __call__(self, pictures: Sequence[Path], compute: Compute) -> Vectors:
        """The vectors of these pictures below the folder. Raises DataError where the cache cannot be written."""
        try:
            self.place.mkdir(parents=True, exist_ok=True)
            with FileLock(self.place / "lock"):
                return self._updated([path.absolute() for path in pictures], compute)
        except OSError as error:
            raise DataError(f"{self.place} cannot be used: {error.strerror or error}; set $VLBEIT_CACHE=DIR") from error

    def _updated(self, pictures: Sequence[Path], compute: Compute) -> Vectors:
        known = self._read()
        wanted = {str(path.relative_to(self.top)): _stamp(path) for path in pictures}
        fresh = [name for name, stamp in wanted.items() if known.get(name, ("",))[0] != stamp]
        waiting: dict[str, tuple[str, np.ndarray]] = {}
        try:
            for places, vectors_nE in compute([self.top / name for name in fresh]) if fresh else ():
                names = [fresh[place] for place in places]
                waiting |= {name: (wanted[name], row) for name, row in zip(names, vectors_nE, strict=True)}
                if len(waiting) >= _PART_ROWS:
                    self._write(waiting, known)
                    waiting = {}
        finally:  # also of what was stopped
            if waiting:
                self._write(waiting, known)
        there = {name: known[name][1] for name, stamp in wanted.items() if known.get(name, ("",))[0] == stamp}
        if len(self._parts()) > _MOST_PARTS:
            self._put_together({name: (wanted[name], vector) for name, vector in there.items()})
        vectors_PE = np.stack(list(there.values())).astype(np.float32) if there else np.zeros((0, 0), np.float32)
        lacking = [self.top / name for name in wanted if name not in there]
        return Vectors([self.top / name for name in there], vectors_PE, lacking)

    def _parts(self) -> list[Path]:
        """In the order in which they were written."""
        return sorted(self.place.glob("part-*.npz"), key=_number)

    def _read(self) -> dict[str, tuple[str, np.ndarray]]:
        """Name -> stamp and vector; the newest counts. A damaged part is left out: it is computed again."""
        known: dict[str, tuple[str, np.ndarray]] = {}
        for path in self._parts():
            try:
                with np.load(path, allow_pickle=False) as part:
                    names, stamps, vectors = (part[field] for field in ("names", "stamps", "vectors"))
                rows = zip(names.tolist(), stamps.tolist(), vectors, strict=True)
                known |= {name: (stamp, vector) for name, stamp, vector in rows}
            except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
                log.warning("%s is damaged (%s) and computed again", path, error)
                path.unlink()
        return known

    def _write(self, rows: dict[str, tuple[str, np.ndarray]], known: dict[str, tuple[str, np.ndarray]]) -> None:
        """A part of its own; `known` learns it."""
        parts = self._parts()
        self._save(self.place / f"part-{_number(parts[-1]) + 1 if parts else 0}.npz", rows)
        known |= rows

    def _put_together(self, rows: dict[str, tuple[str, np.ndarray]]) -> None:
        """One part of what is current in place of all."""
        old = self._parts()
        self._save(self.place / f"part-{_number(old[-1]) + 1}.npz", rows)
        for path in old:
            path.unlink()

    @staticmethod
    def _save(path: Path, rows: dict[str, tuple[str, np.ndarray]]) -> None:
        columns = {
            "names": np.array(list(rows)),
            "stamps": np.array([stamp for stamp, _ in rows.values()]),
            "vectors": np.stack([vector for _, vector in rows.values()]).astype(np.float32),
        }

        def write(temporary: Path) -> None:
            with open(temporary, "wb") as file:  # np.savez would add a suffix to the path
                np.savez(file, **columns)

        files.write_by(path, write)


def _number(part: Path) -> int:
    return int(part.stem.removeprefix("part-"))


def _stamp(path: Path) -> str:
    try:
        facts = path.stat()
    except OSError:
        return "missing"
    return f"{facts.st_size} {facts.st_mtime_ns}"
