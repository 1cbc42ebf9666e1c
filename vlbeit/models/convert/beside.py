"""What the config.json beside the weights of timm and transformers tells that the tensors cannot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from vlbeit.config import DataConfig, RunConfig
from vlbeit.errors import DataError
from vlbeit.models.convert.layout import Hints


class Beside(NamedTuple):
    """Hints, those of the caller first, and the names of the classes, where they are told."""

    hints: Hints
    classes: tuple[str, ...] = ()


def read_beside(path: Path, hints: Hints) -> Beside:
    """Read config.json (and preprocessor_config.json) of the folder `path`, or of the folder of the file `path`.

    A folder without one, or with that of another program, tells nothing. Raises DataError where the file cannot be
    read, or describes a BEiT that computes otherwise than ours.
    """
    folder = path if path.is_dir() else path.parent
    config = _json(folder / "config.json")
    if config.get("model_type") == "beit":
        return _of_transformers(config, _json(folder / "preprocessor_config.json"), hints, folder)
    if str(config.get("architecture", "")).startswith("beit"):
        return _of_timm(config, hints, folder)
    return Beside(hints)


def _of_transformers(config: dict[str, Any], processor: dict[str, Any], hints: Hints, folder: Path) -> Beside:
    activation = config.get("hidden_act", "gelu")
    if activation != "gelu":
        raise DataError(f"{folder}/config.json: hidden_act={activation}, and the encoder of vlbeit has gelu alone")
    labels = config.get("id2label") or {}
    classes = tuple(str(labels[key]) for key in sorted(labels, key=int))
    named = any(name != f"LABEL_{number}" for number, name in enumerate(classes))
    return Beside(
        replace(
            hints,
            num_heads=hints.num_heads or config.get("num_attention_heads"),
            normalize=hints.normalize or _normalize(processor.get("image_mean"), processor.get("image_std")),
        ),
        classes if named else (),
    )


def _of_timm(config: dict[str, Any], hints: Hints, folder: Path) -> Beside:
    arguments, pretrained = config.get("model_args") or {}, config.get("pretrained_cfg") or {}
    pool = config.get("global_pool", arguments.get("global_pool", "avg"))
    if pool == "avg" and arguments.get("use_fc_norm") is False and config.get("num_classes", 0):
        raise DataError(
            f"{folder}/config.json: use_fc_norm=false with global_pool=avg, a mean of normalised patches: "
            "a classifier of vlbeit normalises the mean"
        )
    size = arguments.get("img_size")
    wide = tuple(size) if isinstance(size, list) and len(set(size)) == 2 else None
    names = config.get("label_names") or ()
    return Beside(
        replace(
            hints,
            num_heads=hints.num_heads or arguments.get("num_heads"),
            image_size=hints.image_size or wide,
            normalize=hints.normalize or _normalize(pretrained.get("mean"), pretrained.get("std")),
        ),
        tuple(map(str, names)) if isinstance(names, list) else (),
    )


def _normalize(mean: Sequence[float] | None, std: Sequence[float] | None) -> str | None:
    """The `data.normalize` with these numbers; None where they are not told. DataError for others."""
    if mean is None or std is None:
        return None
    for name in ("half", "imagenet"):
        known = RunConfig(data=DataConfig(normalize=name)).normalization
        if all(abs(a - b) < 1e-3 for a, b in zip((*known[0], *known[1]), (*mean, *std), strict=True)):
            return name
    raise DataError(
        f"made for pictures normalised by mean {list(mean)} and std {list(std)}, which vlbeit has not: say "
        "normalize=half or normalize=imagenet to take it all the same"
    )


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error}): copy the folder again") from error
    return found if isinstance(found, dict) else {}
