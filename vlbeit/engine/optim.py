"""Optimizers of timm with our own parameter groups."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from torch import nn

from vlbeit.config import OptimConfig
from vlbeit.errors import UsageError

OWN_KEYS = ("name", "weight_decay", "lr_scale", "betas", "eps")  # what the config sets; never read from a saved state


def build_optimizer(groups: Iterable[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer `config.name` over our groups.

    A group has `params`, and may have `weight_decay` (else `config.weight_decay`), `lr_scale` (else 1) and `name`.
    timm gets groups, not a module, so it neither splits them nor exempts one-dimensional parameters from decay.
    """
    own = [
        {"weight_decay": config.weight_decay, "lr_scale": 1.0, **group, "params": list(group["params"])}
        for group in groups
    ]
    return _create([group for group in own if group["params"]], config)


def check_settings(config: OptimConfig) -> None:
    """Raise UsageError for an optimizer that timm has not, or numbers that it refuses."""
    _create([{"params": [nn.Parameter(torch.zeros(1))]}], config)


def _create(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    known = [str(name) for name in list_optimizers()]
    if config.name not in known:
        near = difflib.get_close_matches(config.name, known, n=3)
        raise UsageError(f"optim.name={config.name} is no optimizer of timm; nearest: {', '.join(near) or 'adamw'}")
    try:
        return create_optimizer_v2(
            groups,
            config.name,
            lr=config.lr,
            weight_decay=config.weight_decay,
            filter_bias_and_bn=False,
            betas=tuple(config.betas),
            eps=config.eps,
        )
    except (ValueError, TypeError) as error:
        raise UsageError(f"optim.name={config.name} refuses the settings of optim: {error}") from error


def check_coverage(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError unless every trainable parameter of the module sits in exactly one group, and nothing else."""
    counts = Counter(id(p) for group in optimizer.param_groups for p in group["params"])
    missing = [name for name, p in module.named_parameters() if p.requires_grad and not counts[id(p)]]
    if missing:
        raise ValueError(f"param_groups leaves out trainable parameters: {', '.join(missing)}")
    if max(counts.values(), default=1) > 1:
        raise ValueError("param_groups has a parameter in two groups")
    if counts.keys() - {id(p) for p in module.parameters()}:
        raise ValueError("param_groups has a parameter that the objective does not own")


def write_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set every group's learning rate to `lr` times its `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
