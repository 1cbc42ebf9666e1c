"""What the config.json beside the weights of timm and transformers tells that the tensors cannot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlbeit.config import DataConfig, RunConfig
from vlbeit.errors import DataError
from vlbeit.models.convert.layout import Hints
from vlbeit.models.convert.tables import say
from vlbeit.models.convert.upernet import POOL_SCALES

_THEIR_WEIGHTS = ("model.safetensors", "pytorch_model.bin")

_SEGMENTATION = "BeitForSemanticSegmentation"
_EPSILON = 1e-6
_HUB_EPSILON = 1e-12  # in the hub's configs of models that were trained with the other: outputs agree to 1e-3


def hints_beside(path: Path, hints: Hints) -> Hints:
    """Complete `hints` by config.json (and preprocessor_config.json) of the folder `path`, or of the file's folder.

    A config.json is that of a file alone if the file bears the name that timm and transformers give their weights. What
    the caller says goes first. A folder without them, or with those of other programs, tells nothing. Raises DataError
    where they cannot be read, or describe a BEiT that computes otherwise than ours.
    """
    if not path.is_dir() and path.name not in _THEIR_WEIGHTS:
        return hints
    folder = path if path.is_dir() else path.parent
    config = _json(folder / "config.json")
    if config.get("model_type") == "beit":
        return _of_transformers(config, _json(folder / "preprocessor_config.json"), hints, folder)
    if str(config.get("architecture", "")).startswith("beit"):
        return _of_timm(config, hints, folder)
    return hints


def _of_transformers(config: dict[str, Any], processor: dict[str, Any], hints: Hints, folder: Path) -> Hints:
    activation = config.get("hidden_act", "gelu")
    if activation != "gelu":
        raise DataError(f"{folder}/config.json: hidden_act={activation}, and the encoder of vlbeit has gelu alone")
    epsilon = config.get("layer_norm_eps", _HUB_EPSILON)
    if epsilon not in (_EPSILON, _HUB_EPSILON):
        raise DataError(
            f"{folder}/config.json: layer_norm_eps={epsilon}, and the norms of vlbeit have {_EPSILON} alone"
        )
    normalize = hints.normalize or _normalize(processor.get("image_mean"), processor.get("image_std"))
    taps = _taps(config, folder) if _SEGMENTATION in (config.get("architectures") or ()) else None
    return hints.over(Hints(num_heads=config.get("num_attention_heads"), normalize=normalize, taps=taps))


def _taps(config: dict[str, Any], folder: Path) -> tuple[int, ...] | None:
    """The blocks, from 0, that `out_indices` mean: transformers takes them from 1 in a list with the embedding first.

    Raises DataError where the decoder pools to other scales than the published ones.
    """
    scales = config.get("pool_scales", POOL_SCALES)
    if list(scales) != POOL_SCALES:
        raise DataError(f"{folder}/config.json: pool_scales={scales}, and a UPerNet that is read has {POOL_SCALES}")
    named = config.get("out_indices")
    return None if named is None else tuple(index - 2 for index in named)


def _of_timm(config: dict[str, Any], hints: Hints, folder: Path) -> Hints:
    arguments, pretrained = config.get("model_args") or {}, config.get("pretrained_cfg") or {}
    pool = config.get("global_pool", arguments.get("global_pool", "avg"))
    if pool == "avg" and arguments.get("use_fc_norm") is False and config.get("num_classes", 0):
        raise DataError(
            f"{folder}/config.json: use_fc_norm=false with global_pool=avg, a mean of normalised patches: "
            "a classifier of vlbeit normalises the mean"
        )
    if pool == "token" and arguments.get("use_fc_norm") and config.get("num_classes", 0):
        raise DataError(
            f"{folder}/config.json: use_fc_norm=true with global_pool=token, a norm after the CLS token was taken: "
            "a classifier of vlbeit on the CLS token has the norm before"
        )
    size = arguments.get("img_size")
    wide = (size[0], size[1]) if isinstance(size, list) and len(set(size)) == 2 else None
    normalize = hints.normalize or _normalize(pretrained.get("mean"), pretrained.get("std"))
    return hints.over(Hints(num_heads=arguments.get("num_heads"), image_size=wide, normalize=normalize))


def _normalize(mean: Sequence[float] | None, std: Sequence[float] | None) -> str | None:
    """The `data.normalize` with these numbers; None where they are not told. DataError for others."""
    if mean is None or std is None:
        return None
    for name in ("half", "imagenet"):
        known = RunConfig(data=DataConfig(normalize=name)).normalization
        if all(abs(a - b) < 1e-3 for a, b in zip((*known[0], *known[1]), (*mean, *std), strict=True)):
            return name
    told = say('normalize="half"', "--normalize half")
    raise DataError(
        f"made for pictures normalised by mean {list(mean)} and std {list(std)}, which vlbeit has not; to take it with "
        f"another (half, imagenet) {told}"
    )


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error}): copy the folder again") from error
    return found if isinstance(found, dict) else {}
