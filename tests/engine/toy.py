"""A toy run of the engine: linear regression with dropout and two losses that have different numbers of terms.

Also a script, for what needs processes of its own: `python toy.py FOLDER [--steps N] [--kill-at N] ...`.
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlbeit import dist
from vlbeit.config import OptimConfig
from vlbeit.engine.callbacks import Callbacks
from vlbeit.engine.device import make_accelerator
from vlbeit.engine.folder import RunFolder
from vlbeit.engine.loop import Engine
from vlbeit.engine.optim import build_optimizer
from vlbeit.engine.plan import FitPlan
from vlbeit.engine.schedule import make_schedule
from vlbeit.objectives.base import Objective
from vlbeit.types import Batch, StepOutput

FEATURES = 5
GLOBAL_BATCH = 8


class Regression(Objective):
    """`fit`: mean squared error over samples. `large`: the same over the samples of large target, of which a
    micro-batch may have few or none."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.linear = nn.Linear(FEATURES, 1)
        self.scale = nn.Parameter(torch.ones(()))
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        with torch.no_grad():
            self.linear.weight.normal_(generator=generator)
            self.linear.bias.zero_()

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"fit": torch.tensor(len(batch["y"])), "large": (batch["y"] > 1).sum()}

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> StepOutput:
        predicted_B = self.scale * self.linear(self.dropout(batch["x"])).squeeze(1)
        error_B = (predicted_B - batch["y"]).square()
        large_B = batch["y"] > 1
        losses = {"fit": error_B.sum() / counts["fit"], "large": 0.5 * error_B[large_B].sum() / counts["large"]}
        return StepOutput(losses, {"error": (error_B.sum(), torch.tensor(len(error_B)))})

    def after_step(self) -> None:
        self.calls += 1

    def describe(self) -> dict[str, Any]:
        return {"heads": {}}


class Samples:
    """Step t takes the next samples of an endless seeded stream; each process its share, in micro-batches."""

    def __init__(
        self, micro_batch: int = GLOBAL_BATCH, *, nan_at: int | None = None, bad_at: int | None = None
    ) -> None:
        self.micro_batch, self.nan_at, self.bad_at = micro_batch, nan_at, bad_at

    def steps(self, start: int, stop: int) -> Iterator[list[Batch]]:
        for step in range(start, stop):
            own = GLOBAL_BATCH // dist.world_size()
            first = dist.rank() * own
            yield [self.batch(step, i, i + self.micro_batch) for i in range(first, first + own, self.micro_batch)]

    def batch(self, step: int, start: int, stop: int) -> Batch:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(GLOBAL_BATCH, FEATURES, generator=generator)
        y = x.sum(1) + 0.1 * torch.randn(GLOBAL_BATCH, generator=generator)
        if step == self.nan_at:
            y[GLOBAL_BATCH - 1] = float("nan")
        batch: Batch = {"x": x[start:stop], "y": y[start:stop]}
        batch["sample_id"] = [f"step{step}-sample{i}" for i in range(start, stop)]
        batch["bad"] = [batch["sample_id"][0]] if step == self.bad_at else []
        return batch


def distance(model: nn.Module) -> dict[str, float]:
    """How far the weights are from those that made the data."""
    return {"distance": float((model.scale * model.linear.weight - 1).norm())}


def export(weights: dict[str, Tensor], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(weights, folder / "weights.pt")


def make_engine(folder: str | Path | None = None, *, stream: Any = None, **settings: Any) -> Engine:
    """An engine over the toy; `settings` go to the plan, but for dropout, micro_batch, lr, optimizer, callbacks."""
    objective = Regression(settings.pop("dropout", 0.2))
    micro_batch = settings.pop("micro_batch", GLOBAL_BATCH // dist.world_size())
    config = OptimConfig(name=settings.pop("optimizer", "adamw"), lr=settings.pop("lr", 0.05), warmup_steps=2)
    callbacks = settings.pop("callbacks", Callbacks(distance, export))
    precision = settings.get("precision", "fp32")
    groups = [
        {"params": [objective.linear.weight], "weight_decay": 0.05, "lr_scale": 1.0},
        {"params": [objective.linear.bias, objective.scale], "weight_decay": 0.0, "lr_scale": 0.5},
    ]
    settings = {"steps": 12, "save_every": 4, "log_every": 3, "evaluate_every": 5, "metric": "-distance", **settings}
    plan = FitPlan(schedule=make_schedule(config, settings["steps"]), **settings)
    accelerator = make_accelerator("cpu", precision)
    run = None if folder is None else RunFolder(folder)
    stream = stream or Samples(micro_batch)
    return Engine(objective, build_optimizer(groups, config), stream, plan, accelerator, run, callbacks)


class Trouble(Samples):
    """Sends this process a signal while the batch of a step is being read."""

    def __init__(self, micro_batch: int, at: int, number: int) -> None:
        super().__init__(micro_batch)
        self.at, self.number = at, number

    def steps(self, start: int, stop: int) -> Iterator[list[Batch]]:
        for step, batches in enumerate(super().steps(start, stop), start):
            if step == self.at:
                os.kill(os.getpid(), self.number)
            yield batches


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--kill-at", type=int, default=-1)
    parser.add_argument("--micro-batch", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--precision", default="fp32")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    stream = Trouble(arguments.micro_batch, arguments.kill_at, signal.SIGKILL)
    make_accelerator("cpu", arguments.precision)  # the process group, before anything asks for ranks
    make_engine(
        arguments.folder, stream=stream, dropout=arguments.dropout, precision=arguments.precision, ema_decay=0.9
    ).fit()


if __name__ == "__main__":
    main()
