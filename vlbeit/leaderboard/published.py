"""Scores as tables: what a server's result file says, and the rows that others have published."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

NAMES = ("overall", "yes/no", "number", "other")  # in the order of the leaderboard
Scores = dict[str, float]  # NAMES -> percent


class Row(NamedTuple):
    """One row of the leaderboard."""

    method: str
    split: str
    scores: Mapping[str, float]

    def cells(self) -> tuple[str, ...]:
        """For a table: method, split, the scores in the order of NAMES."""
        return self.method, self.split, *(f"{self.scores[name]:.2f}" if name in self.scores else "" for name in NAMES)


# Leaderboard of the VQA Challenge 2021, test-standard, percent: the order of NAMES.
PUBLISHED = tuple(
    Row(method, "test-standard", dict(zip(NAMES, scores, strict=True)))
    for method, *scores in (
        ("VLMo", 81.30, 94.68, 67.26, 72.87),
        ("AliceMind-MMU", 81.26, 93.55, 72.01, 72.67),
        ("SimVLM", 80.34, 93.29, 66.54, 72.23),
        ("SFE-NLP", 79.47, 92.45, 76.57, 68.82),
        ("UNIMO", 78.40, 93.10, 63.06, 69.12),
        ("ROSITA", 78.34, 92.66, 63.24, 69.33),
    )
)


def beside_published(own: Sequence[Row]) -> list[Row]:
    """Own rows and the published ones, the best overall first; own ones are marked."""
    rows = [*(row._replace(method=f"> {row.method}") for row in own), *PUBLISHED]
    return sorted(rows, key=lambda row: -row.scores.get("overall", 0.0))


def read_scores(content: bytes, phase: str) -> dict[str, Scores]:
    """Split -> scores of a server's result file; {} where it holds none.

    A test-dev phase has [{"test-dev": {...}}], the other phases test-dev and their own in one list; scores without a
    split are those of `phase`.
    """
    value = _parse(content.decode("utf-8", errors="replace"))
    found: dict[str, Scores] = {}
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, dict) and (flat := _scores(part)):
            found[phase] = flat
        elif isinstance(part, dict):
            found.update({str(split): scores for split, each in part.items() if (scores := _scores(each))})
    return found


def search_scores(stdout: bytes, phase: str) -> dict[str, Scores]:
    """Scores in a line of the evaluation's output: it has held them where the result file was empty or lost."""
    for line in reversed(stdout.splitlines()):
        if found := read_scores(line, phase):
            return found
    return {}


def _scores(value: Any) -> Scores:
    """The scores of a mapping; {} for anything without an overall one."""
    if not isinstance(value, dict) or not isinstance(value.get("overall"), int | float):
        return {}
    return {name: float(value[name]) for name in NAMES if isinstance(value.get(name), int | float)}


def _parse(text: str) -> Any:
    """JSON, or Python's own way to print the same value, which evaluation scripts write too; None for neither."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
