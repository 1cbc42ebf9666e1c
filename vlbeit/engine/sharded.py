"""Weights that lie in parts on the processes (FSDP2): whole where they are needed whole, in parts where they live.

FSDP2 makes every parameter a DTensor, of which a process holds some rows. What is computed element by element (the
optimizer, the averaged weights) works on the parts. Evaluation and the files for users need whole tensors. A parameter
that is a single number (a temperature, say) cannot be cut: every process has it, and its gradient is averaged here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from vlbeit import dist

PARTED_FROM = "parted_from"  # key of an optimizer's group: the index of the group that its parameters were in


def shard(objective: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> tuple[nn.Module, Any]:
    """The prepared module and optimizer; the objective's own parameters are cut in place.

    Groups that hold both kinds of parameter are parted in two, the new ones last: optimizers take one kind at a time.
    """
    scalars = [parameter for parameter in objective.parameters() if not parameter.dim()]
    accelerator.state.fsdp_plugin.ignored_modules = [nn.ParameterList(scalars)]
    model, prepared = accelerator.prepare(objective, optimizer)
    for index, group in enumerate(list(optimizer.param_groups)):
        plain = [parameter for parameter in group["params"] if not isinstance(parameter, DTensor)]
        if plain and len(plain) < len(group["params"]):
            group["params"] = [parameter for parameter in group["params"] if isinstance(parameter, DTensor)]
            optimizer.add_param_group({**group, "params": plain, PARTED_FROM: index})
    return model, prepared


def average_scalars(objective: nn.Module) -> None:
    """Average over the processes the gradients that FSDP2 leaves alone; after the last backward of a step."""
    gradients = [p.grad for p in objective.parameters() if p.grad is not None and not isinstance(p, DTensor)]
    if gradients:
        means = dist.sum_over_ranks(torch.stack(gradients)) / dist.world_size()
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean)


def whole(tensor: Tensor) -> Tensor:
    """The tensor with its parts from all processes, which must all call this; others as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """What of the tensor lies on this process: the memory itself, not a copy."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def parted_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, the same on all processes, cut as `like` is; not cut where that is whole or of another shape."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    value = value.to(like.device, like.dtype)
    # every process cuts its own copy: nothing is sent
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def empty_like(shape: torch.Size, dtype: torch.dtype, like: Tensor) -> Tensor:
    """A tensor to be filled: cut as `like` where it has its shape, else whole on its device."""
    if shape == like.shape:
        return torch.zeros_like(like, dtype=dtype)
    return torch.zeros(shape, dtype=dtype, device="cpu" if not shape else like.device)


def load_whole(target: Any, state: Mapping[str, Tensor]) -> None:
    """`target.load_state_dict` of whole tensors, cut as those of the target are."""
    live = target.state_dict()
    target.load_state_dict({k: parted_like(v, live[k]) if k in live else v for k, v in state.items()})


class ShardedAverage:
    """Exponential average of a sharded objective's parameters, each process its own parts; buffers are not averaged.

    The arithmetic is that of `timm.utils.ModelEmaV3`: average + (1 - decay) * (parameter - average).
    """

    def __init__(self, objective: nn.Module, decay: float) -> None:
        self.objective, self.decay = objective, decay
        self.values = {name: parameter.detach().clone() for name, parameter in objective.named_parameters()}

    @torch.no_grad()
    def update(self, objective: nn.Module) -> None:
        """One step of the average."""
        averages = [own_part(value) for value in self.values.values()]
        parameters = [own_part(parameter.detach()) for parameter in objective.parameters()]
        torch._foreach_lerp_(averages, parameters, 1 - self.decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged parameters and the objective's buffers, under the objective's names."""
        return self.objective.state_dict() | self.values

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up the parameters; KeyError where one is missing."""
        for name, value in self.values.items():
            value.copy_(state[name])


class Replica:
    """A whole copy of a sharded objective, which takes memory only while it is in use.

    Evaluators may call any part of it in any order, and processes may have unequally many batches: neither goes with
    parameters that are gathered in the forward of the prepared module.
    """

    def __init__(self, objective: nn.Module) -> None:
        """Before the objective is sharded: its structure is copied."""
        self.module = copy.deepcopy(objective)
        self._fill({})

    @contextmanager
    def filled(self, objective: nn.Module, average: ShardedAverage | None) -> Iterator[nn.Module]:
        """The whole module with the weights of now, or the averaged ones; all processes must enter.

        What evaluation writes into buffers goes back to the objective, unless it was of averaged weights.
        """
        source = dict(objective.named_parameters()) if average is None else average.values
        self._fill({name: whole(value.detach()) for name, value in source.items()})
        _copy_buffers(objective, self.module)
        try:
            yield self.module
            if average is None:
                _copy_buffers(self.module, objective)
        finally:
            self._fill({})

    def _fill(self, weights: Mapping[str, Tensor]) -> None:
        """Give every parameter the tensor of its name, or none: shape without memory."""
        made: dict[nn.Parameter, nn.Parameter] = {}  # tied parameters stay tied
        for prefix, module in self.module.named_modules():
            for name, old in module._parameters.items():
                if old is None:
                    continue
                if old not in made:
                    full = f"{prefix}.{name}" if prefix else name
                    value = weights[full] if weights else torch.empty_like(old, device="meta")
                    made[old] = nn.Parameter(value, requires_grad=old.requires_grad)
                module._parameters[name] = made[old]


def _copy_buffers(source: nn.Module, target: nn.Module) -> None:
    """Also those that no state dict has."""
    with torch.no_grad():
        for into, value in zip(target.buffers(), source.buffers(), strict=True):
            into.copy_(value)
