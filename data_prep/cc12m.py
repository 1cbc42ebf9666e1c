"""Conceptual 12M (Changpinyo et al. 2021): addresses and captions of web pictures, downloaded to shards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vlbeit.errors import DataError

from .listed import named, preparation
from .url_lists import UrlList, plain_columns

_FILE = "cc12m.tsv"


def _lists(paths: list[Path]) -> Mapping[str, UrlList]:
    """Each line is an address, a tab, a caption."""
    path = named(paths, _FILE) or (paths[0] if len(paths) == 1 and paths[0].is_file() else None)
    if path is None:
        raise DataError(f"--from {', '.join(map(str, paths))}: there is no {_FILE}")
    return {"train": plain_columns(path, url=0, caption=1)}


prepare = preparation(
    _lists,
    f"{_FILE}, or a folder that holds it",
    """Download the pictures of Conceptual 12M to shards for data=shards, with their captions.

    The same command after an interruption, of whatever kind, goes on where it stopped.
    """,
)
