"""UPerNet (arXiv 1807.10221), the decoder of BEiT on ADE20K, and the auxiliary head that trains beside it.

Legend: B batch, D width, C channels, K classes, h, w rows and columns of patches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlbeit.models.pyramid import ConvNorm, PixelClassifier, resized


class UPerNet(nn.Module):
    """Pyramid pooling of the coarsest map, a top-down path to the finest, all levels fused, logits.

    Args:
        dim: D of the four maps.
        num_classes: K.
        channels: C inside; None: D, as published for BEiT.
        pool_scales: sides of the grids that the coarsest map is pooled to.
        dropout: share of the channels that are dropped before the classifier.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        channels: int | None = None,
        pool_scales: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        channels = channels or dim
        self.pool_scales = tuple(pool_scales)
        self.pooled = nn.ModuleList(ConvNorm(dim, channels, 1) for _ in self.pool_scales)
        self.bottleneck = ConvNorm(dim + len(self.pool_scales) * channels, channels, 3)
        self.laterals = nn.ModuleList(ConvNorm(dim, channels, 1) for _ in range(3))
        self.outputs = nn.ModuleList(ConvNorm(channels, channels, 3) for _ in range(3))
        self.fuse = ConvNorm(4 * channels, channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = PixelClassifier(channels, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps [B, D, ...] of `FeatureNecks`, finest first -> logits [B, K, 4h, 4w], the size of the finest."""
        *finer, coarsest = maps
        levels = [lateral(level) for lateral, level in zip(self.laterals, finer, strict=True)]
        levels.append(self._context(coarsest))
        for index in range(len(levels) - 1, 0, -1):
            below = levels[index - 1]
            levels[index - 1] = below + resized(levels[index], below.shape[2:])
        levels[:-1] = [output(level) for output, level in zip(self.outputs, levels[:-1], strict=True)]
        size = levels[0].shape[2:]
        fused = self.fuse(torch.cat([levels[0], *(resized(level, size) for level in levels[1:])], dim=1))
        return self.classifier(self.dropout(fused))

    def _context(self, map_BDhw: Tensor) -> Tensor:
        """The coarsest map beside its means over grids of every scale (PSPNet's pooling) -> [B, C, h, w]."""
        pooled = [
            resized(conv(F.adaptive_avg_pool2d(map_BDhw, scale)), map_BDhw.shape[2:])
            for scale, conv in zip(self.pool_scales, self.pooled, strict=True)
        ]
        return self.bottleneck(torch.cat([map_BDhw, *pooled], dim=1))


class FCNHead(nn.Module):
    """One convolution and a classifier on the third map: the auxiliary head, with a loss of its own in training.

    Args:
        dim: D of the map.
        num_classes: K.
        channels: C inside.
        dropout: share of the channels that are dropped before the classifier.
    """

    def __init__(self, dim: int, num_classes: int, channels: int = 256, dropout: float = 0.1) -> None:
        super().__init__()
        self.conv = ConvNorm(dim, channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = PixelClassifier(channels, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The third of the maps, [B, D, h, w] -> logits [B, K, h, w]."""
        return self.classifier(self.dropout(self.conv(maps[2])))
