"""Where metrics go: a file of JSON lines, accelerate's trackers, the terminal. On the main process only.

A record is `{"step", "time", "total", "losses", "logs", "lr", "grad_norm", ...}` after training steps, or
`{"step", "time", "evaluation"}`.
"""

from __future__ import annotations

import json
import logging
import threading
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from rich.console import Console

from vlbeit import files
from vlbeit.engine.folder import write_errors
from vlbeit.engine.progress import Progress
from vlbeit.errors import UsageError
from vlbeit.files import finite

log = logging.getLogger(__name__)

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
    """TensorBoard, Weights & Biases, trackio, ... through accelerate; nested names are joined by a slash.

    The settings become hyperparameters. A run that goes on from step `start` goes on in its trackers too. UsageError
    where one of them does not start, for want of a login perhaps; one that fails later is left out from there on.
    """

    def __init__(
        self, accelerator: Accelerator, project: str, folder: Path, start: int, settings: Mapping[str, Any]
    ) -> None:
        self.accelerator = accelerator
        trackers = folder / "trackers"
        asked = {str(getattr(name, "value", name)) for name in accelerator.log_with}
        with write_errors(trackers):
            trackers.mkdir(parents=True, exist_ok=True)
            ids = {name: _same_id(trackers / f"{name}-id", start) for name in asked & {"wandb", "trackio"}}
        kwargs: dict[str, dict[str, Any]] = {
            "tensorboard": {"purge_step": start + 1},
            "wandb": {"name": folder.name, "dir": str(trackers), "id": ids.get("wandb"), "resume": "allow"},
            "trackio": {"name": f"{folder.name}-{ids.get('trackio')}", "resume": "allow"},  # knows runs by name alone
        }
        self._libraries = asked
        self._told, threading.excepthook = threading.excepthook, self._in_thread
        hyperparameters = {name: _plain(value) for name, value in flat(settings).items()}
        try:
            accelerator.init_trackers(project, hyperparameters, {n: kwargs[n] for n in sorted(asked & kwargs.keys())})
        except Exception as error:  # each library has its own
            threading.excepthook = self._told
            raise UsageError(
                f"engine.trackers={','.join(sorted(asked))} does not start ({_reason(error)}): log in there, set "
                "WANDB_MODE=offline for W&B, or leave it out"
            ) from error

    def write(self, record: Record) -> None:
        numbers = {name: value for name, value in flat(record).items() if name not in ("step", "time")}
        self._each(lambda tracker: tracker.log(numbers, step=record["step"]))

    def close(self) -> None:
        self._each(lambda tracker: tracker.finish())  # not `end_training`: it ends the process group, of one rank alone
        threading.excepthook = self._told

    def _each(self, act: Callable[[GeneralTracker], object]) -> None:
        """Nobody trains for a tracker: one that fails is named and left out, and training goes on."""
        for tracker in list(self.accelerator.trackers):
            try:
                act(tracker)
            except Exception as error:  # each library has its own
                self.accelerator.trackers.remove(tracker)
                log.warning("%s has failed and is left out from here on (%s)", tracker.name, _reason(error))

    def _in_thread(self, args: threading.ExceptHookArgs) -> None:
        """No traceback of a tracker's own thread: TensorBoard's next call fails for the same reason, which is told."""
        if type(args.thread).__module__.partition(".")[0] not in self._libraries:
            self._told(args)


def _same_id(file: Path, start: int) -> str:
    """The run's name among those of a tracker: made at its beginning, kept beside its files."""
    if start == 0 or not file.exists():
        files.write_text(file, uuid.uuid4().hex[:12])
    return file.read_text()


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _plain(value: Any) -> Any:
    """What hyperparameters may be: numbers and words."""
    return value if isinstance(value, bool | int | float | str) else "null" if value is None else str(value)


class Terminal(Sink):
    """A progress bar with speed, loss and learning rate; on anything but a terminal plain lines. To stderr."""

    def __init__(self, start: int, steps: int, console: Console | None = None) -> None:
        self.progress = Progress(steps, start, console)

    def step(self, step: int) -> None:
        self.progress.reach(step)

    def write(self, record: Record) -> None:
        if "evaluation" in record:
            self.progress.say(f"step {record['step']}  val  " + "  ".join(_short(record["evaluation"])))
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
