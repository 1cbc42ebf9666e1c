"""How far long work has come, on standard error: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from vlbeit import dist

TOLD_EVERY = 30.0  # seconds between the lines of `counting`: shorter work says nothing


class Progress:
    """One piece of work, counted and timed; a second one that begins meanwhile has its bar below the first."""

    _bars: ClassVar[Bars | None] = None  # those on the terminal: two displays would draw over each other

    def __init__(self, total: int, done: int = 0, console: Console | None = None) -> None:
        """`done` of `total` were done by an earlier command."""
        self.total, self.done = total, done
        self._before, self._began = done, time.perf_counter()
        bars = Progress._bars
        self.console = bars.console if bars else console or Console(stderr=True)
        self.has_bar = self.console.is_terminal
        self._is_first = self.has_bar and bars is None
        if not self.has_bar:
            return
        if bars is None:
            columns = (BarColumn(bar_width=None), TextColumn("{task.description}"), TimeElapsedColumn())
            bars = Bars(MofNCompleteColumn(), *columns, TimeRemainingColumn(), console=self.console)
            Progress._bars = bars
            bars.start()
        self._shown, self._bar = bars, bars.add_task("", total=total, completed=done)

    def reach(self, done: int) -> None:
        """So many are done by now."""
        self.done = done
        if self.has_bar:
            self._shown.update(self._bar, completed=done)

    def describe(self, text: str) -> None:
        """What stands beside the bar."""
        if self.has_bar:
            self._shown.update(self._bar, description=text)

    def say(self, line: str) -> None:
        """A line of its own, above the bars."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """The first bar stays as it is, those below it go."""
        if self._is_first:
            self._shown.stop()
            Progress._bars = None
        elif self.has_bar:
            self._shown.remove_task(self._bar)

    @property
    def speed(self) -> float:
        """What this command has done, per second."""
        return (self.done - self._before) / max(time.perf_counter() - self._began, 1e-9)

    @property
    def eta(self) -> str:
        """Hours, minutes and seconds to the end; of what has not begun, unknown."""
        if self.done == self._before:
            return "unknown"
        seconds = int((self.total - self.done) / self.speed)
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


@contextmanager
def counting(verb: str, total: int, done: int = 0, console: Console | None = None) -> Iterator[Callable[[int], None]]:
    """Tell how far all processes are with `total` samples, guessed from the main one: `evaluated 368 of 1182, ...`.

    Yields what is to be called with the number of samples that this process has done since.
    """
    if not dist.is_main():
        yield lambda _: None
        return
    progress = Progress(total, done, console)
    told = time.perf_counter()

    def add(samples: int) -> None:
        nonlocal told
        progress.reach(min(total, progress.done + samples * dist.world_size()))
        speed = f"{progress.speed:.1f} samples/s"
        progress.describe(f"{verb}  {speed}")
        if not progress.has_bar and time.perf_counter() - told >= TOLD_EVERY:
            told = time.perf_counter()
            progress.say(f"{verb} {progress.done} of {total}  {speed}  ETA {progress.eta}")

    progress.describe(verb)
    try:
        yield add
    finally:
        progress.close()
