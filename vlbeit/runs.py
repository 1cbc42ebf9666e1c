"""The runs of a folder at a glance, read from their small files; no torch, no Hydra."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from vlbeit.engine.folder import RunFolder
from vlbeit.errors import DataError


class RunLine(NamedTuple):
    """One line of `vlbeit runs`."""

    run: str
    stage: str
    task: str
    step: str  # of the last saved state
    evaluation: str  # its first numbers


def list_runs(folder: Path) -> list[RunLine]:
    """The runs directly in `folder`, by name; a damaged one says so. DataError without the folder."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: `vlbeit train stage=mim` makes the first run in runs/")
    return [_line(RunFolder(path)) for path in sorted(folder.iterdir()) if RunFolder(path).exists()]


def _line(run: RunFolder) -> RunLine:
    try:
        config = run.stored_config() or {}
        step = run.last_step()
        numbers = json.loads(run.evaluation_file.read_text()) if run.evaluation_file.exists() else {}
    except (DataError, OSError, ValueError) as error:
        return RunLine(str(run.path), "", "", "", f"damaged: {error}")
    stage, task = ((config.get(group) or {}).get("name", "") for group in ("stage", "task"))
    shown = [f"{name} {value:.4g}" for name, value in numbers.items() if isinstance(value, int | float)][:4]
    return RunLine(str(run.path), stage, task, "" if step is None else str(step), ", ".join(shown))
