"""Which files of a folder are its weights: the same for what is fetched, what is told apart, and what is read."""

from __future__ import annotations

from pathlib import Path

NAMED = ("model.safetensors", "pytorch_model.bin")
"""The files of Hugging Face, the first that is there goes first; NAME.index.json lists the parts of a large one."""

PATTERNS = (("*.safetensors",), ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt"))
"""Kinds of weights, the one that is taken first before the other."""


def weight_files(folder: Path) -> list[Path]:
    """The files in `folder` of the first kind that it has, by name; none where it has no weights."""
    for patterns in PATTERNS:
        found = sorted(path for pattern in patterns for path in folder.glob(pattern) if path.is_file())
        if found:
            return found
    return []
