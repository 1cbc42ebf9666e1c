"""Bytes on one device: what a parameter costs, what a sample costs, and the micro-batch that fits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from vlbeit.config import OptimConfig
from vlbeit.engine.optim import build_optimizer

RESERVE = 0.1  # share of the memory that is left for temporary tensors, fragments and the libraries themselves
GATHERED = 2  # blocks whose weights and gradients are whole at a time under FSDP: one in use, one on its way


class Memory(NamedTuple):
    """Bytes per device."""

    weights: int
    gradients: int
    optimizer: int
    average: int  # of engine.ema_decay
    buckets: int  # of DDP: a second copy of the gradients, on their way to the other devices
    gathered: int  # of FSDP
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)


def standing(
    objective: nn.Module, optim: OptimConfig, *, devices: int, sharded: bool, average: bool, bytes_each: int
) -> Memory:
    """What lies on a device whatever the batch."""
    weights = bytes_each * sum(parameter.numel() for parameter in objective.parameters())
    trained = bytes_each * sum(parameter.numel() for parameter in objective.parameters() if parameter.requires_grad)
    share = devices if sharded else 1
    gathered = GATHERED * 2 * _largest_block(objective) * bytes_each if sharded and devices > 1 else 0
    return Memory(
        weights=weights // share,
        gradients=trained // share,
        optimizer=round(moments(optim) * trained) // share,
        average=(weights if average else 0) // share,
        buckets=trained if devices > 1 and not sharded else 0,
        gathered=gathered,
        activations=0,
    )


def moments(optim: OptimConfig) -> float:
    """Values that the optimizer keeps for each of a matrix, found by one step of it; 2 for AdamW."""
    matrix = nn.Parameter(torch.zeros(64, 64))
    optimizer = build_optimizer([{"params": [matrix]}], optim)
    matrix.grad = torch.ones_like(matrix)
    optimizer.step()
    kept = (value for value in optimizer.state[matrix].values() if isinstance(value, torch.Tensor) and value.ndim)
    return sum(value.numel() for value in kept) / matrix.numel()


def largest_fitting(sizes: list[int], constant: float, slope: float, free: float) -> int | None:
    """The largest of `sizes` samples for which constant + size * slope bytes fit; None where none does."""
    return next((size for size in sorted(sizes, reverse=True) if constant + size * slope <= free), None)


def _largest_block(objective: nn.Module) -> int:
    """Parameters of the largest block of the encoder."""
    blocks = getattr(getattr(objective, "encoder", None), "blocks", [])
    return max((sum(parameter.numel() for parameter in block.parameters()) for block in blocks), default=0)
