"""Necks, decoder and auxiliary head of UPerNet under mmsegmentation's names, which the hub's files took over.

They differ in one place: the classifier is `conv_seg` in mmsegmentation, `classifier` on the hub.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from vlbeit.errors import DataError
from vlbeit.models.convert.layout import Hints, State
from vlbeit.models.pyramid import taps
from vlbeit.models.spec import EncoderSpec

PARTS = ("necks", "segmentation", "auxiliary")
"""The heads of a segmentation model."""

EMBEDDING = -1
"""As a tap: the tokens before the first block, which transformers can take and we do not."""

POOL_SCALES = [1, 2, 3, 6]
"""Of every published UPerNet; tensors tell how many there are alone."""

_CONVS = (  # convolution with its batch norm; * is a number
    ("decode_head.psp_modules.*.1", "segmentation.pooled.*"),
    ("decode_head.bottleneck", "segmentation.bottleneck"),
    ("decode_head.lateral_convs.*", "segmentation.laterals.*"),
    ("decode_head.fpn_convs.*", "segmentation.outputs.*"),
    ("decode_head.fpn_bottleneck", "segmentation.fuse"),
    ("auxiliary_head.convs.0", "auxiliary.conv"),
)
_PAIRS = (
    ("fpn1.0", "necks.up4.0"),
    ("fpn1.1", "necks.up4.1"),
    ("fpn1.3", "necks.up4.3"),
    ("fpn2.0", "necks.up2"),
    *((f"{theirs}.conv", f"{ours}.conv") for theirs, ours in _CONVS),
    *((f"{theirs}.bn", f"{ours}.norm") for theirs, ours in _CONVS),
    ("decode_head.classifier", "segmentation.classifier"),
    ("auxiliary_head.classifier", "auxiliary.classifier"),
)
_ROOTS = {"fpn1": "necks", "fpn2": "necks", "decode_head": "segmentation", "auxiliary_head": "auxiliary"}


def our_names(names: Iterable[str]) -> dict[str, str]:
    """Of names in a file those of UPerNet, without `backbone.` before them, to ours, `heads.` in front.

    A part with a tensor that ours has no place for (a deeper auxiliary head, another decoder) is left out whole: it
    would compute something else.
    """
    found: dict[str, str] = {}
    foreign = set()
    for name in names:
        part = _ROOTS.get(name.partition(".")[0])
        ours = _renamed(name.replace(".conv_seg.", ".classifier."), _PAIRS) if part else None
        if ours is not None:
            found[name] = f"heads.{ours}"
        elif part is not None:
            foreign.add(part)
    return {name: ours for name, ours in found.items() if ours.split(".")[1] not in foreign}


def their_name(name: str, classifier: str) -> str | None:
    """The inverse for one of our names; `classifier` is conv_seg or classifier. None for another head's."""
    theirs = _renamed(name.removeprefix("heads."), [(ours, theirs) for theirs, ours in _PAIRS])
    return None if theirs is None else theirs.replace("_head.classifier.", f"_head.{classifier}.")


def has_upernet(description: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is a segmentation model with UPerNet; its auxiliary head may be missing."""
    heads = description.get("heads", {})
    return heads.get("segmentation", {}).get("kind") == "upernet" and "necks" in heads


def with_counters(state: State) -> State:
    """The state with the counter of every batch norm, which old files lack; it has no part in what is computed."""
    norms = [name.removesuffix("running_mean") for name in state if name.endswith(".running_mean")]
    counters = {f"{norm}num_batches_tracked": torch.tensor(0) for norm in norms}
    return {**counters, **state}


def read_upernet(state: Mapping[str, torch.Tensor], spec: EncoderSpec, hints: Hints) -> dict[str, dict[str, Any]]:
    """Specs of the heads of a segmentation model that the tensors make; none where it taps the embedding itself.

    Raises DataError where the pooling scales are not those of the published models, or the taps no blocks.
    """
    found: dict[str, dict[str, Any]] = {}
    if hints.taps is not None and EMBEDDING in hints.taps:
        return found
    if "heads.necks.up2.weight" in state:
        found["necks"] = {"kind": "feature_necks", "dim": spec.embed_dim, **_taps(spec, hints)}
    decoder, auxiliary = (_sizes(state, part, conv) for part, conv in (("segmentation", "fuse"), ("auxiliary", "conv")))
    if decoder is not None:
        scales = {name.split(".")[3] for name in state if name.startswith("heads.segmentation.pooled.")}
        if len(scales) != len(POOL_SCALES):
            raise DataError(f"its decoder pools to {len(scales)} scales, which are not told; usual are {POOL_SCALES}")
        found["segmentation"] = {"kind": "upernet", "dim": spec.embed_dim, **decoder}
    if auxiliary is not None:
        found["auxiliary"] = {"kind": "fcn", "dim": spec.embed_dim, **auxiliary}
    return found


def _sizes(state: Mapping[str, torch.Tensor], part: str, conv: str) -> dict[str, int] | None:
    weight, classifier = (state.get(f"heads.{part}.{name}.weight") for name in (f"{conv}.conv", "classifier"))
    if weight is None or classifier is None or not weight.ndim == classifier.ndim == 4:
        return None
    return {"num_classes": classifier.shape[0], "channels": weight.shape[0]}


def _taps(spec: EncoderSpec, hints: Hints) -> dict[str, list[int]]:
    """What is to be said of the blocks that the maps come from, where they are not those of the published code."""
    told = list(hints.taps or taps(spec.depth))
    if len(told) != 4 or not all(0 <= tap < spec.depth for tap in told):
        raise DataError(f"its maps are said to come from blocks {told}, from 0: four of its {spec.depth} are needed")
    return {"taps": told} if told != taps(spec.depth) else {}


def _renamed(name: str, pairs: Iterable[tuple[str, str]]) -> str | None:
    stem, _, leaf = name.rpartition(".")
    for start, end in pairs:
        if match := re.fullmatch(re.escape(start).replace(r"\*", r"(\d+)"), stem):
            return f"{end.replace('*', match[1]) if match.groups() else end}.{leaf}"
    return None
