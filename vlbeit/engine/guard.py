"""Steps that are not finite: found before the weights change, then the end of the run, or skipped up to a bound."""

from __future__ import annotations

import logging
import math
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from vlbeit import dist
from vlbeit.engine.state import TrainingState
from vlbeit.errors import DataError, UsageError
from vlbeit.types import Batch

log = logging.getLogger(__name__)

SHARE = 0.1  # of all steps: more are not skipped, however they are spread


class Checked(NamedTuple):
    """A step over all processes."""

    losses: dict[str, float]
    grad_norm: float
    wrong: str  # what is not finite; empty: all is well
    samples: list[str]  # where something is wrong: ids of the micro-batches that made it so


def check_skipping(accelerator: Accelerator, most: int) -> None:
    """UsageError where steps shall be skipped and cannot: DeepSpeed has changed the weights when we look."""
    if most and accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise UsageError(f"engine.max_skipped={most}: DeepSpeed updates the weights by itself; leave it out")


def check_step(
    parts: list[dict[str, Tensor]], grad_norm: Tensor, micro_batches: list[Batch], *, scaled: bool
) -> Checked:
    """Losses of the step over all processes, the gradient norm, and what of them is not finite.

    `parts`: the losses of each micro-batch of this process. One read of the device for all of them. Where gradients are
    `scaled` (fp16) their norm may overflow: the scaler skips such a step by itself.
    """
    names = list(parts[0])
    own = torch.stack([torch.stack([part[name] for name in names]) for part in parts])
    total = dist.sum_over_ranks(own.sum(0)) / dist.world_size()
    *values, norm = torch.cat([total, grad_norm.to(total.dtype).reshape(1)]).tolist()
    losses = dict(zip(names, values, strict=True))
    checked = losses if scaled else losses | {"gradient norm": norm}
    wrong = ", ".join(f"{name} is {value}" for name, value in checked.items() if not math.isfinite(value))
    if not wrong:
        return Checked(losses, norm, "", [])
    # a gradient that overflows behind finite losses has no guilty batch: name all of them
    blameless = all(map(math.isfinite, values))
    own_ids = [
        str(sample_id)
        for batch, row in zip(micro_batches, own, strict=True)
        if blameless or not row.isfinite().all()
        for sample_id in batch["sample_id"]
    ]
    return Checked(losses, norm, wrong, [sample_id for every in dist.gather_objects(own_ids) for sample_id in every])


def skip(checked: Checked, state: TrainingState, most: int) -> None:
    """Count the step as skipped and name its samples; DataError where no more may be skipped.

    `most`: so many in a row, and in all as many or a tenth of the steps, whichever is more; 0: none.
    """
    found = f"step {state.step}: {checked.wrong}; samples of the batch: {', '.join(checked.samples)}"
    row, total = state.skipped_in_row + 1, state.skipped + 1
    if row > most or total > max(most, SHARE * (state.step + 1)):
        counted = f"{row} steps in a row, {total} in all: more than engine.max_skipped={most} allows. " if most else ""
        raise DataError(
            f"{found}. {counted}Look at these samples, or lower optim.lr, set optim.clip_grad, use precision=fp32"
            + ("" if most else "; engine.max_skipped=N skips such a step")
        )
    state.skipped_in_row, state.skipped = row, total
    if dist.is_main():
        log.warning("skipped %s", found)


def kept_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Copies of what a forward pass may change besides gradients, for `put_back`."""
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def put_back(module: nn.Module, buffers: dict[str, Tensor]) -> None:
    """The buffers as they were."""
    for name, buffer in module.named_buffers():
        buffer.copy_(buffers[name])
