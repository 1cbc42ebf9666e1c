"""Multi-head self-attention as in BEiT: no bias on the keys, an additive position bias on the scores.

Legend: B batch, L tokens, D width, H heads, K head dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Self-attention with bias parameters for queries and values only (the key's bias is structurally zero).

    Args:
        dim: D, a multiple of `num_heads`.
        num_heads: H.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BLD: Tensor, bias: Tensor | None = None) -> Tensor:
        """Attend; `bias` broadcasts to [B, H, L, L], -inf where a key must not be seen."""
        q_BHLK, k_BHLK, v_BHLK = self._heads(x_BLD)
        if bias is not None:
            bias = bias.to(q_BHLK.dtype)
        out_BHLK = F.scaled_dot_product_attention(q_BHLK, k_BHLK, v_BHLK, attn_mask=bias)
        return self.proj(out_BHLK.transpose(1, 2).flatten(2))

    def probabilities(self, x_BLD: Tensor, bias: Tensor | None = None) -> Tensor:
        """Attention maps [B, H, L, L]: rows are queries and sum to 1."""
        q_BHLK, k_BHLK, _ = self._heads(x_BLD)
        scores_BHLL = (q_BHLK * q_BHLK.shape[-1] ** -0.5) @ k_BHLK.transpose(-2, -1)
        return (scores_BHLL if bias is None else scores_BHLL + bias).softmax(-1)

    def _heads(self, x_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv_bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        qkv = F.linear(x_BLD, self.qkv.weight, qkv_bias).unflatten(-1, (3, self.num_heads, -1))
        q_BHLK, k_BHLK, v_BHLK = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return q_BHLK, k_BHLK, v_BHLK
