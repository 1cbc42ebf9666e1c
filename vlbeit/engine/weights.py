"""The weights of a run as they are trained: whole on every process or in parts, with an average or without."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from timm.utils import ModelEmaV3
from torch import Tensor, nn

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
    """

    def __init__(
        self, objective: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator, ema_decay: float
    ) -> None:
        self.objective, self.accelerator, self._own = objective, accelerator, optimizer
        self.sharded = accelerator.distributed_type == DistributedType.FSDP
        self.ema: Any = None
        self._replica = Replica(objective) if self.sharded else None
        self._layout = names_by_group(objective, optimizer) if self.sharded else None
        if ema_decay and not self.sharded:  # of the objective before its forward is prepared
            # frozen and tied parameters are averaged once each, buffers are copied
            self.ema = ModelEmaV3(objective, ema_decay, exclude_buffers=True)
        self.model, self.optimizer = (shard if self.sharded else prepare)(objective, optimizer, accelerator)
        if ema_decay and self.sharded:
            self.ema = ShardedAverage(objective, ema_decay)

    def clip(self, largest: float) -> Tensor:
        """Clip the gradients of the step to a norm; gives the norm before."""
        if self.sharded:
            average_scalars(self.objective)
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
        return Trained(self.objective, self._own, averaged, self.accelerator.scaler, self._layout)
