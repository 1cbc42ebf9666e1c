"""COCO's captions with Karpathy's splits (or the official captions_*.json) for data=coco_captions."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Annotated, Any

from vlbeit.data.following import VLMO, next_command
from vlbeit.data.instances import chosen_release
from vlbeit.data.json_file import JsonFile
from vlbeit.errors import DataError

from . import karpathy
from .captioned import Captioned, Job, Wanted, once, write_pairs
from .pictures import Check
from .preparation import Format, Options, Out, ShardMB, Threads, given
from .progress import Report
from .stores import Stores

_KARPATHY = "dataset_coco.json"
_OFFICIAL = re.compile(r"captions_((?:train|val)(?:2017|2014)?)\.json")
_KNOWN = ("train2014.zip", "val2014.zip", "train2017.zip", "val2017.zip", "caption_datasets.zip", "annotations*.zip")


def prepare(
    out: Out,
    *,
    from_: Annotated[list[str], "folders, zips and JSON files: dataset_coco.json, train2014, val2014"],
    format: Format = "auto",
    check: Check = "header",
    threads: Threads = 0,
    shard_mb: ShardMB = 256,
    report: Report | None = None,
) -> str:
    """Prepare COCO's pictures and captions for data=coco_captions.

    --from takes a folder with dataset_coco.json (Karpathy's splits), train2014/ and val2014/, or parts of that by
    name, also as zips; pictures of 2017 will do, they are the same. Without Karpathy's file the splits are the official
    captions_train2014.json and captions_val2014.json. The same command after an interruption goes on where it stopped.
    """
    say = report or (lambda line: None)
    stores = Stores(given(from_), _KNOWN)
    files = stores.json_files(rf"{re.escape(_KARPATHY)}|{_OFFICIAL.pattern}")
    if _KARPATHY in files:
        splits = karpathy_splits(files[_KARPATHY], say)
        used = {_KARPATHY: files[_KARPATHY]}
    else:
        used = _official(files, stores)
        splits = {split: _official_split(file) for split, file in zip(("train", "val"), used.values(), strict=False)}
        say(f"no {_KARPATHY}: the splits are {', '.join(used)}, not Karpathy's, which published numbers are about")
    arguments = {"files": {name: file.print() for name, file in used.items()}}
    write_pairs(stores, splits, arguments, Job(out, format, check, Options(threads, shard_mb), report))
    return next_command(f"stage=vl task=retrieval init={VLMO} data=coco_captions", out, "retrieval")


def karpathy_splits(file: JsonFile, say: Report) -> dict[str, Wanted]:
    """The splits of dataset_coco.json by the names that the pictures have in the releases of 2014 and of 2017."""
    found: dict[str, list[tuple[str, Captioned]]] = defaultdict(list)
    pictures = karpathy.listed(file)
    say(karpathy.described(_KARPATHY, pictures))
    for picture in pictures:
        if picture.number is None:
            raise DataError(f"{file.path}: {picture.name} has no cocoid; is it {_KARPATHY}?")
        whole = _captioned(picture.number, karpathy.texts(file, picture))
        found[picture.split] += [(name, whole) for name in {picture.name: 0, f"{picture.number:012d}.jpg": 0}]
    return {split: once(found[split], str(file.path)) for split in ("train", "val", "test") if split in found}


def _captioned(number: int, texts: Any) -> Captioned:
    return Captioned(str(number), f"coco-{number}", texts)


def _official(files: Mapping[str, JsonFile], stores: Stores) -> dict[str, JsonFile]:
    """The files of train and, where it is there, of val, of one release."""
    year = chosen_release(lambda name: f"captions_{name}.json" in files)
    names = [f"captions_{split}{year}.json" for split in ("train", "val")]
    if names[0] not in files:
        raise DataError(
            f"{stores}: no {_KARPATHY} and no captions_train2014.json in any; {_KARPATHY} is part of Karpathy's "
            f"caption_datasets.zip"
        )
    return {name: files[name] for name in names if name in files}


def _official_split(file: JsonFile) -> Wanted:
    texts: dict[int, list[str]] = defaultdict(list)
    try:
        for _, row in file.items("annotations"):
            texts[int(row["image_id"])].append(str(row["caption"]))
        rows = [(str(row["file_name"]), int(row["id"])) for _, row in file.items("images")]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file.path}: {type(error).__name__}: {error}; is it COCO's captions_*.json?") from error
    if unknown := set(texts) - {number for _, number in rows}:
        raise DataError(f"{file.path}: captions of pictures that it does not list, such as {min(unknown)}")
    return once(
        [(name, _captioned(number, lambda number=number: texts[number])) for name, number in rows], str(file.path)
    )
