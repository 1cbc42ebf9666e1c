"""Flickr30k with Karpathy's splits (dataset_flickr30k.json) for data=flickr30k."""

from __future__ import annotations

from collections import defaultdict
from typing import Annotated

from vlbeit.data.following import VLMO, next_command
from vlbeit.errors import DataError

from . import karpathy
from .captioned import Captioned, Job, once, write_pairs
from .pictures import Check
from .preparation import Format, Options, Out, ShardMB, Threads, given
from .progress import Report
from .stores import Stores

_FILE = "dataset_flickr30k.json"
_KNOWN = ("flickr30k*.tar*", "flickr30k*.zip", "caption_datasets.zip")


def prepare(
    out: Out,
    *,
    from_: Annotated[list[str], "folders, archives and JSON files: dataset_flickr30k.json, flickr30k-images"],
    format: Format = "auto",
    check: Check = "header",
    threads: Threads = 0,
    shard_mb: ShardMB = 256,
    report: Report | None = None,
) -> str:
    """Prepare Flickr30k's pictures and captions for data=flickr30k.

    --from takes a folder with dataset_flickr30k.json (Karpathy's splits) and flickr30k-images/, or parts of that by
    name, also as archives. The same command after an interruption goes on where it stopped.
    """
    stores = Stores(given(from_), _KNOWN)
    files = stores.json_files(_FILE)
    if not files:
        raise DataError(f"{stores}: no {_FILE} in any; it is part of Karpathy's caption_datasets.zip")
    file = files[_FILE]
    pictures = karpathy.listed(file)
    (report or (lambda line: None))(karpathy.described(_FILE, pictures))
    found: dict[str, list[tuple[str, Captioned]]] = defaultdict(list)
    for picture in pictures:
        number = picture.name.rpartition(".")[0]  # Flickr's
        found[picture.split].append(
            (picture.name, Captioned(number, f"flickr-{number}", karpathy.texts(file, picture)))
        )
    splits = {split: once(found[split], str(file.path)) for split in ("train", "val", "test") if split in found}
    arguments = {"files": {_FILE: file.print()}}
    write_pairs(stores, splits, arguments, Job(out, format, check, Options(threads, shard_mb), report))
    return next_command(f"stage=vl task=retrieval init={VLMO} data=flickr30k", out, "retrieval")
