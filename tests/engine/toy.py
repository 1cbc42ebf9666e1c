"""A toy run of the engine: linear regression with dropout and two losses that have different numbers of terms.

Also a script, for what needs processes of its own: `python toy.py kill|ranks|deaths FOLDER`.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlbeit import dist, files
from vlbeit.config import OptimConfig
from vlbeit.engine import checkpoint, folder
from vlbeit.engine.callbacks import Callbacks
from vlbeit.engine.device import make_accelerator
from vlbeit.engine.evaluate import run_evaluators
from vlbeit.engine.folder import RunFolder
from vlbeit.engine.loop import Engine
from vlbeit.engine.optim import build_optimizer
from vlbeit.engine.plan import FitPlan
from vlbeit.engine.schedule import make_schedule
from vlbeit.errors import UserError
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
    return {"distance": float((model.scale.detach() * model.linear.weight.detach() - 1).norm())}


def export(weights: dict[str, Tensor], path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    torch.save(weights, path / "weights.pt")


def make_engine(path: str | Path | None = None, *, stream: Any = None, **settings: Any) -> Engine:
    """An engine over the toy; `settings` go to the plan, but for dropout, micro_batch, lr, optimizer, callbacks
    and schedule_steps."""
    objective = Regression(settings.pop("dropout", 0.2))
    schedule_steps = settings.pop("schedule_steps", None)  # of a run that is to go on
    micro_batch = settings.pop("micro_batch", GLOBAL_BATCH // dist.world_size())
    config = OptimConfig(name=settings.pop("optimizer", "adamw"), lr=settings.pop("lr", 0.05), warmup_steps=2)
    callbacks = settings.pop("callbacks", Callbacks(distance, export))
    precision, trackers = settings.get("precision", "fp32"), settings.pop("trackers", ())
    groups = [
        {"params": [objective.linear.weight], "weight_decay": 0.05, "lr_scale": 1.0},
        {"params": [objective.linear.bias, objective.scale], "weight_decay": 0.0, "lr_scale": 0.5},
    ]
    settings = {"steps": 12, "save_every": 4, "log_every": 3, "evaluate_every": 5, "metric": "-distance", **settings}
    plan = FitPlan(schedule=make_schedule(config, schedule_steps or settings["steps"]), **settings)
    accelerator = make_accelerator("cpu", precision, trackers, path or ".")
    run = None if path is None else RunFolder(path)
    stream = stream or Samples(micro_batch)
    return Engine(objective, build_optimizer(groups, config), stream, plan, accelerator, run, callbacks)


def in_step(engine: Engine, step: int, action: Callable[[], object]) -> Engine:
    """The engine, which does something in the first forward pass of a step."""
    done = []

    def acting(*_: Any) -> None:
        if engine.state.step == step and engine.objective.training and not done:
            done.append(action)
            action()

    engine.objective.register_forward_pre_hook(acting)
    return engine


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


KILLS = {
    "first batch": (None, "", 0),
    "any step": (None, "", 6),
    "weights written": (checkpoint.torch, "save", 2),
    "not yet renamed": (folder, "_flush_tree", 2),
    "not yet named": (folder, "write_json", 2),
    "naming": (files.os, "replace", 4),  # environment.json, evaluation.json and last.json come before
    "old state moved away": (folder.shutil, "rmtree", 2),
}
"""Places where a run is killed, as it saves for the second time: a function and the number of the call of it."""


def killed_runs(root: Path) -> None:
    """One child for each place; all imports are made before."""
    for name, (module, function, call) in KILLS.items():
        child = os.fork()
        if child == 0:
            stream = Trouble(2, -1, signal.SIGKILL)
            if module is None:
                stream.at = call
            else:
                setattr(module, function, deadly(getattr(module, function), call))
            make_engine(root / name, stream=stream, ema_decay=0.9).fit()
            os._exit(0)
        os.waitpid(child, 0)


def deadly(function: Callable[..., Any], call: int) -> Callable[..., Any]:
    """The function, which at a call kills its process instead."""
    numbers = itertools.count(1)

    def killing(*arguments: Any, **options: Any) -> Any:
        if next(numbers) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    return killing


class Stopping:
    """An evaluator that gets a signal on rank 1, in the second of its batches."""

    batches = 0

    def update(self, model: nn.Module, batch: Batch) -> None:
        self.batches += 1
        if dist.rank() == 1 and self.batches == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
            raise AssertionError("not broken off")

    def compute(self) -> dict[str, float]:
        raise AssertionError("one of the processes has not seen all")


def broken_off_on_rank_1(model: nn.Module) -> dict[str, float]:
    batches = [{"sample_id": ["a"]}] * 3
    return run_evaluators(model, batches, {"it": Stopping()}, make_accelerator("cpu", "fp64"), 6)


def one_of_two(root: Path) -> None:
    """What one of two processes does: a whole run, and those that end early, by a NaN on rank 1, say."""
    make_accelerator("cpu", "fp64")  # the process group, before anything asks for ranks
    own = {"micro_batch": 2, "dropout": 0.0, "precision": "fp64"}
    trackers = ["tensorboard"] * bool(find_spec("tensorboard"))  # its end must not be that of the process group
    make_engine(root / "whole", stream=Samples(2, bad_at=3), ema_decay=0.9, trackers=trackers, **own).fit()
    log = {}
    stop_at = 5 if dist.rank() == 1 else -1
    for name, stream in {"nan": Samples(2, nan_at=2), "stop": Trouble(2, stop_at, signal.SIGINT)}.items():
        try:
            make_engine(root / name, stream=stream, **own).fit()
        except UserError as error:
            log[name] = str(error)
    try:
        make_engine(root / "evaluation", callbacks=Callbacks(broken_off_on_rank_1, export), **own).fit()
    except UserError as error:
        log["evaluation"] = str(error)
    (root / "sinks" / "environment.json").mkdir(parents=True, exist_ok=True)  # what cannot be opened for writing
    try:
        make_engine(root / "sinks", **own).fit()
    except UserError as error:
        log["sinks"] = str(error)
    (root / f"rank{dist.rank()}.json").write_text(json.dumps(log))
    dist.barrier()


DEATHS = {
    "step": (1, lambda engine: in_step(engine, 6, die)),
    "evaluation": (1, lambda engine: engine.callbacks.evaluate.deadly_after(2)),
    "save": (0, lambda engine: setattr(checkpoint.torch, "save", deadly(torch.save, 2))),
}
"""Moments at which one of two processes dies: its rank, and how."""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Measured:
    """`distance` over what both processes have; may be deadly."""

    calls, last = 0, sys.maxsize

    def deadly_after(self, calls: int) -> None:
        self.last = calls

    def __call__(self, model: nn.Module) -> dict[str, float]:
        self.calls += 1
        if self.calls == self.last:
            die()
        dist.barrier()
        return distance(model)


def deaths(root: Path) -> None:
    """A whole run of two processes, then for each moment one that is broken off there and one that goes on."""
    codes = {"whole": pair(root / "whole")}
    for name, (rank, deadly_for) in DEATHS.items():
        codes[name] = pair(root / name, rank, deadly_for)
        codes[f"{name} saved"] = [RunFolder(root / name).last_step()]
        codes[f"{name} again"] = pair(root / name)
    (root / "codes.json").write_text(json.dumps(codes))


def pair(path: Path, doomed: int = -1, deadly_for: Callable[[Engine], object] | None = None) -> list[int]:
    """Two processes that train at `path`, all imports made before; their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = []
    for rank in (0, 1):
        children.append(os.fork())
        if children[-1] == 0:
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
            os.environ |= {**place, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            code = 1
            with suppress(Exception):  # the other process is gone
                make_accelerator("cpu")
                engine = make_engine(path, micro_batch=2, ema_decay=0.9, callbacks=Callbacks(Measured(), export))
                if rank == doomed and deadly_for is not None:
                    deadly_for(engine)
                engine.fit()
                dist.leave()
                code = 0
            os._exit(code)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"kill": killed_runs, "ranks": one_of_two, "deaths": deaths}[sys.argv[1]](Path(sys.argv[2]))
