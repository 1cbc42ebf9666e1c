"""Mistakes of the user: one line with the place and the remedy, no traceback."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """Base of what the command line prints in one line; `exit_code` is the process's exit status."""

    exit_code = 1
    quiet = False  # another process of the run says it


class UsageError(UserError):
    """A wrong key, value, name or combination on the command line (exit code 2)."""

    exit_code = 2


class DataError(UserError):
    """Files that are missing, damaged or contradict each other, or a run that cannot go on (exit code 1)."""


class MissingSplitError(DataError):
    """The data has other splits than the one that was asked for."""


class MissingColumnError(DataError):
    """A table lacks a column that every record of the kind has."""


class Interrupted(UserError):
    """Training was asked to stop by a signal, and the same command goes on (exit code 130)."""

    exit_code = 130
    agreed = True  # whether all processes of the run were told
    signal: int | None = None  # the one that this process got; None: another process was asked


def some(items: Sequence[object], most: int = 3) -> str:
    """`3 (a, b, c)` or `80 (a, b, c, ...)`: a count and the first few, for messages."""
    dots = ", ..." if len(items) > most else ""
    return f"{len(items)} ({', '.join(map(str, items[:most]))}{dots})"
