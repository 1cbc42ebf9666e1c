"""Objective: the one module that training sees. It owns encoder and heads and turns a batch into named losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vlbeit.types import Batch, StepOutput


class Objective(nn.Module, ABC):
    """Base of what stages and tasks train. `forward` computes; optimizer, devices and ranks are the engine's."""

    @abstractmethod
    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Number of terms of every loss, as scalar tensors, from the batch alone: no forward, no parameters.

        The names are the same for every batch. The engine adds the counts of all micro-batches of a step and of
        all processes, so that accumulation and many processes give the mean over the whole batch.
        """

    @abstractmethod
    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> StepOutput:
        """Every loss = weight * sum of its terms / counts[name]; names and logs are the same for every batch."""

    def survey(self, batches: list[Batch], look: Callable[[int], tuple[Any, ...]]) -> list[Batch]:
        """The micro-batches of a step as `counts` and `forward` shall get them; called before either, on every process.

        For losses that look across micro-batches, such as contrast over the whole step; as they are, unless overridden.
        `look(i)` runs micro-batch i without gradient, with the random numbers that its own forward will draw, and gives
        the `seen` of that output: `forward` gets `counts` that are empty and computes no losses. Parameters may be
        reached through `look` alone, since they may be spread over processes; all call it in the same order.
        """
        return batches

    def tokens(self, batch: Batch) -> int:
        """Patches of the pictures and real tokens of the texts in a batch on the CPU: what its speed is told in."""
        patch = getattr(getattr(getattr(self, "encoder", None), "spec", None), "patch_size", None)
        pictures = [value for name, value in batch.items() if name.startswith("image") and _is_picture(value)]
        patches = sum(x_BCHW.numel() // (x_BCHW.shape[1] * patch**2) for x_BCHW in pictures) if patch else 0
        keep_BT = batch.get("text_keep")
        return patches + (0 if keep_BT is None else int(keep_BT.sum()))

    def after_step(self) -> None:
        """Called after every optimizer step, on every process, with the same random state on all of them."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """The parts as JSON values for `checkpoint/config.json`: `encoder` (absent without one) and `heads`."""


def logged(values: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of values and their number, for the logs of a `StepOutput`."""
    return values.detach().sum(), torch.as_tensor(values.numel(), device=values.device)


def _is_picture(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == 4
