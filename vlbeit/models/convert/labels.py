"""What the rows of a classifier stand for, as the config.json beside foreign weights says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from vlbeit.types import Meta

_NUMBERED = re.compile(r"LABEL_\d+")  # transformers' names where nobody gave any


def labels_beside(path: Path) -> Meta:
    """`classes` in the order of the classifier, from a folder of transformers (`id2label`) or timm (`label_names`).

    Empty for a file, and where the folder does not name them.
    """
    file = path / "config.json"
    if not file.is_file():
        return {}
    try:
        config: Any = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:  # the weights' reader says so
        return {}
    names = _of_transformers(config.get("id2label") or {}) or _of_timm(config)
    return {"classes": names} if names else {}


def _of_transformers(named: dict[str, str]) -> list[str]:
    names = [str(named[key]) for key in sorted(named, key=int)]
    return [] if all(map(_NUMBERED.fullmatch, names)) else names


def _of_timm(config: dict[str, Any]) -> list[str]:
    names = config.get("label_names") or (config.get("pretrained_cfg") or {}).get("label_names") or []
    return [str(name) for name in names]
