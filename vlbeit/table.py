"""Tables on a terminal and in a file: drawn with rich on the one, aligned plain lines in the other."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any


def show(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "") -> None:
    """Print a table to standard output; nothing is cut off where the output is not a terminal."""
    cells = [[str(value) for value in row] for row in rows]
    if sys.stdout.isatty():
        _draw(columns, cells, title)
    else:
        print("\n".join(plain(columns, cells, title)))


def cell(value: Any) -> str:
    """A value as people read it: probabilities to four places, boxes in whole pixels, nothing for None."""
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) <= 1 else f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(f"{part:.0f}" if isinstance(part, float) else str(part) for part in value)
    return "" if value is None else str(value)


def between(interval: Sequence[float], signed: bool = False) -> str:
    """The two ends of an interval to two digits: `61.02 to 64.90`, signed for a difference."""
    low, high = interval
    return f"{low:+.2f} to {high:+.2f}" if signed else f"{low:.2f} to {high:.2f}"


def plain(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> list[str]:
    """The lines of a table: columns padded to their widest cell and two spaces apart."""
    table = [list(columns), *map(list, rows)]
    widths = [max(len(row[index]) for row in table) for index in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return [title, *lines] if title else lines


def _draw(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> None:
    from rich import box  # costs a tenth of a second, which `vlbeit tasks | less` need not pay
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, title=title or None, title_justify="left", box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*row)
    Console(markup=False, highlight=False).print(table)
