"""Answers on their way to a file: a line for each, appended batch by batch, one file for each process.

Whatever kills a process, what stands in the files counts: a line is whole or it is left aside, and its question is
asked again. Any number of processes may go on with the files of any other number.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

_SYNC_SECONDS = 30  # how much work a loss of power may cost; a kill costs the batch at hand


class Kept(NamedTuple):
    """What the parts hold: sample id -> answer, and the samples whose picture could not be read."""

    answers: dict[str, str]
    unreadable: set[str]


def read_parts(folder: Path) -> Kept:
    """All whole lines of all processes; of two answers to a question the first."""
    kept = Kept({}, set())
    texts: dict[str, str] = {}  # equal answers are one object
    for path in sorted(folder.glob("rank-*.jsonl")):
        with open(path, "rb") as file:
            for line in file:
                try:
                    row = json.loads(line)
                    sample_id, answer = row["id"], row["answer"]
                except (ValueError, TypeError, KeyError):
                    continue  # torn by a kill
                if sample_id not in kept.answers and isinstance(sample_id, str) and isinstance(answer, str):
                    kept.answers[sample_id] = texts.setdefault(answer, answer)
                    if row.get("unreadable"):
                        kept.unreadable.add(sample_id)
    return kept


class PartWriter:
    """Appends to the part of one process; a context manager."""

    def __init__(self, folder: Path, rank: int) -> None:
        """Raises OSError where the folder cannot be made or written to."""
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(folder / f"rank-{rank}.jsonl", "ab")  # noqa: SIM115
        if self._file.tell():
            self._file.write(b"\n")  # ends a line that a kill has torn
        self._synced = time.monotonic()

    def add(self, answers: Mapping[str, str], unreadable: Collection[str] = ()) -> None:
        """Keep the answers of a batch: from here on no kill can take them."""
        rows = ({"id": sample_id, "answer": answer} for sample_id, answer in answers.items())
        lines = (json.dumps({**row, "unreadable": True} if row["id"] in unreadable else row) for row in rows)
        self._file.write("".join(f"{line}\n" for line in lines).encode())
        self._file.flush()
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            self._sync()

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.flush()
            self._sync()
        finally:
            self._file.close()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()
