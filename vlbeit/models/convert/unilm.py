"""Names of microsoft/unilm (BEiT v1/v2, VLMo) to ours. VLMo's joint position table is cut into per-layer parts.

Only names and layouts are translated here; sizes are matched by `vlbeit.models.transfer`.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

State = dict[str, Tensor]

_EXPERTS = {"": "image", "_imag": "image", "_text": "text", "_vl": "fused"}
_RULES: list[tuple[str, str]] = [
    (r"^transformer\.", ""),
    (r"^(cls_token|mask_token|pos_embed)$", r"encoder.\1"),
    (r"^(patch_embed\.proj|norm)\.", r"encoder.\1."),
    (r"^blocks\.(\d+)\.(norm1|attn|gamma_1|gamma_2)\b(?!\.relative)", r"encoder.blocks.\1.\2"),
    (r"^blocks\.(\d+)\.attn\.relative_position_bias_table$", r"encoder.rel_pos.\1.image"),
    (r"^rel_pos_bias\.relative_position_bias_table$", r"encoder.rel_pos.0.image"),
    (r"^text_embeddings\.LayerNorm\.", "encoder.text_embed.norm."),
    (r"^text_embeddings\.", "encoder.text_embed."),
    (r"^token_type_embeddings\.", "encoder.type_embed."),
    (r"^lm_head\.", "heads.masked_patch."),
    (r"^fc_norm\.", "heads.classification.fc_norm."),
    (r"^head\.", "heads.classification.fc."),
    (r"^mlm_score\.transform\.dense\.", "heads.mlm.dense."),
    (r"^mlm_score\.transform\.LayerNorm\.", "heads.mlm.norm."),
    (r"^mlm_score\.(decoder\.weight)$", r"heads.mlm.\1"),
    (r"^mlm_score\.bias$", "heads.mlm.decoder.bias"),
    (r"^pooler\.", "heads.pooler."),
    (r"^itc_(text|image)_proj\.fc\.", r"heads.contrast.\1."),
    (r"^itc_vl_(text|image)_proj\.fc\.", r"heads.contrast_fused.\1."),
    (r"^logit_scale$", "heads.contrast.logit_scale"),
    (r"^logit_vl_scale$", "heads.contrast_fused.logit_scale"),
    (r"^itm_score\.fc\.", "heads.match."),
    (r"^vqa_classifier\.", "heads.answer."),
]
_INDEX = re.compile(r"(relative_position_index|position_ids)$")


def rename(name: str) -> str:
    """One official parameter name to ours; unknown names come back unchanged."""
    expert = re.match(r"^(?:transformer\.)?blocks\.(\d+)\.(mlp|norm2)(|_imag|_text|_vl)\.(.*)$", name)
    if expert:
        block, part, suffix, rest = expert.groups()
        return f"encoder.blocks.{block}.experts.{_EXPERTS[suffix]}.{'norm' if part == 'norm2' else 'mlp'}.{rest}"
    for pattern, replacement in _RULES:
        name = re.sub(pattern, replacement, name)
    return name


def from_unilm(state: State, *, grid: tuple[int, int] | None = None) -> State:
    """A BEiT or VLMo state dict under our names; index buffers are left out, they are computed.

    Args:
        state: the official state dict, wrapper keys removed.
        grid: rows and columns of patches, needed for a VLMo file alone: its joint table does not tell them.

    Raises:
        ValueError: a VLMo table without `grid`, or one that has too few rows for it.
    """
    out: State = {}
    for name, value in state.items():
        if _INDEX.search(name):
            continue
        if name == "relative_position_bias_table":
            depth = 1 + max(int(m.group(1)) for m in map(re.compile(r"blocks\.(\d+)\.").search, state) if m)
            out.update(cut_joint_table(value, depth, grid))
        else:
            out[rename(name)] = value
    if not any(key.endswith("type_embed.weight") for key in out):
        return out
    if any(".rel_pos." in key for key in out):
        out.pop(
            "encoder.text_embed.position_embeddings.weight", None
        )  # in the file, never used: positions are relative
    return out


def cut_joint_table(table: Tensor, depth: int, grid: tuple[int, int] | None) -> State:
    """VLMo's [(2W-1)^2+3 + 2 + 2*T0, H*depth] to `encoder.rel_pos.i.{image,cross,text}`."""
    if grid is None:
        raise ValueError("VLMo's joint position table does not tell the patch grid: pass grid=(rows, columns)")
    n_image = (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3
    n_text = table.shape[0] - n_image - 2
    if n_text < 2 or n_text % 2 or table.shape[1] % depth:
        raise ValueError(f"a joint table of shape {list(table.shape)} does not fit a grid of {grid} and {depth} blocks")
    out: State = {}
    for i, part in enumerate(table.chunk(depth, dim=1)):
        image, cross, text = part.split([n_image, 2, n_text])
        out[f"encoder.rel_pos.{i}.image"] = image.clone()
        out[f"encoder.rel_pos.{i}.cross"] = cross.clone()
        out[f"encoder.rel_pos.{i}.text"] = text.clone()
    return out


def join_tables(state: State, depth: int) -> Tensor:
    """The inverse of `cut_joint_table`."""
    layers = []
    for i in range(depth):
        layers.append(torch.cat([state[f"encoder.rel_pos.{i}.{part}"] for part in ("image", "cross", "text")]))
    return torch.cat(layers, dim=1)
