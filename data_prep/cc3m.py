"""Conceptual Captions 3M (Sharma et al. 2018): captions and addresses of web pictures, downloaded to shards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vlbeit.errors import DataError

from .listed import named, preparation
from .url_lists import UrlList, plain_columns

_FILES = {"train": "Train_GCC-training.tsv", "val": "Validation_GCC-1.1.0-Validation.tsv"}


def _lists(paths: list[Path]) -> Mapping[str, UrlList]:
    """Each line is a caption, a tab, an address."""
    found = {split: named(paths, name) for split, name in _FILES.items()}
    if not found["train"] and not found["val"] and len(paths) == 1 and paths[0].is_file():
        found["train"] = paths[0]
    lists = {split: plain_columns(path, url=1, caption=0) for split, path in found.items() if path}
    if not lists:
        raise DataError(f"--from {', '.join(map(str, paths))}: there is neither {' nor '.join(_FILES.values())}")
    return lists


prepare = preparation(
    _lists,
    f"{','.join(_FILES.values())}, or a folder that holds them",
    """Download the pictures of Conceptual Captions to shards for data=shards, with their captions.

    The list of validation becomes the split val. The same command after an interruption, of whatever kind, goes on
    where it stopped.
    """,
)
