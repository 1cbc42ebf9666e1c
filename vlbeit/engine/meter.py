"""Means over the steps since the last line of metrics."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from vlbeit import dist
from vlbeit.engine.speed import Speed
from vlbeit.types import StepOutput


class Meter:
    """Adds up losses, logs and speed of the steps; `flush` gives the means and starts anew.

    A log of the name of a loss is that loss without its weight: it is what is shown, the weighted ones make `total`.
    """

    def __init__(self, speed: Speed) -> None:
        self.speed = speed
        self.restart(samples=0)

    def restart(self, samples: int) -> None:
        """Forget everything, and start the clock at `samples` seen: also after work that is not training."""
        self.steps = 0  # those whose losses are in the means
        self.skipped = 0
        self.samples = samples
        self.losses: dict[str, float] = {}
        self.grad_norm = 0.0
        self.logs: dict[str, Tensor] = {}  # name -> (sum, count) of this process, on its device
        self._of_step: dict[str, Tensor] = {}  # the same of the step that is being made
        self.speed.restart()
        self.started = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time inside is not training."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.started += time.perf_counter() - began

    @property
    def is_empty(self) -> bool:
        """Whether no step was made since the last line."""
        return not self.steps + self.skipped

    def add_logs(self, output: StepOutput) -> None:
        """The logs of one micro-batch; stays on the device."""
        for name, (total, count) in output.logs.items():
            kind = torch.promote_types(total.dtype, torch.float32)
            pair = torch.stack([total.detach().to(kind), count.detach().to(total.device, kind)])
            self._of_step[name] = self._of_step[name] + pair if name in self._of_step else pair

    def add_step(self, losses: dict[str, float], grad_norm: float) -> None:
        """The losses of one optimizer step, already over all processes."""
        for name, value in losses.items():
            self.losses[name] = self.losses.get(name, 0.0) + value
        for name, pair in self._of_step.items():
            self.logs[name] = self.logs[name] + pair if name in self.logs else pair
        self._of_step = {}
        self.grad_norm += grad_norm if math.isfinite(grad_norm) else 0.0  # fp16 skips such a step
        self.steps += 1

    def skip_step(self) -> None:
        """A step that changed nothing: what it gave is not in the means."""
        self._of_step = {}
        self.skipped += 1

    def flush(self, samples: int) -> dict[str, object]:
        """Means since the last flush, over all processes, at `samples` seen; every process must call."""
        seconds = time.perf_counter() - self.started
        weighted, logs = {name: value / self.steps for name, value in self.losses.items()}, self._mean_logs()
        record: dict[str, object] = {
            "total": sum(weighted.values()) if self.steps else math.nan,
            # as an evaluation gives them: without their weights
            "losses": {name: logs.get(name, value) for name, value in weighted.items()},
            "logs": logs,
            "grad_norm": self.grad_norm / self.steps if self.steps else math.nan,
            **({"skipped": self.skipped} if self.skipped else {}),
            "samples": samples,
            "samples_per_second": (samples - self.samples) / seconds,
            "speed": self.speed.numbers(seconds),
        }
        self.restart(samples)
        return record

    def _mean_logs(self) -> dict[str, float]:
        if not self.logs:
            return {}
        names = sorted(self.logs)
        sums = dist.sum_over_ranks(torch.stack([self.logs[name] for name in names])).tolist()
        return {name: total / count if count else math.nan for name, (total, count) in zip(names, sums, strict=True)}
