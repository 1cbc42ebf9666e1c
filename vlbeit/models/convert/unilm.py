"""Names of microsoft/unilm (BEiT v1 and v2, VLMo) to ours, and back.

BEiT has one expert in a block (`mlp`, `norm2`); VLMo has one for a modality (`mlp_imag`, `norm2_imag`, ...) and keeps
the backbone under `transformer.`, segmentation (mmsegmentation) under `backbone.`. VLMo's joint position table is cut
and joined in `vlbeit.models.convert.vlmo`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from vlbeit.errors import UsageError
from vlbeit.models.convert.layout import State
from vlbeit.models.convert.tables import JOINT_TABLE, join_tables
from vlbeit.models.convert.upernet import has_upernet, their_name
from vlbeit.models.spec import EncoderSpec

PREFIX = "transformer."
BACKBONE = "backbone."
_BACKBONE = (
    ("cls_token", "encoder.cls_token"),
    ("mask_token", "encoder.mask_token"),
    ("pos_embed", "encoder.pos_embed"),
    ("patch_embed.proj.", "encoder.patch_embed.proj."),
    ("norm.", "encoder.norm."),
)
_REST = (
    ("rel_pos_bias.relative_position_bias_table", "encoder.rel_pos.0.image"),
    ("text_embeddings.LayerNorm.", "encoder.text_embed.norm."),
    ("text_embeddings.", "encoder.text_embed."),
    ("token_type_embeddings.", "encoder.type_embed."),
    ("lm_head.", "heads.masked_patch."),
    ("fc_norm.", "heads.classification.fc_norm."),
    ("head.", "heads.classification.fc."),
    ("mlm_score.transform.dense.", "heads.mlm.dense."),
    ("mlm_score.transform.LayerNorm.", "heads.mlm.norm."),
    ("mlm_score.decoder.weight", "heads.mlm.decoder.weight"),
    ("mlm_score.bias", "heads.mlm.decoder.bias"),
    ("pooler.", "heads.pooler."),
    ("itc_text_proj.fc.", "heads.contrast.text."),
    ("itc_image_proj.fc.", "heads.contrast.image."),
    ("logit_scale", "heads.contrast.logit_scale"),
    ("itc_vl_text_proj.fc.", "heads.contrast_fused.text."),
    ("itc_vl_image_proj.fc.", "heads.contrast_fused.image."),
    ("logit_vl_scale", "heads.contrast_fused.logit_scale"),
    ("itm_score.fc.", "heads.match."),
    ("vqa_classifier.", "heads.answer."),
    ("nlvr2_classifier.", "heads.pair."),
)
_STACKS = {"blocks": "encoder.blocks", "cls_pt_layers": "heads.aggregation.blocks"}
_EXPERTS = {"": "image", "_imag": "image", "_text": "text", "_vl": "fused"}
_SUFFIXES = {"image": "_imag", "text": "_text", "fused": "_vl"}
_PARTS = {"norm2": "norm", "mlp": "mlp"}
_SAME = r"norm1\..+|attn\.(?:qkv\.weight|q_bias|v_bias|proj\..+)|gamma_[12]"
_THEIR_BLOCK = re.compile(r"(blocks|cls_pt_layers)\.(\d+)\.(.+)")
_OUR_BLOCK = re.compile(r"(encoder\.blocks|heads\.aggregation\.blocks)\.(\d+)\.(.+)")
_OUR_TABLE = re.compile(r"encoder\.rel_pos\.(\d+)\.image")


def our_name(name: str) -> str | None:
    """Our name for an official one; None where it has no place, as index buffers and VLMo's joint table have none."""
    name = name.removeprefix(PREFIX)
    if match := _THEIR_BLOCK.fullmatch(name):
        stack, index, rest = match.groups()
        if rest == "attn.relative_position_bias_table":
            return f"encoder.rel_pos.{index}.image" if stack == "blocks" else None
        inner = rest if re.fullmatch(_SAME, rest) else _our_expert(rest)
        return None if inner is None else f"{_STACKS[stack]}.{index}.{inner}"
    return _translated(name, [*_BACKBONE, *_REST])


def official_name(name: str, *, vlmo: bool, shared: bool = False) -> str | None:
    """The inverse of `our_name`; None for a name that unilm has no place for.

    vlmo: with VLMo's names, else with BEiT's. shared: the position table is one for all layers.
    """
    prefix = PREFIX if vlmo else ""
    if match := _OUR_BLOCK.fullmatch(name):
        stack, index, rest = match.groups()
        inner = rest if re.fullmatch(_SAME, rest) else _their_expert(rest, vlmo)
        theirs = {ours: name for name, ours in _STACKS.items()}[stack]
        return None if inner is None else f"{prefix}{theirs}.{index}.{inner}"
    if (match := _OUR_TABLE.fullmatch(name)) and not shared:
        return None if vlmo else f"blocks.{match[1]}.attn.relative_position_bias_table"
    for table, before in ((_BACKBONE, prefix), (_REST, "")):
        found = _translated(name, [(ours, theirs) for theirs, ours in table])
        if found is not None:
            return before + found
    return None


def to_unilm(description: dict[str, Any], state: State) -> State:
    """Official names and layouts for a checkpoint of ours, bit for bit: the inverse of reading such a file.

    A segmentation model with UPerNet is one of mmsegmentation, its tower under `backbone.`. VLMo's joint table
    is put together again; index buffers, and the text positions that relative models never use, are not written. What
    unilm has no place for is left out.

    Raises UsageError for an encoder that unilm cannot express: without an image part, or with a foreign tower.
    """
    spec = _checked_spec(description)
    if has_upernet(description) and spec.vocab_size is None:
        return {theirs: state[ours] for ours, theirs in _segmentation_names(spec, state)}
    out = {theirs: state[ours] for ours, theirs in _names(spec, state) if theirs is not None}
    if _has_joint_table(spec):
        out[JOINT_TABLE] = join_tables(state, spec.depth)
    return out


def is_segmentation(state: State) -> bool:
    """Whether tensors under official names are of mmsegmentation, which looks for them under the key `state_dict`."""
    return any(name.startswith(BACKBONE) for name in state)


def _checked_spec(description: dict[str, Any]) -> EncoderSpec:
    if "encoder" not in description:
        raise UsageError("a tokenizer has no encoder: unilm has no file of that kind")
    spec = EncoderSpec.from_dict(description["encoder"])
    if spec.image_size is None:
        raise UsageError("an encoder for text alone has no unilm layout: its files begin with a BEiT tower")
    for modality, tower in (("image", spec.image_tower), ("text", spec.text_tower)):
        if tower != "own":
            raise UsageError(f"model.{modality}_tower={tower} has no unilm layout: only towers of our own have")
    return spec


def _names(spec: EncoderSpec, state: State) -> Iterator[tuple[str, str | None]]:
    vlmo, shared = spec.vocab_size is not None, spec.positions == "shared"
    return ((name, official_name(name, vlmo=vlmo, shared=shared)) for name in state)


def _segmentation_names(spec: EncoderSpec, state: State) -> Iterator[tuple[str, str]]:
    for ours, theirs in _names(spec, state):
        head = their_name(ours, "conv_seg")
        if head is not None:
            yield ours, BACKBONE + head if head.startswith("fpn") else head
        elif theirs is not None and ours.startswith("encoder."):
            yield ours, BACKBONE + theirs


def _has_joint_table(spec: EncoderSpec) -> bool:
    return spec.vocab_size is not None and spec.positions == "per_layer"


def _translated(name: str, pairs: list[tuple[str, str]]) -> str | None:
    """The first pair (from, to) that `name` is, or begins with where `from` ends in a dot."""
    for start, end in pairs:
        if name == start or (start.endswith(".") and name.startswith(start)):
            return end + name.removeprefix(start)
    return None


def _our_expert(rest: str) -> str | None:
    """`mlp_text.fc1.weight` -> `experts.text.mlp.fc1.weight`."""
    match = re.fullmatch(r"(mlp|norm2)(|_imag|_text|_vl)\.(.+)", rest)
    return f"experts.{_EXPERTS[match[2]]}.{_PARTS[match[1]]}.{match[3]}" if match else None


def _their_expert(rest: str, vlmo: bool) -> str | None:
    match = re.fullmatch(r"experts\.(image|text|fused)\.(norm|mlp)\.(.+)", rest)
    if match is None or (not vlmo and match[1] != "image"):
        return None
    part = {ours: theirs for theirs, ours in _PARTS.items()}[match[2]]
    return f"{part}{_SUFFIXES[match[1]] if vlmo else ''}.{match[3]}"
