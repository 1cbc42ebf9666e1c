"""evaluation.json and the details beside it: what `vlbeit evaluate` found, written, and read back. No torch.

    {"overall": 61.2, ..., "split": "val", "metric": "overall", "interval": {"overall": [59.8, 62.7]},
     "interval_over": "questions", "data": {...}, "details": ["vqa_details.json"], ...}

Numbers stand flat. Training writes a smaller one, with `step`, whenever it exports better weights; details that lie
beside it then are of older weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vlbeit import files
from vlbeit.data.records import KINDS
from vlbeit.errors import DataError
from vlbeit.types import Evaluator, Records

Table = list[dict[str, Any]]
_UNREAD = ("image", "image_0", "image_1", "mask", "outlines")
"""Fields of a record that are large; all the rest says what is asked and what is right."""


class Findings(NamedTuple):
    """What evaluators have to say beside their numbers."""

    values: dict[str, Any]  # for evaluation.json
    details: dict[str, Any]  # evaluator -> JSON for its own file
    tables: list[Table]  # for the terminal


def collect(evaluators: Mapping[str, Any], controls: Mapping[str, Mapping[str, Evaluator]]) -> Findings:
    """Intervals, reports and details of evaluators that have such. `controls`: control -> its evaluators."""
    values: dict[str, Any] = {}
    details: dict[str, Any] = {}
    tables: list[Table] = []
    for name, evaluator in evaluators.items():
        if hasattr(evaluator, "intervals"):
            found = {number: [round(end, 4) for end in ends] for number, ends in evaluator.intervals().items()}
            values["interval"] = values.get("interval", {}) | found
            values["interval_over"] = evaluator.over
        if hasattr(evaluator, "report"):
            more, shown = evaluator.report({control: own[name] for control, own in controls.items()})
            values |= more
            tables += shown
        if hasattr(evaluator, "details"):
            details[name] = evaluator.details()
            tables += class_tables(details[name])
    return Findings(values, details, tables)


def write(folder: Path, suffix: str, numbers: Mapping[str, Any], findings: Findings) -> list[Path]:
    """Write evaluation{suffix}.json and a file of details for every evaluator that has any; the paths, in this order.

    The details come first: what evaluation.json names is there.
    """
    named = {name: folder / f"{name}_details{suffix}.json" for name in findings.details}
    target = folder / f"evaluation{suffix}.json"
    for name, path in named.items():
        files.write_json(path, findings.details[name])
    details = {"details": [path.name for path in named.values()]} if named else {}
    files.write_json(target, files.finite({**numbers, **details, **findings.values}), indent=2)
    return [target, *named.values()]


def class_tables(details: Any) -> list[Table]:
    """Of an evaluator's details, one table or several by name, those whose rows are classes."""
    return [table for table in _lists(details) if "class" in table[0]]


def scored_rows(details: Any) -> Table:
    """Of an evaluator's details the rows of samples with a score; empty where there are none."""
    lists = (table for table in _lists(details) if "score" in table[0])
    return next((table for table in lists if {"sample_id", "question_id"} & set(table[0])), [])


def fingerprint(records: Records, kind: str) -> str:
    """16 hexadecimal digits that differ where the samples, or what is right about them, do. Pictures are not read."""
    digest = hashlib.sha256()
    for name in KINDS.get(kind, ("id",)):
        if name not in _UNREAD:
            for value in records.column(name):
                digest.update(json.dumps(value, ensure_ascii=False, default=str).encode())
                digest.update(b"\n")
    return digest.hexdigest()[:16]


def read_json(path: Path) -> Any:
    """A JSON file. Raises DataError, naming it, where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: vlbeit evaluate {path.parent} writes it") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): vlbeit evaluate {path.parent} writes it anew") from error


def read_evaluation(path: Path) -> dict[str, Any]:
    """The contents of an evaluation.json. Raises DataError as `read_json` does, and for what is no evaluation."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise DataError(f"{path} holds no evaluation: vlbeit evaluate {path.parent} writes it anew")
    return found


def main_number(evaluation: Mapping[str, Any]) -> tuple[str, float] | None:
    """Name and value of the number that a run is known by: that of `metric`, in older files the first; None without."""
    numbers = {
        name: value
        for name, value in evaluation.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name != "step"
    }
    name = str(evaluation.get("metric") or next(iter(numbers), ""))
    return (name, numbers[name]) if name in numbers else None


def _lists(details: Any) -> Iterator[Table]:
    tables = details.values() if isinstance(details, dict) else [details]
    lists = (table for table in tables if isinstance(table, list) and table)
    return (table for table in lists if all(isinstance(row, dict) for row in table))
