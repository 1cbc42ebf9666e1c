"""VLMo checkpoints of microsoft/unilm at every step: text stage, pre-trained, VQA, NLVR2, retrieval."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vlbeit.errors import DataError
from vlbeit.models.convert.layout import Converted, Hints, Layout, State
from vlbeit.models.convert.reading import read_encoder, read_heads, settle
from vlbeit.models.convert.tables import JOINT_TABLE, cut_joint_table, joint_grid
from vlbeit.models.convert.unilm import PREFIX, our_name

_UNUSED = "encoder.text_embed.position_embeddings.weight"


def matches_vlmo(state: Mapping[str, Tensor]) -> bool:
    """A block with an expert for pictures and one for words."""
    names = {name.removeprefix(PREFIX) for name in state}
    return {"blocks.0.mlp_imag.fc1.weight", "blocks.0.mlp_text.fc1.weight", "patch_embed.proj.weight"} <= names


def convert_vlmo(state: State, hints: Hints) -> Converted:
    """A VLMo: base and large with the joint position table, base_plus with absolute positions."""
    ours: State = {}
    sources: dict[str, tuple[str, ...]] = {}
    unexpected = []
    for name, value in state.items():
        place = our_name(name)
        if place is None or place in ours:
            unexpected.append(name)
            continue
        ours[place], sources[place] = value, (name,)
    grid = None
    joint = next((name for name in state if name.removeprefix(PREFIX) == JOINT_TABLE), None)
    if joint is not None:
        unexpected.remove(joint)
        parts, grid = _cut(state[joint], ours, hints)
        ours |= parts
        sources |= {name: (joint,) for name in parts}
        if _UNUSED in ours:  # in the file, never read: positions are relative
            del ours[_UNUSED]
            unexpected += sources.pop(_UNUSED)
    spec = read_encoder(ours, hints, grid=grid)
    heads = read_heads(ours, spec, hints)
    return settle("unilm VLMo", ours, sources, unexpected, spec, heads, hints.normalize or "half")


def _cut(table: Tensor, ours: State, hints: Hints) -> tuple[State, tuple[int, int]]:
    """Position tables of the layers, and the patch grid."""
    depth = 1 + max(int(name.split(".")[2]) for name in ours if name.startswith("encoder.blocks."))
    if table.ndim != 2 or table.shape[1] % depth:
        raise DataError(f"{JOINT_TABLE} has shape {list(table.shape)}: no columns for the heads of {depth} blocks")
    grid = joint_grid(table.shape[0], ours["encoder.patch_embed.proj.weight"].shape[-1], hints)
    return cut_joint_table(table, depth, grid), grid


VLMO = Layout("unilm VLMo", matches_vlmo, convert_vlmo)
