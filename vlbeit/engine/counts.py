"""How many terms the losses of a step have: what they are divided by."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlbeit import dist
from vlbeit.types import Batch


def counts_of_step(
    objective: nn.Module, micro_batches: list[Batch], device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Terms per loss of the whole step over all processes, divided by the number of processes."""
    parts = [objective.counts(batch) for batch in micro_batches]
    names = sorted(parts[0])
    if not names:
        return {}
    own = torch.stack([torch.stack([part[name].cpu() for part in parts]).sum() for name in names])
    counts = dist.sum_over_ranks(own.to(device, dtype)) / dist.world_size()
    counts = torch.where(counts > 0, counts, 1)  # no terms at all: the loss is 0, not 0/0
    return dict(zip(names, counts.unbind(), strict=True))
