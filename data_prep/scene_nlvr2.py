"""NLVR2 of the scenes: `nlvr2/` beside the other files of the built-in data, in the layout of the published data set.

    nlvr2/{train,dev,test1}.json                   JSON lines with sentence, label, identifier, of train also directory
    nlvr2/train/DIRECTORY/train-SET-PAIR-img0.png  and -img1.png; dev/ and test1/ without DIRECTORY

As in the published one the pictures are JPEG under names that end in .png. Set i of a split draws from (seed, split, i)
alone, and its scenes are of the buckets that the split of the other files has: dev and test1 show none of train.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from random import Random

from vlbeit.files import write_text

from .partial import partial_folder
from .scene_draw import draw, jpeg
from .scene_pairs import PAIRS, PairSet, make_set
from .scene_world import Scene, make_scene

FOLDER = "nlvr2"
SPLITS = {"train": "train", "dev": "val", "test1": "test"}  # here -> whose buckets its scenes have
_PICTURES_A_SET = 2  # of the other files there are so many for each set
_SETS_A_DIRECTORY = 100


def write_nlvr2(
    folder: Path, lengths: dict[str, int], size: int, seed: int, buckets: Mapping[str, Collection[int]]
) -> int:
    """Write `nlvr2/` into the folder, whole or not at all; returns the number of statements about pairs.

    Args:
        lengths: pictures of train, val and test of the other files.
        size: pixels of a side.
        seed: of the scenes.
        buckets: of train, val and test (`Scene.bucket`).
    """
    partial = partial_folder(folder / FOLDER)
    try:
        written = 0
        for name, split in SPLITS.items():
            sets = max(1, lengths[split] // _PICTURES_A_SET)
            written += _write_split(partial, name, sets, size, seed, buckets[split])
        os.rename(partial, folder / FOLDER)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return written


def _write_split(folder: Path, name: str, sets: int, size: int, seed: int, buckets: Collection[int]) -> int:
    lines = []
    for number in range(sets):
        rng = Random(f"{seed}:nlvr2-{name}:{number}")
        found = make_set(lambda rng=rng: _scene(rng, buckets), rng)  # type: ignore[misc]
        directory = {"directory": number // _SETS_A_DIRECTORY} if name == "train" else {}
        place = folder / name / str(directory["directory"]) if directory else folder / name
        place.mkdir(parents=True, exist_ok=True)
        for pair in range(PAIRS):
            for side, scene in enumerate(found.pairs[pair]):
                picture = place / f"{name}-{number}-{pair}-img{side}.png"
                picture.write_bytes(jpeg(draw(scene, size).image))
        lines += _lines(found, f"{name}-{number}", directory)
    write_text(folder / f"{name}.json", "".join(json.dumps(line) + "\n" for line in lines))
    return len(lines)


def _lines(found: PairSet, stem: str, directory: dict[str, int]) -> list[dict[str, object]]:
    return [
        {
            "sentence": text,
            "label": str(found.labels[number][pair]),
            "identifier": f"{stem}-{pair}-{number}",
            **directory,
        }
        for number, text in enumerate(found.texts)
        for pair in range(PAIRS)
    ]


def _scene(rng: Random, buckets: Collection[int]) -> Scene:
    while (scene := make_scene(rng)).bucket() not in buckets:
        pass
    return scene
