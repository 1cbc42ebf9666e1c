"""Blocks of zeros in a tower, which add nothing to their input: for decoders that take an output which has no number.

`out_indices` of transformers' BeitForSemanticSegmentation are counted from 1 in a list that begins with the embedding,
all different, and the largest is the number of blocks: the output of the last one is out of reach, and so is one that
is taken twice, as of towers with few blocks.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import NamedTuple

import torch

from vlbeit.models.convert.image_part import ImagePart
from vlbeit.models.convert.layout import Hints, State
from vlbeit.models.pyramid import taps

_OF_BLOCK = re.compile(r"(encoder\.(?:blocks|rel_pos))\.(\d+)\.(.+)")


def out_indices(part: ImagePart) -> list[int]:
    """What transformers calls the blocks that the maps of a segmentation model come from, idle ones counted."""
    order, told = places(part), _taps(part)
    return [order.index(tap) + 2 + told[:number].count(tap) for number, tap in enumerate(told)]


def places(part: ImagePart) -> list[int | None]:
    """Our block at every place of the tower in transformers; None for an idle one."""
    depth = part.spec.depth
    if "segmentation" not in part.heads:
        return list(range(depth))
    told = _taps(part)
    order: list[int | None] = []
    for block in range(depth):
        order += [block, *[None] * (told.count(block) - 1)]
    return [*order, None] if depth - 1 in told else order


def with_idle_blocks(state: State, part: ImagePart) -> State:
    """Tensors under our names, with every block at its place in transformers, and zeros at the idle ones."""
    order = places(part)
    out: State = {}
    for name, value in state.items():
        match = _OF_BLOCK.fullmatch(name)
        if match is None or (part.spec.positions != "per_layer" and "rel_pos" in match[1]):
            out[name] = value
            continue
        out[f"{match[1]}.{order.index(int(match[2]))}.{match[3]}"] = value
        if match[2] == "0":
            idle = [place for place, block in enumerate(order) if block is None]
            out |= {f"{match[1]}.{place}.{match[3]}": torch.zeros_like(value) for place in idle}
    return out


class Trimmed(NamedTuple):
    """What is left without idle blocks: tensors under our names, names in the file, hints; and what went, as there."""

    state: State
    sources: dict[str, tuple[str, ...]]
    hints: Hints
    dropped: list[str]


def without_idle_blocks(state: State, sources: dict[str, tuple[str, ...]], hints: Hints, shared: bool) -> Trimmed:
    """Take blocks of zeros out of tensors under our names, number the others anew, and the taps of `hints` with them.

    shared: one position table serves all blocks.
    """
    idle = _idle_blocks(state)
    names = {name: _renumbered(name, idle, shared) for name in state}
    kept = {name: own for name, own in names.items() if own is not None}
    told = hints.taps and tuple(_block_below(place, idle) for place in hints.taps)
    return Trimmed(
        {own: state[name] for name, own in kept.items()},
        {own: sources[name] for name, own in kept.items()},
        replace(hints, taps=told),
        [theirs for name in names.keys() - kept.keys() for theirs in sources[name]],
    )


def _idle_blocks(state: State) -> set[int]:
    found: dict[int, bool] = {}
    for name, value in state.items():
        if (match := _OF_BLOCK.fullmatch(name)) and match[1].endswith("blocks"):
            number = int(match[2])
            found[number] = found.get(number, True) and not value.any()
    return {number for number, idle in found.items() if idle}


def _renumbered(name: str, idle: set[int], shared: bool) -> str | None:
    match = _OF_BLOCK.fullmatch(name)
    if match is None or (shared and "rel_pos" in match[1]):
        return name
    number = int(match[2])
    return None if number in idle else f"{match[1]}.{_block_below(number, idle)}.{match[3]}"


def _block_below(place: int, idle: set[int]) -> int:
    """The block of ours whose output is that of the one at `place`; -1 for the embedding."""
    return place - sum(number <= place for number in idle)


def _taps(part: ImagePart) -> list[int]:
    return part.heads["necks"].get("taps") or taps(part.spec.depth)
