"""What an optimizer keeps of every parameter, by name: it outlives sharding, which changes parameters and groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlbeit.engine.optim import OWN_KEYS
from vlbeit.engine.sharded import PARTED_FROM, parted_like, whole

Layout = Sequence[Sequence[str]]
"""The names of each group's parameters, in their order, before sharding."""


def load_optimizer_state(
    optimizer: torch.optim.Optimizer,
    saved: dict[str, Any],
    parameters: Mapping[str, nn.Parameter] | None = None,
    layout: Layout | None = None,
) -> None:
    """Restore moments and step counts; what the config sets (decay, betas, ...) stays as this run has it.

    With a `layout` the optimizer's groups were parted by sharding: the saved state is that of the groups before.
    """
    if layout is None:
        own = [{key: group[key] for key in OWN_KEYS if key in group} for group in optimizer.param_groups]
        optimizer.load_state_dict(saved)
        for group, values in zip(optimizer.param_groups, own, strict=True):
            group.update(values)
        return
    assert parameters is not None
    names = [name for group in layout for name in group]
    groups = saved["param_groups"]
    if [len(group["params"]) for group in groups] != [len(group) for group in layout]:
        raise ValueError("its groups of parameters are others")
    tensors, plain = _split({names[index]: values for index, values in saved["state"].items()})
    cut = {name: parted_like(value, parameters[name.rpartition("/")[0]].detach()) for name, value in tensors.items()}
    options = [{key: value for key, value in group.items() if key != "params"} for group in groups]
    load_moments(optimizer, parameters, cut, plain, options)


def names_by_group(module: nn.Module, optimizer: torch.optim.Optimizer) -> Layout:
    """The parameters' names in the order of the optimizer's groups."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


def moments_of(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """What the optimizer keeps of each parameter: tensors as `PARAMETER/KEY`, the rest as parameter -> key -> value."""
    return _split({name: optimizer.state[p] for name, p in parameters.items() if optimizer.state.get(p)})


def options_of(optimizer: torch.optim.Optimizer, layout: Layout | None) -> list[dict[str, Any]]:
    """The groups' settings; of groups that were parted, those of the first part."""
    groups = optimizer.param_groups if layout is None else optimizer.param_groups[: len(layout)]
    return [{key: value for key, value in group.items() if key != "params"} for group in groups]


def load_moments(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
    plain: Mapping[str, Mapping[str, Any]],
    options: Sequence[Mapping[str, Any]],
) -> None:
    """Restore what `moments_of` and `options_of` gave; what the config sets stays as this run has it."""
    state: dict[str, dict[str, Any]] = {name: dict(values) for name, values in plain.items()}
    for place, value in tensors.items():
        name, _, key = place.rpartition("/")
        state.setdefault(name, {})[key] = value
    optimizer.state.clear()
    for name, values in state.items():
        optimizer.state[parameters[name]] = values
    for index, saved in enumerate(options):
        # a group that sharding has parted from another follows it
        for group in (optimizer.param_groups[index], *optimizer.param_groups[len(options) :]):
            if group is optimizer.param_groups[index] or group.get(PARTED_FROM) == index:
                group.update({key: value for key, value in saved.items() if key not in (*OWN_KEYS, PARTED_FROM)})


def whole_optimizer_state(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], layout: Layout | None
) -> dict[str, Any]:
    """`optimizer.state_dict()`; with a `layout`, as it would be without sharding: all processes must call."""
    if layout is None:
        return optimizer.state_dict()
    index = {name: number for number, name in enumerate(name for group in layout for name in group)}
    tensors, plain = moments_of(optimizer, parameters)
    state: dict[int, dict[str, Any]] = {index[name]: dict(values) for name, values in plain.items()}
    for place, value in tensors.items():
        name, _, key = place.rpartition("/")
        state.setdefault(index[name], {})[key] = whole(value)
    groups = [
        {**options, "params": [index[name] for name in names]}
        for options, names in zip(options_of(optimizer, layout), layout, strict=True)
    ]
    return {"state": dict(sorted(state.items())), "param_groups": groups}


def _split(state: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for name, values in state.items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{name}/{key}"] = value
            else:
                plain.setdefault(name, {})[key] = value
    return tensors, plain
