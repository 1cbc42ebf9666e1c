"""A block of zeros on top of a tower, which adds nothing to its input: for decoders that may not name the last output.

`out_indices` of transformers' BeitForSemanticSegmentation are counted from 1 in a list that begins with the embedding,
and the largest is the number of blocks: the output of the last one is out of reach.
"""

from __future__ import annotations

import re

import torch

from vlbeit.models.convert.image_part import ImagePart
from vlbeit.models.convert.layout import State
from vlbeit.models.pyramid import taps
from vlbeit.models.spec import EncoderSpec


def out_indices(part: ImagePart) -> list[int]:
    """What transformers calls the blocks that the maps of a segmentation model come from."""
    return [tap + 2 for tap in part.heads["necks"].get("taps") or taps(part.spec.depth)]


def needs_idle_block(part: ImagePart) -> bool:
    """Whether it is a segmentation model that taps the last block."""
    return "segmentation" in part.heads and max(out_indices(part)) > part.spec.depth


def idle_block(state: State, spec: EncoderSpec) -> State:
    """One more block like the last of `spec`, of zeros, under our names."""
    parts = ("blocks", "rel_pos") if spec.positions == "per_layer" else ("blocks",)
    out: State = {}
    for part in parts:
        last, above = (f"encoder.{part}.{index}." for index in (spec.depth - 1, spec.depth))
        out |= {above + n.removeprefix(last): torch.zeros_like(v) for n, v in state.items() if n.startswith(last)}
    return out


def take_out_idle_block(ours: State, sources: dict[str, tuple[str, ...]]) -> list[str]:
    """Remove a last block of zeros from tensors under our names; returns what they are called in the file."""
    numbers = [int(name.split(".")[2]) for name in ours if name.startswith("encoder.blocks.")]
    top = max(numbers, default=0)
    last = [name for name in ours if re.match(rf"encoder\.(blocks|rel_pos)\.{top}\.", name)]
    if not top or any(ours[name].any() for name in last):
        return []
    for name in last:
        del ours[name]
    return [theirs for name in last for theirs in sources.pop(name)]
