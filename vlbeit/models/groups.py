"""Which weights decay, and how fast each learns: the rules of the published recipes.

Parameter names are those of an objective: `encoder.*`, `heads.*`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor, nn

from vlbeit.config import OptimConfig

Rule = Callable[[str, Tensor], bool]


def beit_decays(name: str, parameter: Tensor) -> bool:
    """BEiT: vectors, biases, `pos_embed` and `cls_token` do not decay; position tables and the mask token do."""
    return parameter.ndim > 1 and not name.endswith((".bias", "pos_embed", "cls_token"))


def vlmo_decays(name: str, parameter: Tensor) -> bool:
    """VLMo: biases, position tables (their name there holds "bias") and most norms do not decay.

    The norms of the experts and of the VQA head, the layer scales and the temperatures do. The bias of a sigmoid
    contrast, which VLMo has not, does not.
    """
    *path, last = name.split(".")
    if "tower" in path:
        return beit_decays(name, parameter)  # a foreign network has norms by any name
    if last in ("bias", "q_bias", "v_bias", "logit_bias") or "rel_pos" in path:
        return False
    is_norm = last == "weight" and path[-1] in ("norm", "norm1")
    return "experts" in path or not is_norm


def layer_id(name: str, depth: int, shared_positions: bool) -> int:
    """Layer of a parameter: 0 embeddings, b+1 block b with its position table, depth+1 all else (BEiT)."""
    part, _, rest = name.removeprefix("encoder.").partition(".")
    if part in ("cls_token", "mask_token", "pos_embed", "patch_embed", "text_embed", "type_embed"):
        return 0
    if part == "blocks" or (part == "rel_pos" and not shared_positions):
        return int(rest.split(".")[0]) + 1
    return depth + 1


def param_groups(
    objective: nn.Module, optim: OptimConfig, decays: Rule, *, scaled_head: str | Collection[str] | None = None
) -> list[dict[str, Any]]:
    """Optimizer groups of all trainable parameters: `name`, `params`, `weight_decay`, `lr_scale`.

    `scaled_head` names the head, or several, whose learning rate is `optim.head_lr_scale` times the rest's.
    `optim.layer_decay` multiplies once per layer from the top.
    """
    spec = getattr(getattr(objective, "encoder", None), "spec", None)
    depth, shared = (spec.depth, spec.positions == "shared") if spec is not None else (0, False)
    heads = {scaled_head} if isinstance(scaled_head, str) else set(scaled_head or ())
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in objective.named_parameters():
        if not parameter.requires_grad:
            continue
        weight_decay = optim.weight_decay if decays(name, parameter) else 0.0
        lr_scale = optim.layer_decay ** (depth + 1 - layer_id(name, depth, shared))
        if name.startswith("heads.") and name.split(".")[1] in heads:
            lr_scale *= optim.head_lr_scale
        group = groups.setdefault(
            (weight_decay, lr_scale), {"params": [], "names": [], "weight_decay": weight_decay, "lr_scale": lr_scale}
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())
