"""SETR-PUP (arXiv 2012.15840): the last map of the tower, upsampled step by step.

Legend: B batch, D width, K classes, h, w rows and columns of patches.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from vlbeit.models.pyramid import ConvNorm, PixelClassifier, resized


class SETRPUP(nn.Module):
    """Layer norm, four times (3x3 convolution, batch norm, ReLU, twice the size), logits.

    Args:
        dim: D of the map.
        num_classes: K.
        channels: of the convolutions.
    """

    def __init__(self, dim: int, num_classes: int, channels: int = 256) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.convs = nn.ModuleList(ConvNorm(dim if index == 0 else channels, channels, 3) for index in range(4))
        self.classifier = PixelClassifier(channels, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The last of the maps, [B, D, h, w] as the tower gives it -> logits [B, K, 16h, 16w]."""
        x = self.norm(maps[-1].movedim(1, -1)).movedim(-1, 1)
        for conv in self.convs:
            x = conv(x)
            x = resized(x, [2 * side for side in x.shape[2:]])
        return self.classifier(x)
