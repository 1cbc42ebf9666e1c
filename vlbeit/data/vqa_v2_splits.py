"""Splits of VQA v2: the published names, parts of val that are trained on and held out, and splits joined by +."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from vlbeit.errors import DataError

SOURCES = ("vqa_v2", "scenes")  # whose splits these are
GENOME = "vg"  # Visual Genome's questions, an extra source of training
HELD_OUT = 1000  # images of val that published runs do not train on
PARTS = {"trainable_val": "val", "rest_val": "val", "test-dev": "test"}
"""Split -> the one that it is a part of."""

_NAMES = ("train", "val", "test", "test-dev", "trainval", "trainable_val", "rest_val", GENOME)
_ALIASES = {"train2014": "train", "val2014": "val", "test2015": "test", "test-dev2015": "test-dev"}


def split_parts(split: str) -> list[str]:
    """The single splits of a name such as `train+trainable_val+vg`: train, val, test, test-dev, trainable_val, ...

    `trainval` is train and val; `train2014` and the other official names are known too. Raises `DataError` for an
    unknown name, and where a question would come twice.
    """
    parts: list[str] = []
    for name in (name.strip() for name in split.split("+")):
        name = _ALIASES.get(name, name)
        if name not in _NAMES:
            raise DataError(f"vqa_v2 has no split {name!r}; it has {', '.join(_NAMES)}, and any of them joined by +")
        parts += ["train", "val"] if name == "trainval" else [name]
    for part in parts:
        if parts.count(part) > 1 or PARTS.get(part) in parts:
            inside = "twice" if parts.count(part) > 1 else f"twice, as {PARTS[part]} holds it too"
            raise DataError(f"the split {split!r} has the questions of {part} {inside}: name each once")
    return parts


def without_genome(split: str) -> str:
    """The split without Visual Genome: what the answers of a vocabulary are counted in. Itself where nothing is left.

    Anderson et al. 2018 take of Visual Genome what the vocabulary of VQA v2 knows; its own answers are half sentences.
    """
    return "+".join(part for part in split.split("+") if part.strip() != GENOME) or split


def held_out_images(images: Iterable[int], seed: int, held_out: float = 0) -> list[int]:
    """The images of val that `rest_val` has and `trainable_val` has not, in ascending order.

    Which ones depends on the seed and each image's number alone: the order and the rest of the data have no say.
    `held_out` is their number, or below 1 their share; 0 is the published 1,000, or a tenth where val is small.
    Raises `DataError` where that leaves either part empty.
    """
    known = set(images)
    count = max(1, round(held_out * len(known))) if 0 < held_out < 1 else int(held_out)
    count = count or (HELD_OUT if len(known) >= 10 * HELD_OUT else -(-len(known) // 10))
    if not 0 < count < len(known):
        raise DataError(f"{count} of the {len(known)} images of val cannot be held out: one part would be empty")
    return sorted(sorted(known, key=lambda image: _draw(seed, image))[:count])


def _draw(seed: int, image: int) -> bytes:
    return hashlib.blake2b(f"{seed}:{image}".encode(), digest_size=8).digest()
