"""Batch norm on several processes: one statistic over all of them where they can share one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlbeit import dist


class SyncedBatchNorm(nn.SyncBatchNorm):
    """Batch norm [B, C, h, w] over the batches of all processes (CUDA).

    Within `dist.alone` by the running statistics, in training too: a size of batch is tried out there, and one value a
    channel, which is enough where processes share, has no statistics of its own.
    """

    def forward(self, x: Tensor) -> Tensor:
        if dist.world_size() > 1:
            return super().forward(x)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


def synced(module: nn.Module) -> nn.Module:
    """The module with every BatchNorm2d inside it, in place, made a `SyncedBatchNorm` with the same weights."""
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            norm = SyncedBatchNorm(child.num_features, child.eps, child.momentum)
            norm.load_state_dict(child.state_dict())
            setattr(module, name, norm)
        else:
            synced(child)
    return module


@torch.no_grad()
def average_statistics(module: nn.Module) -> None:
    """Give every process the mean over processes of the running statistics of norms that saw its own batches alone.

    For `Objective.after_step`: buffers must stay equal on all processes. Without a process group nothing changes.
    """
    world = dist.world_size()
    for norm in module.modules() if world > 1 else ():
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None:
            for statistic in (norm.running_mean, norm.running_var):
                statistic.copy_(dist.sum_over_ranks(statistic) / world)
