"""The names of transformers' `Beit*` models, in and out.

In: hub files, and state dicts of newer versions, which rename inside. Out: the image part of any of our runs under the
hub's names, which every version reads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlbeit import files
from vlbeit.config import DataConfig, RunConfig
from vlbeit.errors import DataError, UsageError
from vlbeit.models.convert import upernet
from vlbeit.models.convert.idle_block import out_indices, places, with_idle_blocks, without_idle_blocks
from vlbeit.models.convert.image_part import ImagePart, image_part, image_state
from vlbeit.models.convert.layout import Converted, Hints, Layout, State
from vlbeit.models.convert.reading import read_encoder, read_heads, settle
from vlbeit.models.pyramid import taps
from vlbeit.models.writing import write_tensors

_SHARED = "encoder.relative_position_bias.relative_position_bias_table"
_TABLE = "attention.attention.relative_position_bias.relative_position_bias_table"
_STEM = {
    "embeddings.cls_token": "encoder.cls_token",
    "embeddings.mask_token": "encoder.mask_token",
    "embeddings.position_embeddings": "encoder.pos_embed",
    "embeddings.patch_embeddings.projection": "encoder.patch_embed.proj",
    _SHARED: "encoder.rel_pos.0.image",
    "layernorm": "encoder.norm",
    "pooler.layernorm": "heads.classification.fc_norm",
    "classifier": "heads.classification.fc",
    "lm_head": "heads.masked_patch",
}
_BLOCK = {
    "layernorm_before": "norm1",
    "layernorm_after": "experts.image.norm",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "experts.image.mlp.fc1",
    "output.dense": "experts.image.mlp.fc2",
    "lambda_1": "gamma_1",
    "lambda_2": "gamma_2",
}
_BIASES = {"query": "attn.q_bias", "value": "attn.v_bias"}
_NEWER = (  # what version 5.23 calls what is in the hub's files
    (r"^layers\.", "encoder.layer."),
    (r"^shared_position_bias\.", "encoder.relative_position_bias."),
    (r"^(encoder\.layer\.\d+)\.relative_position_bias\.", r"\1.attention.attention.relative_position_bias."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"^fpn\.fpn1\.conv_transpose1\.", "fpn1.0."),
    (r"^fpn\.fpn1\.normalization\.", "fpn1.1."),
    (r"^fpn\.fpn1\.conv_transpose2\.", "fpn1.3."),
    (r"^fpn\.fpn2\.", "fpn2.0."),
    (r"^decode_head\.psp_modules\.blocks\.(\d+)\.conv\.", r"decode_head.psp_modules.\1.1."),
    (r"^decode_head\.psp_bottleneck\.", "decode_head.bottleneck."),
    (r"^((?:decode|auxiliary)_head\..+)\.convolution\.", r"\1.conv."),
    (r"^((?:decode|auxiliary)_head\..+)\.normalization\.", r"\1.bn."),
)
_PROJECTION = re.compile(r"encoder\.layer\.\d+\.attention\.attention\.(query|key|value)\.weight")
_OF_LAYER = re.compile(r"encoder\.layer\.(\d+)\.(.+)")


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of a `Beit*` model. A ViT's differ by the bias of its keys, which BEiT has not."""
    names = {_hub_name(name) for name in state if not name.startswith(("vit.", "deit."))}
    first = "encoder.layer.0.attention.attention"
    return {"embeddings.cls_token", f"{first}.query.weight"} <= names and f"{first}.key.bias" not in names


def from_transformers(state: State, hints: Hints) -> Converted:
    """Any `Beit*` model: its encoder, and as heads `masked_patch`, `classification` (of 0 classes for the norm of a
    model that pools, without classifier), or `necks`, `segmentation` and `auxiliary`.
    """
    ours: State = {}
    sources: dict[str, tuple[str, ...]] = {}
    hub_names: dict[str, str] = {}
    unexpected = []
    heads_of = upernet.our_names(map(_hub_name, state))
    for name, value in state.items():
        hub = _hub_name(name)
        if hub.endswith("relative_position_index"):
            continue  # computed
        if hub in hub_names:
            raise DataError(f"{hub_names[hub]} and {name}: the encoder of vlbeit has one of these")
        hub_names[hub] = name
        own = heads_of.get(hub) or _our_name(hub)
        if own is not None:
            ours[own], sources[own] = value, (name,)
        elif not _PROJECTION.fullmatch(hub):
            unexpected.append(name)
    _join_qkv(state, hub_names, ours, sources)
    shared = _SHARED in hub_names
    if shared and any(_TABLE in hub for hub in hub_names):
        raise DataError(f"both {_SHARED} and a table per layer: the encoder of vlbeit has the one or the other")
    dropped: list[str] = []
    if heads_of:
        ours, sources, hints, dropped = without_idle_blocks(ours, sources, hints, shared)
    ours = upernet.with_counters(ours)
    spec = read_encoder(ours, hints, shared=shared)
    if spec.grid is not None and spec.grid[0] != spec.grid[1]:
        raise DataError("transformers computes positions in another way for pictures that are not square: only square")
    heads = read_heads(ours, spec, hints)
    usual = "imagenet" if "segmentation" in heads else "half"  # as the configs of the published models
    converted = settle("transformers", ours, sources, unexpected, spec, heads, hints.normalize or usual)
    converted.dropped += dropped
    if "necks" in heads and hints.taps is None:
        converted.assumed.append(f"out_indices are not told: the maps are taken from blocks {taps(spec.depth)}, from 0")
    return converted


def to_transformers(
    description: dict[str, Any],
    state: State,
    folder: Path,
    *,
    classes: Sequence[str] = (),
    normalize: str = DataConfig.normalize,
) -> State:
    """Write the image part of a checkpoint as a folder that `from_pretrained` takes; returns what was written.

    A segmentation model with UPerNet is a BeitForSemanticSegmentation, mostly with idle blocks (`convert.idle_block`).

    Args:
        description: of the checkpoint.
        state: its tensors, under our names.
        folder: gets config.json, model.safetensors and preprocessor_config.json.
        classes: names of the classes, in the order of the classifier.
        normalize: `data.normalize` that it was trained with.

    Raises:
        UsageError: there is no image part, or one that transformers' Beit has no place for.
    """
    part = image_part(description, "transformers")
    spec = part.spec
    assert spec.image_size is not None
    if spec.image_size[0] != spec.image_size[1]:
        raise UsageError(
            f"this tower is for pictures of {spec.image_size[0]}x{spec.image_size[1]}; transformers computes positions "
            "rightly for square ones alone: --to timm takes it"
        )
    out: State = {}
    for name, value in with_idle_blocks(image_state(part, state), part).items():
        out.update(_hub_tensors(name, value, part))
    write_tensors(folder / "model.safetensors", out)
    files.write_json(folder / "preprocessor_config.json", _preprocessor(part, normalize), indent=2)
    files.write_text(folder / "config.json", _config(part, out, classes))
    return out


def architecture(part: ImagePart) -> str:
    """The class of transformers that takes all of the image part."""
    if "segmentation" in part.heads:
        return "BeitForSemanticSegmentation"
    if part.classes:
        return "BeitForImageClassification"
    return "BeitForMaskedImageModeling" if "masked_patch" in part.heads else "BeitModel"


def _hub_name(name: str) -> str:
    """The name in a file of the hub, without the prefix of a model with a head."""
    name = name.removeprefix("beit.")
    for pattern, replacement in _NEWER:
        name = re.sub(pattern, replacement, name)
    return name


def _our_name(hub: str) -> str | None:
    """One name of the hub's to ours; None where there is none, and for the weights of queries, keys and values."""
    match = _OF_LAYER.fullmatch(hub)
    if match and match[2] == _TABLE:
        return f"encoder.rel_pos.{match[1]}.image"
    names, rest, prefix = (_BLOCK, match[2], f"encoder.blocks.{match[1]}.") if match else (_STEM, hub, "")
    if rest in names:
        return prefix + names[rest]
    stem, _, leaf = rest.rpartition(".")
    if stem in names and leaf in ("weight", "bias"):
        return f"{prefix}{names[stem]}.{leaf}"
    part = stem.removeprefix("attention.attention.")
    return prefix + _BIASES[part] if match and part in _BIASES and leaf == "bias" else None


def _join_qkv(state: State, hub_names: dict[str, str], ours: State, sources: dict[str, tuple[str, ...]]) -> None:
    """The weights of queries, keys and values of every layer as one, in that order; a layer that lacks one has none."""
    for hub in [hub for hub in hub_names if hub.endswith("attention.attention.query.weight")]:
        three = [hub.replace("query", part) for part in ("query", "key", "value")]
        if all(part in hub_names for part in three):
            name = f"encoder.blocks.{hub.split('.')[2]}.attn.qkv.weight"
            theirs = tuple(hub_names[part] for part in three)
            ours[name], sources[name] = torch.cat([state[part] for part in theirs]), theirs


def _hub_tensors(name: str, value: Tensor, part: ImagePart) -> State:
    """One of our tensors under the hub's names: three for the projections of queries, keys and values."""
    prefix = "" if architecture(part) == "BeitModel" else "beit."
    match = re.fullmatch(r"encoder\.blocks\.(\d+)\.(.+)", name)
    if match is None:
        if table := re.fullmatch(r"encoder\.rel_pos\.(\d+)\.image", name):
            own = _SHARED if part.spec.positions == "shared" else f"encoder.layer.{table[1]}.{_TABLE}"
            return {prefix + own: value}
        if head := upernet.their_name(name, "classifier"):
            return {head: value}
        hub = _translated(name, _STEM)
        masked = architecture(part) == "BeitForMaskedImageModeling"
        on_top = hub.startswith(("lm_head.", "classifier.", *(["layernorm."] if masked else [])))
        return {hub if on_top else prefix + hub: value}
    layer, rest = f"{prefix}encoder.layer.{match[1]}.", match[2]
    attention = f"{layer}attention.attention."
    if rest == "attn.qkv.weight":
        return {f"{attention}{p}.weight": v for p, v in zip(("query", "key", "value"), value.chunk(3), strict=True)}
    for theirs, ours in _BIASES.items():
        if rest == ours:
            return {f"{attention}{theirs}.bias": value}
    return {layer + _translated(rest, _BLOCK): value}


def _translated(name: str, names: Mapping[str, str]) -> str:
    back = {ours: theirs for theirs, ours in names.items()}
    stem, _, leaf = name.rpartition(".")
    return back[name] if name in back else f"{back[stem]}.{leaf}"


def _config(part: ImagePart, out: State, classes: Sequence[str]) -> str:
    """config.json, made by transformers itself. Its default of 1e-12 in the norms is not BEiT's, which is 1e-6."""
    from transformers import BeitConfig

    spec = part.spec
    assert spec.image_size is not None
    named = list(classes) if len(classes) == part.classes else [f"LABEL_{i}" for i in range(part.classes)]
    labels: dict[str, Any] = {}
    if named:
        labels = {"id2label": dict(enumerate(named)), "label2id": {name: i for i, name in enumerate(named)}}
    config = BeitConfig(
        vocab_size=part.heads.get("masked_patch", {}).get("dim_out", 8192),
        hidden_size=spec.embed_dim,
        num_hidden_layers=len(places(part)),
        num_attention_heads=spec.num_heads,
        intermediate_size=int(spec.embed_dim * spec.mlp_ratio),
        layer_norm_eps=1e-6,
        image_size=spec.image_size[0],
        patch_size=spec.patch_size,
        use_mask_token=spec.mask_token,
        use_absolute_position_embeddings=spec.positions == "absolute",
        use_relative_position_bias=spec.positions == "per_layer",
        use_shared_relative_position_bias=spec.positions == "shared",
        layer_scale_init_value=float(spec.layer_scale),
        drop_path_rate=float(spec.drop_path),
        use_mean_pooling=not spec.final_norm or architecture(part) == "BeitForMaskedImageModeling",
        architectures=[architecture(part)],
        dtype=str(out[next(name for name in out if name.endswith("cls_token"))].dtype).removeprefix("torch."),
        **labels,
        **_segmentation(part),
    )
    return config.to_json_string(use_diff=False)


def _segmentation(part: ImagePart) -> dict[str, Any]:
    """What config.json says of the decoder."""
    if "segmentation" not in part.heads:
        return {}
    auxiliary = part.heads.get("auxiliary")
    return {
        "out_indices": out_indices(part),
        "use_auxiliary_head": auxiliary is not None,
        **({"auxiliary_channels": auxiliary.get("channels", 256)} if auxiliary else {}),
    }


def _preprocessor(part: ImagePart, normalize: str) -> dict[str, Any]:
    """preprocessor_config.json, as in BEiT's evaluation: the shorter side resized, the centre cropped.

    For segmentation, whose classes are those of all pixels, the whole picture squeezed to the size of the tower.
    """
    assert part.spec.image_size is not None
    mean, std = RunConfig(data=DataConfig(normalize=normalize)).normalization
    size = part.spec.image_size[0]
    square = {"height": size, "width": size}
    shown: dict[str, Any] = {
        "size": {"shortest_edge": math.floor(size / (0.875 if size < 384 else 1.0))},
        "resample": 3,  # bicubic
        "do_center_crop": True,
    }
    if "segmentation" in part.heads:
        shown = {"size": square, "resample": 2, "do_center_crop": False}  # bilinear
    return {
        "image_processor_type": "BeitImageProcessor",
        "do_resize": True,
        **shown,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
        "do_reduce_labels": False,
    }


TRANSFORMERS = Layout("transformers", matches, from_transformers)
