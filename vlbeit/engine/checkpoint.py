"""A state folder's files. Nothing is unpickled freely.

Whole: weights as safetensors, optimizer and counters through torch; written by the main process. Sharded: tensors in
the files of torch's distributed checkpoint (`vlbeit.engine.shard_files`), every process its own; counters as before.
Either kind is read back by any number of processes, whole or sharded.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vlbeit import dist
from vlbeit.engine import deepspeed, shard_files
from vlbeit.engine.moments import (
    Layout,
    load_moments,
    load_optimizer_state,
    moments_of,
    options_of,
    whole_optimizer_state,
)
from vlbeit.engine.sharded import ShardedAverage, load_whole, whole
from vlbeit.engine.state import TrainingState
from vlbeit.errors import DataError

WEIGHTS, AVERAGED, PROGRESS = "model.safetensors", "ema.safetensors", "progress.pt"


class Trained(NamedTuple):
    """What of a run changes while it trains, besides its counters."""

    objective: nn.Module
    optimizer: torch.optim.Optimizer
    averaged: nn.Module | ShardedAverage | None  # EMA of the objective
    scaler: Any | None  # gradient scaler of fp16
    layout: Layout | None = None  # given where sharding has parted groups
    deepspeed: Any | None = None  # DeepSpeed's engine, where it trains

    def by_name(self) -> dict[str, nn.Parameter]:
        return dict(self.objective.named_parameters())


class Snapshot(Protocol):
    """A state as it is to be written."""

    @property
    def by_all(self) -> bool:
        """Whether every process has its part to write, not the main one alone."""
        ...

    def write(self, folder: Path) -> None: ...


class WholeSnapshot(NamedTuple):
    """Whole tensors on the CPU of the main process; elsewhere empty."""

    weights: dict[str, Tensor]
    averaged: dict[str, Tensor] | None
    progress: dict[str, Any]
    by_all: bool = False

    def write(self, folder: Path) -> None:
        """Fill `folder` with everything that going on needs, to the bit."""
        save_file(self.weights, folder / WEIGHTS)
        if self.averaged is not None:
            save_file(self.averaged, folder / AVERAGED)
        _write_progress(folder, self.progress)


class ShardedSnapshot(NamedTuple):
    """The parts of this process."""

    tensors: dict[str, Tensor]
    progress: dict[str, Any]
    group: Any = None  # process group to agree in; None: the default one
    by_all: bool = True

    def write(self, folder: Path) -> None:
        """Add the files of this process to `folder`; all processes do so, and none returns before all have written."""
        if dist.is_main():
            _write_progress(folder, self.progress)
        shard_files.write(folder, self.tensors, self.group)


def snapshot_whole(trained: Trained, state: TrainingState, *, keep: bool = False) -> WholeSnapshot:
    """All processes take part. With `keep`, training may go on before it is written: nothing is shared with it."""
    progress = {
        "state": state.to_dict(),
        "optimizer": whole_optimizer_state(trained.optimizer, trained.by_name(), trained.layout),
        "scaler": None if trained.scaler is None else trained.scaler.state_dict(),
    }
    weights = weights_of(trained.objective, keep=keep)
    averaged = None if trained.averaged is None else weights_of(trained.averaged, keep=keep)
    return WholeSnapshot(weights, averaged, _on_cpu(progress) if keep else progress)


def snapshot_shards(
    trained: Trained, state: TrainingState, *, keep: bool = False, group: Any = None
) -> ShardedSnapshot:
    """As `snapshot_whole`, of the parts of this process; nothing is gathered."""
    tensors, plain = moments_of(trained.optimizer, trained.by_name())
    tensors = {f"optimizer/{name}": value for name, value in tensors.items()}
    for part, source in (("model", trained.objective), ("ema", trained.averaged)):
        if source is not None:
            tensors |= {f"{part}/{name}": value.detach() for name, value in source.state_dict().items()}
    progress = {
        "state": state.to_dict(),
        "options": options_of(trained.optimizer, trained.layout),
        "plain": plain,
        "scaler": None if trained.scaler is None else trained.scaler.state_dict(),
    }
    if keep:
        tensors, progress = shard_files.staged(tensors), _on_cpu(progress)
    return ShardedSnapshot(tensors, progress, group)


def snapshot_deepspeed(trained: Trained, state: TrainingState) -> deepspeed.DeepSpeedSnapshot:
    """As `snapshot_whole`, in DeepSpeed's files; the averaged weights, which it does not know, in ours."""
    averaged = None if trained.averaged is None else (AVERAGED, weights_of(trained.averaged))
    return deepspeed.DeepSpeedSnapshot(trained.deepspeed, state, averaged)


def write_state(folder: Path, trained: Trained, state: TrainingState) -> None:
    """Fill `folder` with everything that going on needs, to the bit."""
    snapshot_whole(trained, state).write(folder)


def read_weights(folder: Path, objective: nn.Module) -> None:
    """Restore the objective's weights alone; DataError as `read_state`."""
    with _named(folder):
        if shard_files.are_in(folder):
            shard_files.read(folder, _targets("model", objective))
        else:
            load_whole(objective, load_file(folder / WEIGHTS))


def read_state(folder: Path, trained: Trained) -> TrainingState:
    """Restore all from `folder`; DataError where a file is missing, damaged or of another model."""
    with _named(folder):
        if trained.deepspeed is not None:
            if trained.averaged is not None:
                load_whole(trained.averaged, load_file(folder / AVERAGED))
            return deepspeed.read(folder, trained.deepspeed)
        progress = torch.load(folder / PROGRESS, map_location="cpu", weights_only=True)
        if shard_files.are_in(folder):
            _read_shards(folder, trained, progress)
        else:
            load_whole(trained.objective, load_file(folder / WEIGHTS))
            if trained.averaged is not None:
                load_whole(trained.averaged, load_file(folder / AVERAGED))
            load_optimizer_state(trained.optimizer, progress["optimizer"], trained.by_name(), trained.layout)
        if trained.scaler is not None:
            trained.scaler.load_state_dict(progress["scaler"])
        return TrainingState.from_dict(progress["state"])


def _read_shards(folder: Path, trained: Trained, progress: dict[str, Any]) -> None:
    parameters = trained.by_name()
    moments = shard_files.moments_in(folder, "optimizer", parameters)
    targets = {f"optimizer/{name}": value for name, value in moments.items()} | _targets("model", trained.objective)
    if trained.averaged is not None:
        targets |= _targets("ema", trained.averaged)
    shard_files.read(folder, targets)
    load_moments(trained.optimizer, parameters, moments, progress["plain"], progress["options"])


def _targets(part: str, source: nn.Module | ShardedAverage) -> dict[str, Tensor]:
    """The live tensors under the names of the files: they are filled in place."""
    return {f"{part}/{name}": value.detach() for name, value in source.state_dict().items()}


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Whatever reading a damaged file raises becomes one line that names the state."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(
            f"cannot go on from {folder}: {reason}; let last.json name the state before it, or overwrite=true"
        ) from error


def weights_of(module: nn.Module | ShardedAverage, *, keep: bool = False) -> dict[str, Tensor]:
    """The state dict on the CPU, contiguous, nothing shared (tied tensors are copied): what safetensors takes.

    On the main process; elsewhere empty, but sharded weights are gathered from all: all must call. With `keep` nothing
    is shared with the module either.
    """
    seen: set[int] = set()
    weights = {}
    for name, tensor in module.state_dict().items():
        full = whole(tensor.detach())
        if not dist.is_main():
            continue
        weight = full.cpu().contiguous()
        storage = weight.untyped_storage()
        if keep or storage.data_ptr() in seen or storage.nbytes() != weight.nbytes:
            weight = weight.clone()
        seen.add(storage.data_ptr())
        weights[name] = weight
    return weights


def _write_progress(folder: Path, progress: Mapping[str, Any]) -> None:
    with open(folder / PROGRESS, "wb") as file:  # an open file: torch's own loses the reason of a failed write
        torch.save(progress, file)


def _on_cpu(value: Any) -> Any:
    """A copy that shares nothing, tensors on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {name: _on_cpu(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_on_cpu(item) for item in value)
    return copy.deepcopy(value)
