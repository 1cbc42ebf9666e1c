"""What a foreign checkpoint is taken for, and what it becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True)
class Hints:
    """What the tensors of a file cannot tell: said by the caller, or by the table of known names.

    num_heads: of a model with absolute positions. image_size: (height, width) in pixels, of a VLMo table whose patch
    grid is not a square. text_positions: T0 of such a table. normalize: `data.normalize` that it was trained with.
    """

    num_heads: int | None = None
    image_size: tuple[int, int] | None = None
    text_positions: int | None = None
    normalize: str | None = None


@dataclass
class Converted:
    """A foreign checkpoint in our terms.

    description: as in `checkpoint/config.json`: `encoder` (values of an EncoderSpec) and `heads`, or `dvae`, or `vqkd`.
    state: every tensor that has a place, under our names.
    sources: our name -> the names in the file that it was made of, where they differ.
    unexpected: names in the file that have no place with us.
    dropped: names in the file that serve its training alone or belong to another model: a teacher, running averages.
    """

    layout: str
    description: dict[str, Any]
    state: State
    sources: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)


class Layout(NamedTuple):
    """One way of naming weights."""

    name: str  # "unilm BEiT", "timm", ...
    matches: Callable[[Mapping[str, Tensor]], bool]  # by the names alone
    convert: Callable[[State, Hints], Converted]  # DataError where a tensor is missing or of a wrong shape
