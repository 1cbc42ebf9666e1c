"""Visual Genome's region descriptions as captions (v1.2, visualgenome.org) for data=visual_genome.

Every phrase is a caption of its whole picture, as in ViLT and VLMo. About half of the pictures are COCO's; those of
Karpathy's val and test are left out, as UNITER does (arXiv 1909.11740), so that nothing is trained on that COCO's
retrieval is tested on. The scripts of ViLT keep them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated, NamedTuple

from vlbeit.config import share_or_number
from vlbeit.data.following import next_command
from vlbeit.data.json_file import JsonFile
from vlbeit.errors import DataError, UsageError

from . import karpathy
from .captioned import Captioned, Job, once, write_pairs
from .pictures import Check
from .preparation import Format, Options, Out, ShardMB, Threads, given
from .progress import Report
from .stores import Stores

_REGIONS, _PICTURES = "region_descriptions.json", "image_data.json"
_KNOWN = ("images.zip", "images2.zip", "VG_100K*.zip", f"{_REGIONS}.zip", f"{_PICTURES}.zip", "caption_datasets.zip")
_NONE = "none"


def prepare(
    out: Out,
    *,
    from_: Annotated[list[str], "folders and zips: region_descriptions.json, image_data.json, VG_100K, VG_100K_2"],
    leave_out: Annotated[
        str,
        "Karpathy's files A,B whose val and test pictures are left out; empty: those found by --from; none: keep all",
    ] = "",
    held_out: Annotated[float, "pictures, or a share below 1, for a split val; 0: none, as published"] = 0,
    seed: Annotated[int, "which pictures are held out"] = 0,
    format: Format = "auto",
    check: Check = "header",
    threads: Threads = 0,
    shard_mb: ShardMB = 256,
    report: Report | None = None,
) -> str:
    """Prepare Visual Genome's pictures and region descriptions for data=visual_genome.

    --from takes a folder with region_descriptions.json, image_data.json, VG_100K/ and VG_100K_2/, or parts of that by
    name, also as zips; beside them dataset_coco.json (and dataset_flickr30k.json), whose val and test pictures are left
    out. The same command after an interruption goes on where it stopped.
    """
    say = report or (lambda line: None)
    if held_out and not share_or_number(held_out):
        raise UsageError(f"--held-out {held_out:g}: give a share of the pictures below 1, a number of them, or 0")
    stores = Stores(given(from_), _KNOWN)
    files = stores.json_files(rf"{_REGIONS}|{_PICTURES}|dataset_coco\.json|dataset_flickr30k\.json")
    if lacking := [name for name in (_REGIONS, _PICTURES) if name not in files]:
        raise DataError(f"{stores}: no {' and no '.join(lacking)} in any; both are on visualgenome.org")
    tested = {} if leave_out == _NONE else _tested(files, leave_out)
    for name, keys in tested.items():
        say(f"{name}: its val and test have {len(keys):,} pictures")
    kept = _kept(files[_REGIONS], files[_PICTURES], {key for keys in tested.values() for key in keys}, say)
    val = _held_out(kept, held_out, seed)
    splits = {"train": once([(f"{p.id}.jpg", p) for p in kept if p.id not in val], str(files[_REGIONS].path))}
    if val:
        splits["val"] = {f"{picture.id}.jpg": picture for picture in kept if picture.id in val}
    arguments = {
        "files": {name: file.print() for name, file in files.items()}, "left_out": sorted(tested),
        "held_out": held_out, "seed": seed,
    }  # fmt: skip
    write_pairs(stores, splits, arguments, Job(out, format, check, Options(threads, shard_mb), report))
    if val:
        return next_command("stage=vl data=visual_genome", out, "vl")
    return f"vlbeit train stage=vl data.mix=[coco,visual_genome:{out}]"


def _tested(files: dict[str, JsonFile], leave_out: str) -> dict[str, set[str]]:
    """File -> the pictures that results are measured on, as `coco-NUMBER` and `flickr-NUMBER`."""
    named = Stores(leave_out.split(","), ()).json_files(r".*\.json") if leave_out else {}
    used = {name: file for name, file in (named or files).items() if name not in (_REGIONS, _PICTURES)}
    files |= used
    if not used:
        raise UsageError(
            "Visual Genome has pictures that COCO's retrieval is tested on: give --leave-out dataset_coco.json "
            f"(Karpathy's splits), or --leave-out {_NONE} to train on them"
        )
    return {
        name: {
            f"flickr-{picture.name.rpartition('.')[0]}" if picture.number is None else f"coco-{picture.number}"
            for picture in karpathy.listed(file)
            if picture.split != "train"
        }
        for name, file in used.items()
    }


class _Facts(NamedTuple):
    coco: int | None
    flickr: int | None

    def keys(self) -> Iterator[str]:
        """Its names in other data sets."""
        if self.coco is not None:
            yield f"coco-{self.coco}"
        if self.flickr is not None:
            yield f"flickr-{self.flickr}"


def _kept(regions: JsonFile, pictures: JsonFile, tested: set[str], say: Report) -> list[Captioned]:
    """The pictures with descriptions but for those that results are measured on; says how many these are."""
    facts = _facts(pictures)
    found, left = [], Counter[str]()
    for place, (start, row) in enumerate(regions.elements(), 1):
        try:
            number = int(row["id"] if "id" in row else row["image_id"])
            phrases = len([region["phrase"] for region in row["regions"]])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{regions.path}, item {place}: {type(error).__name__}: {error}; get it again") from error
        keys = list(facts[number].keys()) if number in facts else []
        if tested.intersection(keys):
            left["pictures"] += 1
            left["descriptions"] += phrases
        elif phrases:
            name = next((key for key in keys if key.startswith("coco-")), f"vg-{number}")
            found.append(Captioned(str(number), name, partial(_phrases, regions, start)))
    if unknown := [picture.id for picture in found if int(picture.id) not in facts]:
        raise DataError(
            f"{regions.path}: pictures that {pictures.path} has not, such as {unknown[0]}; take one release"
        )
    say(
        f"Visual Genome: {len(found):,} pictures with descriptions; left out since other data sets test on them: "
        f"{left['pictures']:,} pictures with {left['descriptions']:,} descriptions"
    )
    return found


def _facts(pictures: JsonFile) -> dict[int, _Facts]:
    """Visual Genome's number -> those that COCO and Flickr have for the picture."""
    found = {}
    for place, (_, row) in enumerate(pictures.elements(), 1):
        try:
            number = int(row["image_id"] if "image_id" in row else row["id"])
            others = [None if row.get(name) is None else int(row[name]) for name in ("coco_id", "flickr_id")]
            found[number] = _Facts(*others)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{pictures.path}, item {place}: {type(error).__name__}: {error}; get it again") from error
    return found


def _phrases(regions: JsonFile, start: int) -> list[str]:
    return [str(region["phrase"]) for region in regions.at(start)["regions"]]


def _held_out(pictures: Sequence[Captioned], held_out: float, seed: int) -> set[str]:
    """Ids of the pictures for val: those with the smallest hashes."""
    count = round(held_out * len(pictures)) if held_out < 1 else int(held_out)
    if count >= len(pictures):
        raise UsageError(f"--held-out {held_out:g}: there are {len(pictures)} pictures")
    names = sorted((picture.id for picture in pictures), key=lambda name: _hash(f"{seed} {name}"))
    return set(names[:count])


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()
