"""What the layouts of image tokenizers have in common: sizes read off tensors, and the check of the result."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from vlbeit.errors import DataError
from vlbeit.models.convert.layout import Converted, State
from vlbeit.models.tokenizer_kinds import KINDS


def shape_of(state: State, name: str, dimensions: int) -> tuple[int, ...]:
    """The shape of a tensor; DataError where it is missing, or has another number of dimensions, or is empty."""
    if name not in state:
        raise DataError(f"{name} is missing: the file is no whole image tokenizer; download it again")
    shape = tuple(state[name].shape)
    if len(shape) != dimensions or 0 in shape:
        raise DataError(f"{name} has the shape {list(shape)}: {dimensions} dimensions are needed, none of them 0")
    return shape


def count(numbers: Iterable[str], what: str) -> int:
    """How many there are of what the names number from `first` on without a gap; DataError where there is a gap."""
    found = sorted({int(number) for number in numbers})
    if not found or found != list(range(found[0], found[0] + len(found))):
        raise DataError(f"{what} are numbered {found[:4]}..., not one after the other: some are missing")
    return len(found)


def settled(
    layout: str, kind: str, spec: dict[str, Any], state: State, rename: Callable[[str], str | None]
) -> Converted:
    """The tokenizer of a file, every tensor compared with what its spec asks for.

    `rename` gives our name without the kind, or None for what has no place with us.
    Raises DataError, with the name in the file, where a tensor is missing or of a wrong shape.
    """
    with torch.device("meta"):
        wanted = KINDS[kind].from_description(spec).state_dict()
    found: dict[str, tuple[str, Tensor]] = {}
    unexpected = []
    for theirs, value in state.items():
        ours = rename(theirs)
        if ours is None or ours not in wanted:
            unexpected.append(theirs)
            continue
        if value.shape != wanted[ours].shape:
            raise DataError(
                f"{theirs} has the shape {list(value.shape)}: with the rest {list(wanted[ours].shape)} fits"
            )
        found[ours] = (theirs, value)
    missing = sorted(wanted.keys() - found.keys())
    if missing:
        raise DataError(
            f"{layout}: no tensor of the file is {kind}.{missing[0]} ({len(missing)} missing); download again"
        )
    return Converted(
        layout,
        {kind: spec},
        {f"{kind}.{ours}": value for ours, (_, value) in found.items()},
        {f"{kind}.{ours}": (theirs,) for ours, (theirs, _) in found.items()},
        unexpected=unexpected,
    )
