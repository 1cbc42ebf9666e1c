"""Random weights under the names and shapes of the official files: real grids and depths, narrow widths."""

from __future__ import annotations

import torch
from torch import Tensor

State = dict[str, Tensor]


def beit(
    *,
    dim: int = 24,
    depth: int = 4,
    heads: int = 2,
    grid: tuple[int, int] = (14, 14),
    positions: str = "per_layer",
    layer_scale: bool = True,
    mim: int = 0,
    classes: int = 0,
    pool: str = "avg",
    extra_layers: int = 0,
) -> State:
    """A BEiT: `mim` visual tokens or `classes`; positions per_layer, shared or absolute."""
    torch.manual_seed(0)
    rows = (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3
    out = {"cls_token": draw(1, 1, dim), **named("patch_embed.proj", draw(dim, 3, 16, 16), draw(dim))}
    if positions == "absolute":
        out["pos_embed"] = draw(1, grid[0] * grid[1] + 1, dim)
    if positions == "shared":
        out["rel_pos_bias.relative_position_bias_table"] = draw(rows, heads)
        out["rel_pos_bias.relative_position_index"] = torch.zeros(3, 3, dtype=torch.long)
    for stack, number in (("blocks", depth), ("cls_pt_layers", extra_layers)):
        for i in range(number):
            out |= block(f"{stack}.{i}", dim, layer_scale, ("",))
            if positions == "per_layer":
                out[f"{stack}.{i}.attn.relative_position_bias_table"] = draw(rows, heads)
                out[f"{stack}.{i}.attn.relative_position_index"] = torch.zeros(3, 3, dtype=torch.long)
    if mim:
        out |= {"mask_token": draw(1, 1, dim), **named("lm_head", draw(mim, dim), draw(mim))}
    if mim or pool == "token":
        out |= named("norm", draw(dim), draw(dim))
    if classes:
        out |= named("head", draw(classes, dim), draw(classes))
        if pool == "avg":
            out |= named("fc_norm", draw(dim), draw(dim))
    return out


def vlmo(
    *,
    dim: int = 24,
    depth: int = 4,
    heads: int = 2,
    side: int = 14,
    fused: int = 2,
    absolute: bool = False,
    texts: int = 40,
    types: int = 2,
    parts: tuple[str, ...] = (),
    words: int = 30,
) -> State:
    """A VLMo; `parts` of mlm, itm, itc, irtr, vqa, nlvr2 bring their heads. The pooler is always there."""
    torch.manual_seed(0)
    out = {"transformer.cls_token": draw(1, 1, dim), **named("transformer.norm", draw(dim), draw(dim))}
    out |= named("transformer.patch_embed.proj", draw(dim, 3, 16, 16), draw(dim))
    if absolute:
        out["transformer.pos_embed"] = draw(1, side * side + 1, dim)
    else:
        out["relative_position_bias_table"] = draw((2 * side - 1) ** 2 + 3 + 2 + 2 * 196, heads * depth)
    for i in range(depth):
        experts = ("_text", "_imag", "_vl") if i >= depth - fused else ("_text", "_imag")
        out |= block(f"transformer.blocks.{i}", dim, not absolute, experts)
    for name, rows in (("word", words), ("position", texts), ("token_type", 2)):
        out[f"text_embeddings.{name}_embeddings.weight"] = draw(rows, dim)
    out |= named("text_embeddings.LayerNorm", draw(dim), draw(dim))
    out["text_embeddings.position_ids"] = torch.arange(texts)[None]
    out["token_type_embeddings.weight"] = draw(types, dim)
    out |= named("pooler.dense", draw(dim, dim), draw(dim))
    return out | {name: value for part in parts for name, value in heads_of(part, dim, words).items()}


def heads_of(part: str, dim: int, words: int) -> State:
    """The heads of one loss or task."""
    if part == "mlm":
        return {
            **named("mlm_score.transform.dense", draw(dim, dim), draw(dim)),
            **named("mlm_score.transform.LayerNorm", draw(dim), draw(dim)),
            "mlm_score.decoder.weight": draw(words, dim),
            "mlm_score.bias": draw(words),
        }
    if part == "itm":
        return named("itm_score.fc", draw(2, dim), draw(2))
    if part in ("itc", "irtr"):
        kinds = ("",) if part == "irtr" else ("", "vl_")
        pairs = {f"itc_{kind}{side}_proj.fc.weight": draw(dim, dim) for kind in kinds for side in ("text", "image")}
        return pairs | {f"logit_{kind}scale": draw() for kind in kinds}
    name, wide, out = {"vqa": ("vqa_classifier", 1, 7), "nlvr2": ("nlvr2_classifier", 2, 2)}[part]
    return {
        **named(f"{name}.0", draw(2 * dim, wide * dim), draw(2 * dim)),
        **named(f"{name}.1", draw(2 * dim), draw(2 * dim)),
        **named(f"{name}.3", draw(out, 2 * dim), draw(out)),
    }


def block(prefix: str, dim: int, layer_scale: bool, experts: tuple[str, ...]) -> State:
    """One block: attention once, norm and feed-forward for every expert."""
    out = {
        **named(f"{prefix}.norm1", draw(dim), draw(dim)),
        f"{prefix}.attn.qkv.weight": draw(3 * dim, dim),
        f"{prefix}.attn.q_bias": draw(dim),
        f"{prefix}.attn.v_bias": draw(dim),
        **named(f"{prefix}.attn.proj", draw(dim, dim), draw(dim)),
    }
    if layer_scale:
        out |= {f"{prefix}.gamma_1": draw(dim), f"{prefix}.gamma_2": draw(dim)}
    for suffix in experts:
        out |= named(f"{prefix}.norm2{suffix}", draw(dim), draw(dim))
        out |= named(f"{prefix}.mlp{suffix}.fc1", draw(4 * dim, dim), draw(4 * dim))
        out |= named(f"{prefix}.mlp{suffix}.fc2", draw(dim, 4 * dim), draw(dim))
    return out


def named(name: str, weight: Tensor, bias: Tensor) -> State:
    """`name.weight` and `name.bias`."""
    return {f"{name}.weight": weight, f"{name}.bias": bias}


def draw(*shape: int) -> Tensor:
    """Small normal numbers."""
    return 0.1 * torch.randn(shape)
