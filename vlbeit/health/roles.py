"""Which of the splits that were found is trained on, and which is scored: by name, as a part of val, joined by +."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from vlbeit.config import DataConfig
from vlbeit.data.sources import open_records
from vlbeit.data.sources.vqa_v2 import STORED_SPLITS
from vlbeit.data.vqa_v2_splits import GENOME, PARTS, SOURCES, held_out_images, split_parts
from vlbeit.errors import DataError

from .findings import Finding, found
from .parts import Part


class Roles(NamedTuple):
    """Both None where there is no such split with answers; `findings` on what training would stop at."""

    train: Part | None
    val: Part | None
    findings: list[Finding]


def roles(parts: Sequence[Part], config: DataConfig) -> Roles:
    """What `train_split` and `val_split` are of the parts; Visual Genome (`vg`) is not read here, and left out."""
    findings: list[Finding] = []
    chosen: list[Part | None] = []
    for split in (config.train_split, config.val_split):
        try:
            names = [name for name in _single(split, config) if name != GENOME]
            if split == config.train_split:
                absent = [name for name in names if not _named(parts, name)]
                text = f"there is no split {', '.join(absent)} to train on"
                findings += found("missing-file", split, absent, text)
            chosen.append(_joined(split, [_answered(parts, name, config) for name in names]))
        except DataError as error:
            findings += found("refused", split, [split], str(error))
            chosen.append(None)
    return Roles(chosen[0], chosen[1], findings)


def _single(split: str, config: DataConfig) -> list[str]:
    return split_parts(split) if config.name in SOURCES else [split]


def _named(parts: Sequence[Part], name: str) -> list[Part]:
    """Those that hold the split of this name or subtype (train: train2014), the one of the shortest name first."""
    fitting = [part for part in parts if part.name.startswith(PARTS.get(name, name))]
    return sorted(fitting, key=lambda part: len(part.name))


def _answered(parts: Sequence[Part], name: str, config: DataConfig) -> Part | None:
    """The split, if it has annotated questions; of `trainable_val` and `rest_val` the questions on that side of val."""
    part = next((part for part in _named(parts, name) if part.annotations and part.questions), None)
    if part is None or name not in ("trainable_val", "rest_val") or part.name == name:
        return part
    images = [question.image_id for question in part.questions]
    held_out = _held_out([image for image in images if isinstance(image, int)], config)
    kept = [row for row in part.questions if (row.image_id in held_out) == (name == "rest_val")]
    return replace(part, name=name, questions=kept)


def _held_out(images: Sequence[int], config: DataConfig) -> set[int]:
    """The pictures of `rest_val`: those that a prepared folder has drawn, else those of the seed."""
    if (Path(config.root).expanduser() / STORED_SPLITS).is_file():
        return set(open_records(config, "vqa", "rest_val").column("image_id")[:])
    return set(held_out_images(images, config.split_seed, config.held_out))


def _joined(split: str, found_parts: Sequence[Part | None]) -> Part | None:
    there = [part for part in found_parts if part is not None]
    if len(there) < len(found_parts) or len(there) < 2:
        return there[0] if len(there) == len(found_parts) == 1 else None
    questions = [row for part in there for row in part.questions]
    return Part(split, questions, [row for part in there for row in part.annotations or []], {})
