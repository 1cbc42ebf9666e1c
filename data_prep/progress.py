"""How far a preparation is: a bar with ETA on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

Report = Callable[[str], None]
Thing = TypeVar("Thing")
_EVERY = 10.0  # seconds between two lines


class Progress:
    """Counts files and bytes of `total` bytes, of which `done` were there before. Use it as a context manager."""

    def __init__(self, what: str, total: int, report: Report, *, done: int = 0) -> None:
        self.what, self.total, self.report = what, max(total, 1), report
        self.files, self.bytes, self._before = 0, done, done
        self.started = self._said = time.monotonic()
        self._bar = _bar(what, self.total, done) if sys.stderr.isatty() else None

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def add(self, size: int) -> None:
        """One more file of `size` bytes is done."""
        self.files += 1
        self.bytes += size
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=min(self.bytes, self.total))
        elif time.monotonic() - self._said >= _EVERY:
            self._said = time.monotonic()
            self.report(self.line())

    def line(self) -> str:
        """`train: 1,200 files, 0.13 of 147.9 GB, 88 MB/s, ETA 0:28:00`."""
        rate = (self.bytes - self._before) / max(time.monotonic() - self.started, 1e-3)
        rest = int(max(self.total - self.bytes, 0) / max(rate, 1.0))
        eta = f"{rest // 3600}:{rest // 60 % 60:02d}:{rest % 60:02d}"
        done, total = size(self.bytes), size(self.total)
        return f"{self.what}: {self.files:,} files, {done} of {total}, {size(int(rate))}/s, ETA {eta}"


def counted(things: Iterable[Thing], what: str, report: Report) -> Iterator[Thing]:
    """The same things; now and then a line says how many it were: `reading val2014: 120,000 questions`."""
    said = None
    for number, thing in enumerate(things, 1):
        if said is None:  # the first may have taken long: a file is read whole before it
            said = time.monotonic()
        if time.monotonic() - said >= _EVERY:
            said = time.monotonic()
            report(what.format(f"{number:,}"))
        yield thing


def size(count: int) -> str:
    """Bytes in a unit that suits them: `1.50 GB`, `12.0 kB`."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count} bytes"


def _bar(what: str, total: int, done: int) -> Any:
    from rich.console import Console  # a tenth of a second that only a terminal pays
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True))
    bar.add_task(what, total=total, completed=done)
    return bar
