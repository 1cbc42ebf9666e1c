"""SBU captions (Ordonez et al. 2011): pictures of Flickr with what their owners wrote, downloaded to shards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vlbeit.errors import DataError

from .listed import named, preparation
from .url_lists import UrlList, sbu_json, two_texts

_JSON = "sbu-captions-all.json"
_TEXTS = ("SBU_captioned_photo_dataset_urls.txt", "SBU_captioned_photo_dataset_captions.txt")


def _lists(paths: list[Path]) -> Mapping[str, UrlList]:
    if path := named(paths, _JSON):
        return {"train": sbu_json(path)}
    urls, captions = (named(paths, name) for name in _TEXTS)
    if urls and captions:
        return {"train": two_texts(urls, captions)}
    if len(paths) == 1 and paths[0].suffix == ".json":
        return {"train": sbu_json(paths[0])}
    raise DataError(
        f"--from {', '.join(map(str, paths))}: no {_JSON} and no {' with '.join(_TEXTS)}; the first is in "
        f"sbu-captions-all.tar.gz of the SBU captions' page"
    )


prepare = preparation(
    _lists,
    f"{_JSON}, or a folder that holds it; or {','.join(_TEXTS)}",
    """Download SBU's pictures to shards for data=shards, with their captions.

    The same command after an interruption, of whatever kind, goes on where it stopped.
    """,
)
