"""The runs of a folder at a glance, read from their small files; no torch, no Hydra."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vlbeit import evaluation_file, table
from vlbeit.engine.folder import RunFolder
from vlbeit.errors import DataError

COLUMNS = ("run", "task", "tower", "data", "metric", "95 %", "cost")
_GROUPS = ("stage", "task", "model", "data")


class RunLine(NamedTuple):
    """One line of `vlbeit runs`."""

    run: str
    task: str = ""  # of a pre-training run, the stage
    tower: str = ""  # stage and model
    data: str = ""
    metric: str = ""  # name of the number that the run is known by
    value: float | None = None
    interval: tuple[float, float] | None = None  # 95 %
    over: str = ""  # what the interval was drawn over
    step: int | None = None  # of the last saved state
    planned: int | None = None  # steps that it was to make
    samples: int | None = None  # seen in training, with repeats
    seconds: float | None = None  # of its training steps; without start-up, evaluation, saving, pauses
    device: str = ""
    damaged: str = ""  # what is wrong with its files; then the rest is empty

    @property
    def is_unfinished(self) -> bool:
        """Whether steps are left that it was to make."""
        return self.step is not None and self.planned is not None and self.step < self.planned


def list_runs(folder: Path) -> list[RunLine]:
    """The runs directly in `folder`, by name; a damaged one says so. DataError without the folder."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: `vlbeit train stage=mim` makes the first run in runs/")
    return [read_run(path) for path in sorted(folder.iterdir()) if RunFolder(path).exists()]


def following(found: Sequence[RunLine]) -> str:
    """What to do with the runs: evaluate one of a task that was not, else compare two of the same task and data."""
    whole = [run for run in found if not run.damaged and run.step is not None and not run.is_unfinished]
    tasks = [run for run in whole if run.task != run.tower.partition(" ")[0]]
    if rest := [run for run in tasks if not is_measured(run.run)]:
        return f"vlbeit evaluate {shlex.quote(rest[-1].run)}"
    for last in reversed(tasks):
        others = [run for run in tasks if run != last and (run.task, run.data) == (last.task, last.data)]
        if others:
            return shlex.join(["vlbeit", "compare", others[-1].run, last.run])
    unfinished = [run for run in found if run.is_unfinished]
    if not whole and unfinished:
        from vlbeit import going_on  # Hydra, and of a stage torch

        return going_on.command(unfinished[-1].run)
    return f"vlbeit train stage={whole[-1].tower.partition(' ')[0]} --help" if whole else "vlbeit train stage=mim"


def is_measured(run: str) -> bool:
    """Whether `vlbeit evaluate` has been there since training, which writes a smaller file."""
    try:
        return "step" not in evaluation_file.read_evaluation(RunFolder(run).evaluation_file)
    except DataError:
        return False


def cells(line: RunLine) -> tuple[str, ...]:
    """The line as `COLUMNS` show it."""
    if line.damaged:
        return (line.run, *[""] * (len(COLUMNS) - 2), f"damaged: {line.damaged}")
    number = f"{line.metric} {line.value:.4g}" if line.value is not None else "-"
    interval = "-" if line.interval is None else f"{table.between(line.interval)} ({line.over})"
    return (line.run, line.task, line.tower, line.data, number, interval, _cost(line))


def read_run(path: str | Path) -> RunLine:
    """One run; a damaged one says so."""
    try:
        return _read(RunFolder(path))
    except (DataError, OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        return RunLine(str(path), damaged=" ".join(str(error).split()))


def _read(run: RunFolder) -> RunLine:
    """Raises whatever a damaged file makes of it."""
    config = run.stored_config() or {}
    step = run.last_step()
    evaluation = evaluation_file.read_evaluation(run.evaluation_file) if run.evaluation_file.exists() else {}
    environment = evaluation_file.read_json(run.environment_file) if run.environment_file.exists() else {}
    stage, task, model, data = ((config.get(group) or {}).get("name", "") for group in _GROUPS)
    metric, value = evaluation_file.main_number(evaluation) or ("", None)
    interval = evaluation.get("interval", {}).get(metric)
    size = config.get("global_batch_size")
    return RunLine(
        run=str(run.path),
        task=task or stage,
        tower=_tower(stage, model, config.get("model") or {}),
        data=data,
        metric=metric,
        value=value,
        interval=None if interval is None else (float(interval[0]), float(interval[1])),
        over=str(evaluation.get("interval_over", "")) if interval else "",
        step=step,
        planned=run.planned_steps(),
        samples=step * size if step is not None and isinstance(size, int) else None,
        seconds=_seconds(run.metrics_file),
        device=str(environment.get("device", "")),
    )


def _tower(stage: str, model: str, settings: Mapping[str, Any]) -> str:
    """`vl base`, and foreign towers where it has such."""
    foreign = [str(settings.get(name, "own")) for name in ("image_tower", "text_tower")]
    return " ".join([stage, model, *(name for name in foreign if name != "own")]).strip()


def _seconds(metrics: Path) -> float | None:
    """Seconds that the training steps took: samples over samples per second, record by record of metrics.jsonl.

    Start-up, evaluation, saving and pauses between two commands are not in it. None without a record.
    """
    total, seen, known = 0.0, 0, False
    lines = metrics.read_text(encoding="utf-8", errors="replace").splitlines() if metrics.exists() else []
    for line in lines:
        try:
            record = json.loads(line)
            samples, speed = record["samples"], record["samples_per_second"]
            total, seen, known = total + (samples - seen) / speed, samples, True
        except (ValueError, KeyError, TypeError, ZeroDivisionError):
            continue  # an evaluation, or torn by a kill, which the next training mends
    return round(total, 1) if known else None


def _cost(line: RunLine) -> str:
    """`2000 steps, 64000 samples, 0:01:15, cpu`: what is known of it."""
    if line.step is None:
        return "no saved state"
    parts = [f"{line.step} of {line.planned} steps" if line.is_unfinished else f"{line.step} steps"]
    if line.samples is not None:
        parts.append(f"{line.samples} samples")
    if line.seconds is not None:
        whole = round(line.seconds)
        parts.append(f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}")
    return ", ".join([*parts, *filter(None, [line.device])])
