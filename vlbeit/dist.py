"""Ranks, and values that cross them. Without a process group everything here is a no-op, and torch is not imported.

Ask only after the process group exists: the accelerator makes it (`vlbeit.engine.device.make_accelerator`).

Gradients: every process r computes its own loss L_r and DistributedDataParallel averages, so what is trained is
L = 1/R * sum_r L_r over R processes. An L_r that reads the rows of all processes sends gradient to all of them, so
the gradient of own rows x_r is sum_q dL_q/dx_r: the backward of `gather_with_grad` adds the incoming gradients over
the processes and keeps the own rows. Averaged by DDP, that is dL/dtheta of one process that holds the whole batch.
(A gather that keeps gradient for its own rows only would give 1/R of it.)
"""

from __future__ import annotations

import functools
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from vlbeit.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Value = TypeVar("Value")
_turns = itertools.count()  # calls of `wait_for_main`: the same number on every process
_alone: ContextVar[bool] = ContextVar("alone", default=False)
_watch: ContextVar[Callable[[], str]] = ContextVar("watch", default=str)


class Lost(RuntimeError):
    """A process that is waited for has ended or failed."""


def rank() -> int:
    """Index of this process, 0 without a group."""
    group = _group()
    return group.get_rank() if group else 0


def world_size() -> int:
    """Number of processes, 1 without a group."""
    group = _group()
    return group.get_world_size() if group else 1


def is_main() -> bool:
    """True on the one process that writes files and prints."""
    return rank() == 0


def barrier() -> None:
    """Wait for all processes."""
    group = _group()
    if group:
        group.barrier()


def wait_for_main() -> None:
    """Wait until the main process comes here too, however long it works: no limit of an exchange holds for that.

    Raises Lost where it will not, as what `watched` was given has seen.
    """
    group = _group()
    if not group:
        return
    store = group.PrefixStore("vlbeit-main", group.distributed_c10d._get_default_store())
    turn = f"{next(_turns)}"
    if is_main():
        store.set(turn, "here")
        return
    pause = 0.01
    while not store.check([turn]):
        if gone := _watch.get()():
            raise Lost(gone)
        time.sleep(pause)
        pause = min(2 * pause, 0.5)


@contextmanager
def watched(gone: Callable[[], str]) -> Iterator[None]:
    """For the length of a `with` it is asked of `gone` whether a process is, and which: '' for none."""
    token = _watch.set(gone)
    try:
        yield
    finally:
        _watch.reset(token)


def leave() -> None:
    """End the process group where there is one: a process that ends without this may die of its threads."""
    group = _group()
    if group:
        group.destroy_process_group()


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of `x` over all processes, without gradient; `x` itself is left as it is."""
    group = _group()
    if not group:
        return x.detach()
    total = x.detach().clone()
    group.all_reduce(total)
    return total


def gather(x_B: Tensor) -> Tensor:
    """Rows of all processes in rank order, without gradient: [world * B, ...]. B is the same on every process."""
    group = _group()
    if not group:
        return x_B.detach()
    import torch

    parts = [torch.empty_like(x_B, requires_grad=False) for _ in range(group.get_world_size())]
    group.all_gather(parts, x_B.detach().contiguous())
    return torch.cat(parts)


def gather_with_grad(x_BD: Tensor) -> Tensor:
    """Rows of all processes in rank order, [world * B, D]; gradient flows back to the rows of every process.

    B is the same on every process, and every process must run the backward pass.
    """
    return _gather_function().apply(x_BD) if _group() else x_BD


def fetch_rows(take: Callable[[Tensor], Tensor], rows: int, wanted_B: Tensor) -> Tensor:
    """Rows `wanted_B` of those of all processes in rank order, without gradient: [B, ...] on the device of `wanted_B`.

    Every process has `rows` rows and asks for as many as the others; only what was asked for is sent, once a process.
    `take(indices)` gives rows of this process by their index here, also none of them, for indices on the CPU.
    """
    group, device = _group(), wanted_B.device
    if not group:
        return take(wanted_B.cpu()).detach().to(device)
    import torch

    asked = [torch.unique(part) for part in gather(wanted_B).cpu().view(group.get_world_size(), -1)]
    own = rank()
    sent = [part[part // rows == own] % rows for part in asked]
    received = [int((asked[own] // rows == other).sum()) for other in range(len(asked))]  # sorted, and so by owner
    outgoing = take(torch.cat(sent)).detach().to(device).contiguous()
    incoming = outgoing.new_empty((sum(received), *outgoing.shape[1:]))
    group.all_to_all_single(incoming, outgoing, received, [len(part) for part in sent])
    return incoming[torch.searchsorted(asked[own], wanted_B.cpu()).to(device)]


def gather_numbers(value: int) -> list[int]:
    """A whole number (64 bits) of every process in rank order: one small exchange, where objects need two."""
    group = _group()
    if not group:
        return [value]
    import torch

    device = "cuda" if group.get_backend() == "nccl" else "cpu"
    return gather(torch.tensor([value], device=device)).tolist()


def gather_objects(value: Value) -> list[Value]:
    """The value of every process in rank order, for picklable values."""
    group = _group()
    if not group:
        return [value]
    values: list[Any] = [None] * group.get_world_size()
    group.all_gather_object(values, value)
    return values


def broadcast_object(value: Value) -> Value:
    """The value of process 0 on every process, for picklable values."""
    group = _group()
    if not group:
        return value
    box = [value]
    group.broadcast_object_list(box, src=0)
    return box[0]


def on_main(work: Callable[[], Value]) -> Value:
    """What `work` gives on the main process, on every process; so is what it raises, for the user or of the disk."""
    result: Any = None
    failed: Exception | None = None
    if is_main():
        try:
            result = work()
        except (UserError, OSError) as error:
            failed = error
    wait_for_main()
    result, failed = broadcast_object((result, failed))
    if failed is not None:
        raise failed
    return result


@contextmanager
def alone() -> Iterator[None]:
    """Act as the only process for the length of a `with`: for work that differs in amount from process to process."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def _group() -> Any:
    """`torch.distributed` if a process group exists and is not left aside, else None."""
    if _alone.get():
        return None
    distributed = sys.modules.get("torch.distributed")  # absent: torch was never imported, so there is no group
    return distributed if distributed and distributed.is_available() and distributed.is_initialized() else None


@functools.cache
def _gather_function() -> Any:
    """The autograd function of `gather_with_grad`, defined late because torch is imported late."""
    import torch

    class GatherWithGrad(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, x_BD: Tensor) -> Tensor:
            context.rows = x_BD.shape[0]
            return gather(x_BD)

        @staticmethod
        def backward(context: Any, grad_all: Tensor) -> Tensor:
            start = rank() * context.rows
            return sum_over_ranks(grad_all.contiguous())[start : start + context.rows]

    return GatherWithGrad
