"""From the blocks of a plain tower to feature maps of several sizes, as dense tasks take them.

Legend: B batch, L all tokens, D width, C channels, h, w rows and columns of patches.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from vlbeit.types import Tokens


def taps(depth: int) -> list[int]:
    """The four blocks whose outputs dense tasks take, 0-based: 3, 5, 7, 11 of 12 and 7, 11, 15, 23 of 24 (BEiT).

    They lie after a third, a half, two thirds and all of any depth; of few blocks one may come twice.
    """
    return [max(0, depth * twelfths // 12 - 1) for twelfths in (4, 6, 8, 12)]


def to_map(tokens: Tokens) -> Tensor:
    """The patches of the picture's span as a map [B, D, h, w], CLS left out. ValueError where there is no picture."""
    for span in tokens.spans:
        if span.grid is not None:
            patches_BND = tokens.x_BLD[:, span.start + 1 : span.stop]
            return patches_BND.transpose(1, 2).unflatten(2, span.grid).contiguous()
    raise ValueError("these tokens have no patches: their spans are " + ", ".join(s.modality for s in tokens.spans))


def resized(map_BChw: Tensor, size: Sequence[int]) -> Tensor:
    """A map at another size [B, C, *size], bilinear, corners not aligned, as everywhere in the published decoders."""
    return F.interpolate(map_BChw, size=list(size), mode="bilinear", align_corners=False)


class ConvNorm(nn.Sequential):
    """Convolution without bias that keeps the size, batch norm, ReLU.

    Initialised as published (mmcv's ConvModule): Kaiming normal over the fan out, the norm at 1 and 0.
    """

    def __init__(self, dim: int, dim_out: int, kernel: int) -> None:
        conv = nn.Conv2d(dim, dim_out, kernel, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        super().__init__(OrderedDict(conv=conv, norm=nn.BatchNorm2d(dim_out), act=nn.ReLU()))


class PixelClassifier(nn.Conv2d):
    """1x1 convolution to logits, started at normal 0.01 and bias 0 as published."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__(dim, num_classes, 1)
        nn.init.normal_(self.weight, std=0.01)
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]


class FeatureNecks(nn.Module):
    """Four maps of a plain tower, all of one size, to a pyramid: 4, 2, 1 and 1/2 times that size (BEiT on ADE20K).

    Transposed convolutions keep PyTorch's initialisation, as published.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.up4 = nn.Sequential(_doubling(dim), nn.BatchNorm2d(dim), nn.GELU(), _doubling(dim))
        self.up2 = _doubling(dim)
        self.down2 = nn.MaxPool2d(2)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """4 x [B, D, h, w] -> [B, D, 4h, 4w], [B, D, 2h, 2w], [B, D, h, w], [B, D, h // 2, w // 2]; h, w at least 2."""
        first, second, third, last = maps
        return [self.up4(first), self.up2(second), third, self.down2(last)]


def _doubling(dim: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2)
