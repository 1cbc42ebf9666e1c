"""The names of timm's `Beit` (`beit_*`, `beitv2_*`): in, and out of the image part of any of our runs.

timm took unilm's names over; its files differ by what they lack: index buffers, the mask token and the MIM head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vlbeit.config import DataConfig, RunConfig
from vlbeit.errors import DataError
from vlbeit.models.convert.image_part import image_part, image_state
from vlbeit.models.convert.layout import Converted, Hints, Layout, State
from vlbeit.models.convert.reading import read_encoder, read_heads, settle
from vlbeit.models.convert.unilm import official_name, our_name
from vlbeit.models.presets import PRESETS

_SHARED = "rel_pos_bias.relative_position_bias_table"
_TABLE = "attn.relative_position_bias_table"
_OTHERS = re.compile(r"relative_position_index$|^(mask_token$|lm_head\.|cls_pt_layers\.|transformer\.)")
_ON_CLS = (
    "no fc_norm, so the classifier is taken as one on the CLS token (global_pool=token); where its timm model was made "
    "with global_pool=avg and use_fc_norm=False, its logits are others, and vlbeit has no such classifier"
)
_NOT_IN_TIMM = ("encoder.mask_token", "heads.masked_patch.")


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of a timm BEiT, and none tells of unilm.

    With absolute positions the files of both are the same to the name: unilm's layout reads those.
    """
    own = {"cls_token", "patch_embed.proj.weight", "blocks.0.attn.q_bias", "blocks.0.norm2.weight"} <= state.keys()
    relative = any(name.endswith("relative_position_bias_table") for name in state)
    return own and relative and not any(_OTHERS.search(name) for name in state)


def from_timm(state: State, hints: Hints) -> Converted:
    """A timm `Beit`: its encoder, and as head `classification` its `head` with the `fc_norm` before it.

    A model without classes has a head of 0 classes; one without `fc_norm` pools the CLS token, which is `assumed`.
    """
    if _SHARED in state and any(name.endswith(_TABLE) for name in state):
        raise DataError(f"both {_SHARED} and a table per block: the encoder of vlbeit has the one or the other")
    ours: State = {}
    sources: dict[str, tuple[str, ...]] = {}
    unexpected = []
    for name, value in state.items():
        place = our_name(name)
        if place is None:
            unexpected.append(name)
        else:
            ours[place], sources[place] = value, (name,)
    spec = read_encoder(ours, hints, shared=_SHARED in state)
    heads = read_heads(ours, spec, hints)
    converted = settle("timm", ours, sources, unexpected, spec, heads, hints.normalize or "half")
    if heads.get("classification", {}).get("pool") == "token":
        converted.assumed.append(_ON_CLS)
    return converted


def to_timm(description: dict[str, Any], state: State) -> State:
    """The image part of a checkpoint under timm's names: what the model of `timm_arguments` takes with `strict=True`.

    Raises UsageError where there is no image part, or one that timm's `Beit` has no place for.
    """
    part = image_part(description, "timm")
    shared = part.spec.positions == "shared"
    out = {}
    for name, value in image_state(part, state).items():
        theirs = None if name.startswith(_NOT_IN_TIMM) else official_name(name, vlmo=False, shared=shared)
        if theirs is not None:
            out[theirs] = value
    return out


def timm_arguments(description: dict[str, Any], normalize: str = "half") -> tuple[str, dict[str, Any]]:
    """Name and keyword arguments for `timm.create_model` whose model takes what `to_timm` gives.

    Args:
        description: of the checkpoint.
        normalize: `data.normalize` of its run; imagenet picks a `beitv2_*` name, whose default config has those values.
    """
    part = image_part(description, "timm")
    spec = part.spec
    assert spec.image_size is not None
    size = "large" if spec.embed_dim >= PRESETS["large"].embed_dim else "base"
    height, width = spec.image_size
    pooled = part.heads.get("classification", {}).get("pool") == "token"
    wanted: dict[str, Any] = {
        "img_size": height if height == width else (height, width),
        "patch_size": spec.patch_size,
        "embed_dim": spec.embed_dim,
        "depth": spec.depth,
        "num_heads": spec.num_heads,
        "mlp_ratio": spec.mlp_ratio,
        "use_abs_pos_emb": spec.positions == "absolute",
        "use_rel_pos_bias": spec.positions == "per_layer",
        "use_shared_rel_pos_bias": spec.positions == "shared",
        "use_fc_norm": not spec.final_norm,
        "global_pool": "token" if pooled else "avg",
        "init_values": "scales" if spec.layer_scale else None,
    }
    preset = PRESETS[size]
    of_the_name: dict[str, Any] = {
        **{key: getattr(preset, key) for key in ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")},
        **{"img_size": 224, "use_fc_norm": True, "global_pool": "avg", "init_values": "scales"},
        **{"use_abs_pos_emb": False, "use_rel_pos_bias": True, "use_shared_rel_pos_bias": False},
    }
    name = f"beit{'v2' if normalize == 'imagenet' else ''}_{size}_patch16_224"
    return name, {
        "num_classes": part.classes,
        **{key: value for key, value in wanted.items() if value != of_the_name[key]},
    }


def timm_config(description: dict[str, Any], classes: Sequence[str], normalize: str) -> dict[str, Any]:
    """The config.json with which `timm.create_model("local-dir:FOLDER", pretrained=True)` is that model; arguments as
    of `timm_arguments`, and the names of the classes.
    """
    name, arguments = timm_arguments(description, normalize)
    spec, number = image_part(description, "timm").spec, arguments.pop("num_classes")
    assert spec.image_size is not None
    mean, std = RunConfig(data=DataConfig(normalize=normalize)).normalization
    return {
        "architecture": name,
        "num_classes": number,
        "num_features": spec.embed_dim,
        "global_pool": arguments.pop("global_pool", "avg"),
        **({"label_names": list(classes)} if number and len(classes) == number else {}),
        "model_args": arguments,
        "pretrained_cfg": {
            "num_classes": number,
            "input_size": [3, *spec.image_size],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 0.875 if max(spec.image_size) < 384 else 1.0,
            "mean": list(mean),
            "std": list(std),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


TIMM = Layout("timm", matches, from_timm)
