"""ADE20K with 150 classes (ADEChallengeData2016, sceneparsing.csail.mit.edu) for data=ade20k."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

from vlbeit.data.class_names import class_names
from vlbeit.data.following import BEIT, next_command
from vlbeit.errors import DataError, UsageError, some

from .archives import Entry, entries
from .pictures import Check, examine_pair, is_picture
from .preparation import (
    Format,
    Options,
    Out,
    Plan,
    ShardMB,
    Split,
    Threads,
    Verify,
    chosen,
    fingerprint,
    given,
    run,
)
from .progress import Report
from .shards import Fault, Item, Layout, Position

_FOLDERS = {"train": "training", "val": "validation"}
_PLACE = re.compile(r"(?:^|/)(images|annotations)/(training|validation)/(.+)\.[^./]+$")
_NAMES = "objectInfo150.txt"
_MASK = ".png"  # whatever is lossy changes labels


class _Listing(NamedTuple):
    """What an archive or folder holds: by (images or annotations, training or validation) name -> file."""

    files: dict[tuple[str, str], dict[str, Entry]]
    refused: list[Entry]
    twice: list[str]
    names: Entry | None

    def size(self, folder: str) -> int:
        return sum(entry.size for (_, part), found in self.files.items() if part == folder for entry in found.values())


def prepare(
    out: Out,
    *,
    from_: Annotated[list[str], "the folder ADEChallengeData2016, or its zip"],
    format: Format = "auto",
    check: Check = "full",
    threads: Threads = 0,
    shard_mb: ShardMB = 256,
    verify: Verify = False,
    report: Report | None = None,
) -> str:
    """Prepare ADEChallengeData2016, unpacked or as its zip, for data=ade20k.

    --check header compares the sizes of picture and mask, full reads every pixel of both: labels within 0..150. The
    same command after an interruption goes on where it stopped.
    """
    parts = given(from_)
    if len(parts) > 1:
        raise UsageError(f"--from {','.join(parts)}: give one, ADEChallengeData2016 or its zip")
    path = Path(parts[0]).expanduser()
    with entries(path) as found:
        listing = _listing(found)
        classes = _classes(listing, path)
    there = [split for split, folder in _FOLDERS.items() if listing.files.get(("images", folder))]
    if "train" not in there:
        raise DataError(f"{path} has no pictures in images/training; give --from ADEChallengeData2016 or its zip")

    def items(split: str) -> Callable[[Position], Iterator[Item]]:
        return lambda after: _items(path, split, after)

    count = sum(map(len, listing.files.values()))
    plan = Plan(
        layout=Layout(
            "masks", chosen(format, path.is_dir()),
            {"from": [*fingerprint(path), count], "check": check, "shard_mb": shard_mb},
        ),
        classes=classes,
        splits=[Split(split, listing.size(_FOLDERS[split]), items(split)) for split in there],
        examine=lambda item: examine_pair(item, check, len(classes)),
        archives=[path] if path.is_file() else [],
    )  # fmt: skip
    run(out, plan, Options(threads, shard_mb, verify), report)
    known = len(classes) == 150 and "val" in there
    recipe = " recipe=beit_base_ade20k_512" if known else ""
    return next_command(f"stage=mim task=segmentation{recipe} init={BEIT} data=ade20k", out, "segmentation")


def _listing(found: Iterator[Entry]) -> _Listing:
    files: dict[tuple[str, str], dict[str, Entry]] = {}
    refused, twice, names = [], [], None
    for entry in found:
        place = _PLACE.search(entry.name)
        if entry.refused:
            refused.append(entry)
        elif entry.name.rpartition("/")[2] == _NAMES:
            names = entry
        elif place and is_picture(entry.name) and (place[1] == "images" or entry.name.lower().endswith(_MASK)):
            there = files.setdefault((place[1], place[2]), {})
            twice += ["/".join(place.groups())] if place[3] in there else []
            there[place[3]] = entry
    return _Listing(files, refused, twice, names)


def _classes(listing: _Listing, path: Path) -> list[str]:
    """The names of the classes; DataError for a folder or zip that lacks them, or has one name in two formats."""
    if listing.twice:
        names = some(listing.twice)
        raise DataError(f"{path}: files that differ in their suffix alone: {names}; keep one of each")
    if listing.names is None:
        raise DataError(f"{path} has no {_NAMES}, which names the classes; it is part of ADEChallengeData2016.zip")
    return class_names(listing.names.read(), f"{path}: {listing.names.name}")


def _items(path: Path, split: str, after: Position) -> Iterator[Item]:
    """Pairs by name, those of which one half is missing among them; refused members first, as part of train."""
    folder = _FOLDERS[split]
    with entries(path) as found:
        listing = _listing(found)
        pictures, masks = (listing.files.get((part, folder), {}) for part in ("images", "annotations"))
        refused = listing.refused if split == "train" else []
        rows = [*((entry.name, entry) for entry in refused), *((name, None) for name in sorted({*pictures, *masks}))]
        for place, (name, entry) in enumerate(rows):
            if (place,) > after:
                yield _item((place,), name, entry, pictures.get(name), masks.get(name), folder)


def _item(
    position: Position, name: str, refused: Entry | None, picture: Entry | None, mask: Entry | None, folder: str
) -> Item:
    if refused is not None:
        return Item(position, {"id": name}, faults=(Fault(f"refused: {refused.refused}", True),))
    if picture is None or mask is None:
        missing = "picture is missing" if picture is None else f"mask is missing: there is no {_MASK} of this name"
        return Item(position, {"id": name}, faults=(Fault(missing, True),))
    record = {"id": name, "image": picture.value or picture.read(), "mask": mask.value or mask.read()}
    targets = {
        field: f"{part}/{folder}/{name}{Path(entry.name).suffix}"
        for field, part, entry in (("image", "images", picture), ("mask", "annotations", mask))
    }
    return Item(position, record, targets)
