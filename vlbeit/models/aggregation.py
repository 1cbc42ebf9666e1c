"""BEiT v2's patch aggregation (arXiv 2208.06366): the CLS token must carry what the patches of an early layer lack.

Legend: B batch, N patches, L tokens (CLS + N), D width, H heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vlbeit.nn.block import Block
from vlbeit.types import Tokens

if TYPE_CHECKING:
    from vlbeit.models.encoder import MoMEEncoder


class PatchAggregation(nn.Module):
    """Extra blocks over the CLS token of the last layer and the patches of an early one.

    Their output goes through the encoder's final norm and the same head as the encoder's own; pre-training only.

    Args:
        dim: D.
        num_heads: H, as the encoder's: its position table serves here too.
        hidden: width inside the feed-forward part.
        layers: number of blocks.
        layer_scale: initial value of the scales; 0 builds none.
        early_layers: after how many blocks of the encoder the patches are taken.
    """

    def __init__(
        self, dim: int, num_heads: int, hidden: int, layers: int = 2, layer_scale: float = 0.1, early_layers: int = 9
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, num_heads, hidden, ("image",), layer_scale) for _ in range(layers))
        self.early_layers = early_layers

    def forward(self, encoder: MoMEEncoder, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Embedded (masked) picture -> normalised tokens of the encoder and of these blocks, each [B, 1+N, D]."""
        indices = [self.early_layers - 1, encoder.spec.depth - 1]
        early, last = (tap.x_BLD for tap in encoder.forward_intermediates(tokens, indices))
        x_BLD = torch.cat([last[:, :1], early[:, 1:]], dim=1)
        bias = encoder.bias(tokens, 0)  # pre-training has one table for all layers, these included
        for block in self.blocks:
            x_BLD = block(x_BLD, bias, (("image", 0, x_BLD.shape[1]),))
        return encoder.norm(last), encoder.norm(x_BLD)
