"""What every image tokenizer offers to masked image modeling: a frozen function from pictures to token ids.

Legend of shape suffixes: B batch, C colour channels, H height and W width in pixels, Y rows and X columns of tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, Self

from torch import Tensor, nn


class TokenizerSpec(Protocol):
    """What others need to know of a tokenizer's spec."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        ...

    @property
    def downsample(self) -> int:
        """Side of the square of pixels that one token stands for."""
        ...


class ImageTokenizer(nn.Module, ABC):
    """A picture as a grid of token ids. Pixels are float [B, C, H, W] in [0, 1]; normalising them is its own matter."""

    kind: ClassVar[str]  # its key in a checkpoint's description, and the first part of its weights' names
    interpolation: ClassVar[str]  # how its view of a picture is resized, as published: lanczos | bicubic
    spec: TokenizerSpec

    @classmethod
    @abstractmethod
    def from_description(cls, description: Mapping[str, Any]) -> Self:
        """A fresh one from what `describe` gave."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """The spec as JSON values."""

    @abstractmethod
    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens of a picture in pixels; UsageError where it takes none of that size."""

    @abstractmethod
    def tokens(self, pixels_BCHW: Tensor) -> Tensor:
        """Token ids, int [B, Y, X]."""
