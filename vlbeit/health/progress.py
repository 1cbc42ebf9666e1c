"""How far a report is, on standard error: standard output is the report's own."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias, TypeVar

Item = TypeVar("Item")
Say: TypeAlias = Callable[[str], None]
_EVERY = 5.0  # seconds between two lines


def say(line: str) -> None:
    """One line of progress."""
    print(line, file=sys.stderr, flush=True)


def quiet(line: str) -> None:
    """No progress."""


def counted(items: Iterable[Item], total: int, what: str, tell: Say) -> Iterator[Item]:
    """The items, with a line now and then on how many of `total` are done and how long the rest will take."""
    started = said = time.monotonic()
    for number, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - said >= _EVERY:
            said = now
            rest = (now - started) / number * (total - number)
            tell(f"{what}: {number:,} of {total:,}, {number / (now - started):,.0f}/s, about {rest:,.0f} s left")
