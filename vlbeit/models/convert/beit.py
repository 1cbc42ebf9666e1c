"""BEiT v1 and v2 checkpoints of microsoft/unilm, and the ADE20K ones whose backbone they are, under UPerNet.

timm's `beit_*` and `beitv2_*` have the same names and are read here too.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vlbeit.errors import DataError
from vlbeit.models.convert import upernet
from vlbeit.models.convert.layout import Converted, Hints, Layout, State
from vlbeit.models.convert.reading import read_encoder, read_heads, settle
from vlbeit.models.convert.unilm import BACKBONE, PREFIX, our_name

_SHARED = "rel_pos_bias.relative_position_bias_table"


def matches_beit(state: Mapping[str, Tensor]) -> bool:
    """The patch embedding, one expert without a modality, and biases of queries and values alone."""
    names = {name.removeprefix(PREFIX) for name in state}
    return {"patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "blocks.0.attn.q_bias"} <= names


def matches_upernet(state: Mapping[str, Tensor]) -> bool:
    """A BEiT under `backbone.`."""
    return matches_beit({name.removeprefix(BACKBONE): v for name, v in state.items() if name.startswith(BACKBONE)})


def convert_beit(state: State, hints: Hints) -> Converted:
    """A BEiT: masked image modeling (v2 with its patch aggregation), fine-tuned, with tables or absolute positions."""
    return _convert("unilm BEiT", state, hints, "")


def convert_upernet(state: State, hints: Hints) -> Converted:
    """A segmentation checkpoint: encoder, and as heads `necks`, `segmentation` and `auxiliary`.

    Those of another decoder than UPerNet are `unexpected`.
    """
    return _convert("UPerNet of mmsegmentation", state, hints, BACKBONE)


def _convert(layout: str, state: State, hints: Hints, prefix: str) -> Converted:
    ours: State = {}
    sources: dict[str, tuple[str, ...]] = {}
    unexpected = []
    heads_of = upernet.our_names(name.removeprefix(prefix) for name in state) if prefix else {}
    for name, value in state.items():
        place = our_name(name.removeprefix(prefix)) if name.startswith(prefix) else None
        place = heads_of.get(name.removeprefix(prefix), place)
        if place is None or place in ours:
            unexpected.append(name)
            continue
        ours[place], sources[place] = value, (name,)
    shared = any(name.removeprefix(prefix).removeprefix(PREFIX) == _SHARED for name in state)
    if shared and any(name.endswith("attn.relative_position_bias_table") for name in state):
        raise DataError(f"it has one position table for all layers ({_SHARED}) and tables of layers: which one holds?")
    ours = upernet.with_counters(ours)
    spec = read_encoder(ours, hints, shared=shared)
    heads = read_heads(ours, spec, hints)
    imagenet = bool(prefix) or "aggregation" in heads  # v1 was made on ImageNet-22k with mean and std 0.5
    return settle(
        layout, ours, sources, unexpected, spec, heads, hints.normalize or ("imagenet" if imagenet else "half")
    )


BEIT = Layout("unilm BEiT", matches_beit, convert_beit)
UPERNET = Layout("UPerNet of mmsegmentation", matches_upernet, convert_upernet)
