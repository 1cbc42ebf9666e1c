"""What a forward and a backward pass cost, found by running them on tensors that have a shape and nothing in them.

The real objective runs on a real batch of the run's own transforms, under torch's FakeTensorMode: every operation is
dispatched, none is computed. So the count holds for whatever an objective does, and needs neither time nor memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from vlbeit.nn.relpos import keeping_apart
from vlbeit.objectives.base import Objective
from vlbeit.objectives.mlm import IGNORED
from vlbeit.types import Batch


class Cost(NamedTuple):
    """Of one micro-batch."""

    forward: int  # floating-point operations; a multiplication and an addition are two
    backward: int
    saved: int  # bytes kept for the backward pass, weights and the batch itself left out


def trace(objective: Objective, batches: list[Batch], autocast: torch.dtype | None = None) -> list[Cost]:
    """The cost of each batch for an objective on torch's meta device, in training mode.

    Raises whatever torch does for an objective that asks for the values of tensors: there are none.
    """
    chosen = [_chosen(batch) for batch in batches]
    with FakeTensorMode() as mode, keeping_apart():
        objective._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
        faked = [_faked(batch, mode) for batch in batches]
        return [measure(objective, *each) for each in zip(faked, [autocast] * len(faked), chosen, strict=True)]


def measure(
    objective: Objective, batch: Batch, autocast: torch.dtype | None = None, chosen: dict[Any, int] | None = None
) -> Cost:
    """The cost of a batch, by running it; `chosen`: how many True a mask of that shape has, where nobody can look."""
    own = {tensor.untyped_storage()._cdata for tensor in _tensors(objective, batch)}
    saved: dict[int, tuple[Any, int]] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = (storage, storage.nbytes())  # held, so that no other gets its address
        return tensor

    with ExitStack() as stack:
        if chosen is not None:
            stack.enter_context(_KnownMasks(chosen))
        if autocast is not None:
            stack.enter_context(torch.autocast("cpu", dtype=autocast))
        with FlopCounterMode(display=False) as forward, torch.autograd.graph.saved_tensors_hooks(note, _same):
            losses = objective(batch, objective.counts(batch)).losses
            loss = torch.stack(list(losses.values())).sum()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    objective.zero_grad(set_to_none=True)
    kept = sum(size for _, size in saved.values())
    return Cost(forward.get_total_flops(), backward.get_total_flops(), kept)


def on_meta(build: Callable[[], Objective]) -> Objective:
    """What `build` makes, with parameters of a shape and no memory."""
    with torch.device("meta"):
        return build().train()


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _tensors(objective: nn.Module, batch: Batch) -> Iterator[Tensor]:
    yield from objective.parameters()
    yield from objective.buffers()
    yield from (value for value in batch.values() if isinstance(value, Tensor))


def _faked(batch: Batch, mode: FakeTensorMode) -> Batch:
    return {name: mode.from_tensor(value) if isinstance(value, Tensor) else value for name, value in batch.items()}


def _chosen(batch: Batch) -> dict[Any, int]:
    """Shape of a mask of tokens -> how many it has: the masked words, the masked patches."""
    masks = {name: batch[name] for name in ("mask",) if name in batch}
    if "mlm_labels" in batch:
        masks["mlm_labels"] = batch["mlm_labels"] != IGNORED
    return {tuple(mask.shape): int(mask.sum()) for mask in masks.values()}


class _KnownMasks(TorchFunctionMode):
    """`x[mask]` without values: as many rows as are known to be True; of a mask that nobody knows, all."""

    def __init__(self, chosen: dict[Any, int]) -> None:
        super().__init__()
        self._chosen = chosen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__ and isinstance(args[1], Tensor) and args[1].dtype == torch.bool:
            x, mask = args
            count = self._chosen.get(tuple(mask.shape), mask.numel())
            return x.flatten(0, mask.dim() - 1)[torch.zeros(count, dtype=torch.long, device=x.device)]
        return func(*args, **(kwargs or {}))
