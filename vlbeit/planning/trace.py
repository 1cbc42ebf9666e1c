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
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from vlbeit.nn.relpos import keeping_apart
from vlbeit.objectives.base import Objective
from vlbeit.objectives.mlm import IGNORED
from vlbeit.types import Batch

VALUES_WANTED = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)
"""What torch raises, without values, for `x.item()`, for `x.nonzero()`, and for operations of others."""


class Cost(NamedTuple):
    """Of one micro-batch."""

    forward: int  # floating-point operations; a multiplication and an addition are two
    backward: int
    saved: int  # bytes kept for the backward pass, weights and the batch itself left out
    looked: int = 0  # operations of the pass without losses, of an objective that caches gradients over micro-batches


class _Known(NamedTuple):
    """Of a batch what its values tell."""

    counts: dict[str, Tensor]  # as the objective counts them
    chosen: dict[Any, int]  # shape of a mask -> how many of it are True


def trace(objective: Objective, batches: list[Batch], autocast: torch.dtype | None = None) -> list[Cost]:
    """The cost of each batch for an objective on torch's meta device, in training mode.

    Raises one of `VALUES_WANTED` for an objective that asks for the values of tensors: there are none.
    """
    known = [_Known(objective.counts(batch), _chosen(batch)) for batch in batches]
    # torchvision's detectors hold tensors that are no buffers, and no batch has
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, keeping_apart():
        objective._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
        return [
            measure(objective, _faked(batch, mode), autocast, values._replace(counts=_faked(values.counts, mode)))
            for batch, values in zip(batches, known, strict=True)
        ]


def measure(
    objective: Objective, batch: Batch, autocast: torch.dtype | None = None, known: _Known | None = None
) -> Cost:
    """The cost of a batch, by running it; `known`: of a batch without values."""
    own = {tensor.untyped_storage()._cdata for tensor in _tensors(objective, batch)}
    saved: dict[int, tuple[Any, int]] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = (storage, storage.nbytes())  # held, so that no other gets its address
        return tensor

    with ExitStack() as stack:
        if known is not None:
            stack.enter_context(_KnownMasks(known.chosen))
        if autocast is not None:
            stack.enter_context(torch.autocast("cpu", dtype=autocast))
        with FlopCounterMode(display=False) as forward, torch.autograd.graph.saved_tensors_hooks(note, _same):
            losses = objective(batch, objective.counts(batch) if known is None else known.counts).losses
            loss = torch.stack(list(losses.values())).sum()
        looked = _looked(objective, batch)
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    objective.zero_grad(set_to_none=True)
    kept = sum(size for _, size in saved.values())
    return Cost(forward.get_total_flops(), backward.get_total_flops(), kept, looked)


def _looked(objective: Objective, batch: Batch) -> int:
    if not getattr(getattr(objective, "contrast", None), "cached", False):
        return 0
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        objective(batch, {})  # as `Objective.survey` has it done
    return int(counter.get_total_flops())


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


def _faked(value: Any, mode: FakeTensorMode) -> Any:
    """A batch, or a part of it, with tensors that have no values."""
    return tree_map_only(Tensor, mode.from_tensor, value)


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
