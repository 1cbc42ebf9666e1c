"""A state folder's files: weights as safetensors, optimizer and counters through torch. Nothing is unpickled freely."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vlbeit.engine.optim import load_optimizer_state
from vlbeit.engine.sharded import ShardedAverage
from vlbeit.engine.state import TrainingState
from vlbeit.errors import DataError

WEIGHTS, AVERAGED, PROGRESS = "model.safetensors", "ema.safetensors", "progress.pt"


class Trained(NamedTuple):
    """What of a run changes while it trains, besides its counters."""

    objective: nn.Module
    optimizer: torch.optim.Optimizer
    averaged: nn.Module | ShardedAverage | None  # EMA of the objective
    scaler: Any | None  # gradient scaler of fp16


def write_state(folder: Path, trained: Trained, state: TrainingState) -> None:
    """Fill `folder` with everything that going on needs, to the bit."""
    save_file(weights_of(trained.objective), folder / WEIGHTS)
    if trained.averaged is not None:
        save_file(weights_of(trained.averaged), folder / AVERAGED)
    progress = {
        "state": state.to_dict(),
        "optimizer": trained.optimizer.state_dict(),
        "scaler": None if trained.scaler is None else trained.scaler.state_dict(),
    }
    with open(folder / PROGRESS, "wb") as file:  # an open file: torch's own loses the reason of a failed write
        torch.save(progress, file)


def read_weights(folder: Path, objective: nn.Module) -> None:
    """Restore the objective's weights alone; DataError as `read_state`."""
    with _named(folder):
        objective.load_state_dict(load_file(folder / WEIGHTS))


def read_state(folder: Path, trained: Trained) -> TrainingState:
    """Restore all from `folder`; DataError where a file is missing, damaged or of another model."""
    with _named(folder):
        trained.objective.load_state_dict(load_file(folder / WEIGHTS))
        if trained.averaged is not None:
            trained.averaged.load_state_dict(load_file(folder / AVERAGED))
        progress = torch.load(folder / PROGRESS, map_location="cpu", weights_only=True)
        load_optimizer_state(trained.optimizer, progress["optimizer"])
        if trained.scaler is not None:
            trained.scaler.load_state_dict(progress["scaler"])
        return TrainingState.from_dict(progress["state"])


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


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """The state dict on the CPU, contiguous, nothing shared (tied tensors are copied): what safetensors takes."""
    seen: set[int] = set()
    weights = {}
    for name, tensor in module.state_dict().items():
        weight = tensor.detach().cpu().contiguous()
        storage = weight.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != weight.nbytes:
            weight = weight.clone()
        seen.add(storage.data_ptr())
        weights[name] = weight
    return weights
