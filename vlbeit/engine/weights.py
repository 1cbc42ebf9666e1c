"""The weights of a run as they are trained: whole on every process or in parts, with an average or without."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from vlbeit.engine import deepspeed
from vlbeit.engine.checkpoint import Trained, weights_of
from vlbeit.engine.device import prepare
from vlbeit.engine.moments import names_by_group
from vlbeit.engine.sharded import Replica, ShardedAverage, average_scalars, shard, whole


class Weights:
    """Prepares objective and optimizer as accelerate was told to, and knows what of it lies where.

    Attributes:
        model: what computes the losses; only its forward is called.
        optimizer: accelerate's, around the run's own.
        ema: the averaged weights, or None.
        sharded: whether every process holds parts (FSDP2).
        deepspeed: whether DeepSpeed trains them.
    """

    def __init__(
        self,
        objective: nn.Module,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        ema_decay: float = 0.0,
        clip_grad: float | None = None,
    ) -> None:
        self.objective, self.accelerator, self._own = objective, accelerator, optimizer
        self.sharded = accelerator.distributed_type == DistributedType.FSDP
        self.deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
        self.ema: Any = None
        self._clip_grad = clip_grad
        self._replica = Replica(objective) if self.sharded else None
        self._layout = names_by_group(objective, optimizer) if self.sharded else None
        if ema_decay and not self.sharded:  # of the objective before its forward is prepared
            # frozen and tied parameters are averaged once each, buffers are copied
            self.ema = ModelEmaV3(objective, ema_decay, exclude_buffers=True)
        if self.deepspeed:
            self.model, self.optimizer = deepspeed.prepare(objective, optimizer, accelerator, clip_grad)
        else:
            self.model, self.optimizer = (shard if self.sharded else prepare)(objective, optimizer, accelerator)
        if ema_decay and self.sharded:
            self.ema = ShardedAverage(objective, ema_decay)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradients of a micro-batch; of the last one of a step."""
        if self.deepspeed:
            self.accelerator.sync_gradients = last
        self.accelerator.backward(loss)

    def clip(self) -> Tensor:
        """Clip the gradients of the step; gives their norm before."""
        if self.deepspeed:
            return deepspeed.norm_of(self.accelerator)
        if self.sharded:
            average_scalars(self.objective)
        largest = self._clip_grad or math.inf
        return whole(self.accelerator.clip_grad_norm_(self.objective.parameters(), largest))

    def evaluated(self) -> AbstractContextManager[nn.Module]:
        """The module that is evaluated, whose parts anybody may call: averaged if there is an average, and whole."""
        if self._replica is not None:
            return self._replica.filled(self.objective, self.ema)
        return nullcontext(self.ema.module if self.ema else self.objective)

    def exported(self) -> dict[str, Tensor]:
        """The weights for users on the CPU of the main process; every process must call."""
        averaged = self.trained().averaged
        return weights_of(self.objective if averaged is None else averaged)

    def trained(self) -> Trained:
        """What is saved and restored."""
        averaged = self.ema.module if isinstance(self.ema, ModelEmaV3) else self.ema
        return Trained(
            self.objective,
            self._own,
            averaged,
            self.accelerator.scaler,
            self._layout,
            self.model if self.deepspeed else None,
        )
