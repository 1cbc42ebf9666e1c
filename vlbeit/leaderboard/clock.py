"""Time as the leaderboard client sees it: every wait goes through here, so that hours can be tested in a moment."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime

from vlbeit.errors import UsageError

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def now() -> float:
    """Seconds that only ever grow."""
    return time.monotonic()


def pause(seconds: float) -> None:
    """Wait."""
    time.sleep(seconds)


def stamp() -> str:
    """The time of day in UTC, to the second, as receipts have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_duration(text: str, option: str) -> float:
    """Seconds of `90s`, `30m`, `12h`, `2d`. UsageError, naming the option, for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if not match or not float(match[1]):
        raise UsageError(f"{option} {text}: give a length of time such as 90s, 30m, 12h or 2d")
    return float(match[1]) * _SECONDS[match[2]]


def spell_duration(seconds: float) -> str:
    """A length of time as people say it: `45 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    minutes, hours, days = round(seconds / 60), int(seconds // 3600), int(seconds // 86400)
    if seconds < 90:
        return f"{round(seconds)} s"
    if minutes < 90:
        return f"{minutes} min"
    if days < 2:
        return f"{hours} h {int(seconds % 3600 // 60)} min"
    return f"{days} d {int(seconds % 86400 // 3600)} h"
