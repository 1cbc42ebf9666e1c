"""What masked image modeling predicts for a patch: visual tokens (BEiT), pixel values (its ablation), or features.

Legend of shape suffixes: B batch, N patches, M masked patches of the batch, V vocabulary, P values of a patch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlbeit.errors import UsageError
from vlbeit.models.image_tokenizer import ImageTokenizer
from vlbeit.models.quantizer import at_least_float
from vlbeit.models.tokenizer_kinds import build_tokenizer
from vlbeit.types import Batch


class Target(nn.Module, ABC):
    """Makes the targets of all patches and scores predictions for the masked ones. It has nothing to train."""

    kind: Literal["tokens", "values"]
    head_width: int  # V of tokens, P of values: what the prediction head gives per patch

    @abstractmethod
    def view(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Height and width of `batch["pixels"]` for an encoder of this grid; UsageError where none would do."""

    @abstractmethod
    def forward(self, batch: Batch, grid: tuple[int, int]) -> Tensor:
        """Ids [B, N] or values [B, N, P], patches row by row; UsageError where the batch does not give this grid."""

    @abstractmethod
    def terms(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Loss terms [M] of predictions [M, V or P] against targets [M] or [M, P] of the masked patches."""

    @abstractmethod
    def correct(self, prediction: Tensor, target: Tensor) -> Tensor | None:
        """1 where the best token is the target, else 0, [M]; None for values."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """JSON values from which `build_target` makes it again; `target` is the key of its own ones."""


class TokenTarget(Target):
    """Token ids of a frozen tokenizer, from `batch["pixels"]`, the unmasked view [B, C, H, W] in [0, 1].

    The tokenizer is the module that its kind names: the weights of a discrete VAE are `dvae.*`.
    """

    kind = "tokens"

    def __init__(self, tokenizer: ImageTokenizer) -> None:
        super().__init__()
        self.tokenizer_kind = tokenizer.kind
        self.add_module(tokenizer.kind, tokenizer.requires_grad_(False).eval())
        self.head_width = tokenizer.spec.vocab_size

    @property
    def tokenizer(self) -> ImageTokenizer:
        """The frozen tokenizer."""
        return getattr(self, self.tokenizer_kind)

    def train(self, mode: bool = True) -> TokenTarget:
        """The tokenizer stays in evaluation."""
        super().train(mode)
        self.tokenizer.eval()
        return self

    @torch.no_grad()
    def forward(self, batch: Batch, grid: tuple[int, int]) -> Tensor:
        self.check(batch["pixels"], grid)
        return self.tokenizer.tokens(batch["pixels"]).flatten(1)

    def view(self, grid: tuple[int, int]) -> tuple[int, int]:
        """One token per patch."""
        step = self.tokenizer.spec.downsample
        size = (grid[0] * step, grid[1] * step)
        self.tokenizer.grid(*size)
        return size

    def check(self, pixels_BCHW: Tensor, grid: tuple[int, int]) -> None:
        """UsageError unless the view has one token per patch."""
        height, width = pixels_BCHW.shape[-2:]
        rows, columns = self.tokenizer.grid(height, width)
        if (rows, columns) != tuple(grid):
            needed = self.view(grid)
            raise UsageError(
                f"the tokenizer makes {rows}x{columns} tokens of a view of {height}x{width} pixels, the encoder has "
                f"{grid[0]}x{grid[1]} patches: the view must have {needed[0]}x{needed[1]} pixels"
            )

    def terms(self, prediction: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(at_least_float(prediction), target, reduction="none")

    def correct(self, prediction: Tensor, target: Tensor) -> Tensor | None:
        return (prediction.argmax(-1) == target).float()

    def describe(self) -> dict[str, Any]:
        return {"target": self.tokenizer_kind, self.tokenizer_kind: self.tokenizer.describe()}


class PixelTarget(Target):
    """The values of a patch in `batch["image"]`, as the encoder sees them: normalised by the channels' mean and std.

    BEiT's ablation names neither the scale nor the loss; here it is the squared difference, averaged over the patch.
    The order of values is channel, row, column: that of a patch embedding's weight.
    """

    kind = "values"

    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.head_width = 3 * patch_size**2

    def view(self, grid: tuple[int, int]) -> tuple[int, int]:
        """As large as the picture itself, and not used."""
        return (grid[0] * self.patch_size, grid[1] * self.patch_size)

    @torch.no_grad()
    def forward(self, batch: Batch, grid: tuple[int, int]) -> Tensor:
        image_BCHW, side = batch["image"], self.patch_size
        if tuple(image_BCHW.shape[-2:]) != (grid[0] * side, grid[1] * side):
            raise UsageError(
                f"an image of {image_BCHW.shape[-2]}x{image_BCHW.shape[-1]} pixels has not "
                f"{grid[0]}x{grid[1]} patches of {side} pixels"
            )
        return F.unfold(image_BCHW, side, stride=side).transpose(1, 2)

    def terms(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (at_least_float(prediction) - target).square().mean(-1)

    def correct(self, prediction: Tensor, target: Tensor) -> Tensor | None:
        return None

    def describe(self) -> dict[str, Any]:
        return {"target": "pixels", "pixels": {"patch_size": self.patch_size}}


class FeatureTarget(Target):
    """Patch features of a frozen network on `batch["pixels"]`, the unmasked view; 1 - cosine to the prediction.

    As in EVA (arXiv 2211.07636) and MVP (arXiv 2203.05175), whose loss is the negative cosine similarity: the length of
    a feature does not count. Where the network has another grid of patches than the encoder, its map is resampled to
    the encoder's (bilinear). The network is no part of the module: it is in no checkpoint and no saved state, and is
    given anew, by `teach`, whenever a run begins or goes on.

    Args:
        width: of the features.
        size: height and width of the view.
        facts: what else `describe` says: how the network is called, of which weights.
    """

    kind = "values"

    def __init__(self, width: int, size: tuple[int, int], facts: Mapping[str, Any]) -> None:
        super().__init__()
        self.head_width = width
        self.size = (size[0], size[1])
        self.facts = dict(facts)
        self._teacher: list[nn.Module] = []  # a list, so that it is no sub-module

    def teach(self, teacher: nn.Module) -> None:
        """Take the network: pictures in [0, 1], [B, 3, *size], to a map [B, width, rows, columns]."""
        self._teacher = [teacher]

    def view(self, grid: tuple[int, int]) -> tuple[int, int]:
        """That of the network, whatever the encoder's grid."""
        return self.size

    @torch.no_grad()
    def forward(self, batch: Batch, grid: tuple[int, int]) -> Tensor:
        assert self._teacher, "MIM.prepare gives it"
        pixels_BCHW = batch["pixels"]
        teacher = self._teacher[0].to(pixels_BCHW.device, pixels_BCHW.dtype)
        map_BPyx = teacher(pixels_BCHW)
        if tuple(map_BPyx.shape[-2:]) != tuple(grid):
            smaller = map_BPyx.shape[-2] > grid[0] or map_BPyx.shape[-1] > grid[1]
            map_BPyx = F.interpolate(at_least_float(map_BPyx), grid, mode="bilinear", antialias=smaller)
        return map_BPyx.flatten(2).transpose(1, 2)

    def terms(self, prediction: Tensor, target: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(at_least_float(prediction), at_least_float(target), dim=-1)

    def correct(self, prediction: Tensor, target: Tensor) -> Tensor | None:
        return None

    def describe(self) -> dict[str, Any]:
        return {"target": "features", "features": {**self.facts, "width": self.head_width, "size": list(self.size)}}


def build_target(description: Mapping[str, Any]) -> Target:
    """A target from a description that holds what `describe` gave; the weights are fresh."""
    if description["target"] == "pixels":
        return PixelTarget(**description["pixels"])
    if description["target"] == "features":
        facts = dict(description["features"])
        return FeatureTarget(facts.pop("width"), facts.pop("size"), facts)
    return TokenTarget(build_tokenizer(description))
