"""Where metrics go: a file of JSON lines, accelerate's trackers, the terminal. On the main process only.

A record is `{"step", "time", "total", "losses", "logs", "lr", "grad_norm", ...}` after training steps, or
`{"step", "time", "evaluation"}`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console

from vlbeit.engine.folder import write_errors
from vlbeit.engine.progress import Progress
from vlbeit.files import finite

Record = Mapping[str, Any]


class Sink:
    """Takes what it is interested in."""

    def step(self, step: int) -> None:
        """An optimizer step is done."""

    def write(self, record: Record) -> None:
        """A record of metrics is there."""

    def close(self) -> None:
        """Training has ended, well or not."""


class JsonLines(Sink):
    """Appends each record as one line of JSON; NaN and Inf become null."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, record: Record) -> None:
        with write_errors(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(finite(record), allow_nan=False, ensure_ascii=False) + "\n")


class Trackers(Sink):
    """TensorBoard, Weights & Biases, ... through accelerate; nested names are joined by a slash."""

    def __init__(self, accelerator: Accelerator, project: str) -> None:
        self.accelerator = accelerator
        accelerator.init_trackers(project)

    def write(self, record: Record) -> None:
        self.accelerator.log({k: v for k, v in flat(record).items() if k not in ("step", "time")}, step=record["step"])

    def close(self) -> None:
        self.accelerator.end_training()


class Terminal(Sink):
    """A progress bar with speed, loss and learning rate; on anything but a terminal plain lines. To stderr."""

    def __init__(self, start: int, steps: int, console: Console | None = None) -> None:
        self.progress = Progress(steps, start, console)

    def step(self, step: int) -> None:
        self.progress.reach(step)

    def write(self, record: Record) -> None:
        if "evaluation" in record:
            self.progress.say(f"step {record['step']}  " + "  ".join(_short(record["evaluation"])))
        elif self.progress.has_bar:
            self.progress.describe(self._summary(record))
        else:
            place = f"step {record['step']}/{self.progress.total}"
            self.progress.say(f"{place}  {self._summary(record)}  ETA {self.progress.eta}")

    def close(self) -> None:
        self.progress.close()

    def _summary(self, record: Record) -> str:
        losses = _short(record["losses"]) if len(record["losses"]) > 1 else []
        words = [f"loss {record['total']:.4g}", *losses, f"lr {record['lr']:.3g}"]
        return "  ".join([*words, f"{record['samples_per_second']:.1f} samples/s"])


def flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one: {"losses": {"mim": 1}} -> {"losses/mim": 1}."""
    result: dict[str, Any] = {}
    for name, value in record.items():
        result |= flat(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return result


def _short(numbers: Mapping[str, float]) -> list[str]:
    return [f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in numbers.items()]
