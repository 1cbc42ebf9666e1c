"""What DeepSpeed needs to be told, where `accelerate launch` was configured for it: ZeRO of stages 0 to 2.

DeepSpeed's backward takes the optimizer's step too, so a loss that is not finite is seen only after it: the run stops
as ever, and nothing is saved of it. Its states are its own, and are restored by as many processes as wrote them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vlbeit import dist
from vlbeit.engine.state import TrainingState
from vlbeit.errors import UsageError

TAG = "deepspeed"  # folder of its files within a state


def _settle(accelerator: Accelerator, clip_grad: float | None) -> None:
    """Fill in what accelerate cannot know without a loader; UsageError for what this engine does not train with."""
    plugin = accelerator.state.deepspeed_plugin
    config = plugin.deepspeed_config
    if plugin.zero_stage == 3:
        raise UsageError("DeepSpeed's ZeRO-3 is not supported: use FSDP2 (fsdp_version: 2), or zero_stage 1 or 2")
    if accelerator.mixed_precision != "no":
        raise UsageError("DeepSpeed is supported in precision=fp32 only: use DDP or FSDP2 with bf16")
    config["train_micro_batch_size_per_gpu"] = 1  # a number for its log: the engine accumulates
    config["gradient_accumulation_steps"] = 1
    config["train_batch_size"] = dist.world_size()
    config["gradient_clipping"] = clip_grad or 0.0


def prepare(
    objective: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator, clip_grad: float | None
) -> tuple[Any, Any]:
    """The prepared module and optimizer.

    DeepSpeed sends the weights of process 0 to all, and fails at a single number (a temperature): those are kept from
    it, for all processes have made the same weights from the seed.
    """
    _settle(accelerator, clip_grad)
    scalars = [parameter for parameter in objective.parameters() if not parameter.dim()]
    for parameter in scalars:
        parameter.ds_optim_param = True  # type: ignore[attr-defined]
    try:
        return accelerator.prepare(objective, optimizer)
    finally:
        for parameter in scalars:
            del parameter.ds_optim_param  # type: ignore[attr-defined]


def norm_of(accelerator: Accelerator) -> Tensor:
    """The gradient norm of the step that was just taken."""
    engine: Any = accelerator.deepspeed_engine_wrapped
    norm = engine.get_global_grad_norm()
    return torch.tensor(float(norm or 0.0), device=accelerator.device)


class DeepSpeedSnapshot(NamedTuple):
    """A state that DeepSpeed writes: every process its parts of the optimizer."""

    model: Any
    counters: TrainingState
    by_all: bool = True

    def write(self, folder: Path) -> None:
        """All processes; returns when all have written."""
        self.model.save_checkpoint(
            str(folder), tag=TAG, client_state={"vlbeit": self.counters.to_dict()}, save_latest=False
        )
        dist.barrier()


def are_in(folder: Path) -> bool:
    """Whether DeepSpeed wrote a state there."""
    return (folder / TAG).is_dir()


def read(folder: Path, model: Any) -> TrainingState:
    """Take up a state; all processes must call."""
    _, client = model.load_checkpoint(str(folder), tag=TAG)
    return TrainingState.from_dict(client["vlbeit"])
