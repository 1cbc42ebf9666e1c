"""How pictures and words become tokens.

Legend: B batch, N patches, T text tokens, D width, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Non-overlapping patches, each through one linear map (a strided convolution). Row-major order."""

    def __init__(self, patch_size: int, dim: int, channels: int = 3) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(channels, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, image_BCHW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """[B, channels, height, width] -> [B, N, D] and the grid (rows, columns). Sides: multiples of the patch."""
        height, width = image_BCHW.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"image size {height}x{width} is not a multiple of patch_size {self.patch_size}")
        x_BDhw = self.proj(image_BCHW)
        return x_BDhw.flatten(2).transpose(1, 2), (x_BDhw.shape[-2], x_BDhw.shape[-1])


class TextEmbed(nn.Module):
    """BERT's embedding: word + token type 0 (+ learned position), norm (eps 1e-12), dropout.

    Args:
        vocab_size: V.
        dim: D.
        positions: longest text for learned absolute positions; None where positions are relative.
        dropout: rate; VLMo uses its drop-path rate here.
    """

    def __init__(self, vocab_size: int, dim: int, positions: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab_size, dim)
        self.token_type_embeddings = nn.Embedding(2, dim)
        self.position_embeddings = nn.Embedding(positions, dim) if positions else None
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids_BT: Tensor, keep_BT: Tensor | None = None, places_BT: Tensor | None = None) -> Tensor:
        """[B, T] -> [B, T, D]; `places_BT`: positions of the words, where they are not 0, 1, 2, ...

        No word sees another here, so that `keep_BT` changes nothing.
        """
        x_BTD = self.word_embeddings(ids_BT) + self.token_type_embeddings(torch.zeros_like(ids_BT))
        if self.position_embeddings is not None:
            length = ids_BT.shape[1]
            if length > self.position_embeddings.num_embeddings:
                raise ValueError(
                    f"a text of {length} tokens is longer than the {self.position_embeddings.num_embeddings} positions"
                )
            weight = self.position_embeddings.weight
            x_BTD = x_BTD + (weight[:length] if places_BT is None else F.embedding(places_BT, weight))
        return self.dropout(self.norm(x_BTD))
