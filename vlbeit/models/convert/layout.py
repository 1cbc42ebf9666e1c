"""What a foreign checkpoint is taken for, and what it becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

from torch import Tensor

from vlbeit.config import one_of

State = dict[str, Tensor]


@dataclass(frozen=True)
class Hints:
    """What the tensors of a file cannot tell: said by the caller, or by the table of known names.

    num_heads: of a model with absolute positions. image_size: (height, width) in pixels, of a table whose patch grid is
    not a square. text_positions: T0 of a VLMo table. early_layers: after how many blocks BEiT v2's patch aggregation
    taps. normalize: `data.normalize` that it was trained with; UsageError where there is none of that name. taps:
    blocks, from 0, whose outputs a segmentation model takes, where they are not those of the published code.
    """

    num_heads: int | None = None
    image_size: tuple[int, int] | None = None
    text_positions: int | None = None
    early_layers: int | None = None
    normalize: str | None = None
    taps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.normalize is not None:
            one_of("normalize", self.normalize, ("half", "imagenet"))

    def over(self, other: Hints) -> Hints:
        """These, and those of `other` where nothing is said here."""
        said = {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}
        return replace(other, **said)


@dataclass
class Converted:
    """A foreign checkpoint in our terms.

    description: as in `checkpoint/config.json`: `encoder` (values of an EncoderSpec), `heads` and `normalize`, or
    `dvae`, or `vqkd`.
    state: every tensor that has a place, under our names.
    sources: our name -> the names in the file that it was made of, where they differ.
    missing: our names of what the description wants and the file does not have.
    unexpected: names in the file that have no place with us.
    dropped: names in the file that serve its training alone or belong to another model: a teacher, running averages.
    assumed: what the tensors leave open and was decided, a line each for people.
    """

    layout: str
    description: dict[str, Any]
    state: State
    sources: dict[str, tuple[str, ...]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)


class Layout(NamedTuple):
    """One way of naming weights."""

    name: str  # "unilm BEiT", "timm", ...
    matches: Callable[[Mapping[str, Tensor]], bool]  # by the names alone
    convert: Callable[[State, Hints], Converted]  # DataError where the tensors do not hold together
