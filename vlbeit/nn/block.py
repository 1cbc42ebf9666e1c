"""A transformer block with shared attention and one feed-forward expert per modality (VLMo's MoME block).

Legend: B batch, L tokens, D width.
"""

from __future__ import annotations

import torch
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from vlbeit.nn.attention import Attention
from vlbeit.types import Span

Route = tuple[tuple[str, int, int], ...]
"""Which expert sees which tokens: (expert, start, stop), in the order of the sequence."""


def route(spans: tuple[Span, ...], experts: frozenset[str], fused: bool | None = None) -> Route:
    """The one rule of routing, a pure function of the spans.

    Several spans and a fused expert: one fused call. Otherwise every span goes to the expert of its modality.
    `fused=True` sends a single span through the fused expert wherever the block has one; False never does.
    """
    joint = len(spans) > 1 if fused is None else fused
    if joint and "fused" in experts:
        return (("fused", spans[0].start, spans[-1].stop),)
    missing = [span.modality for span in spans if span.modality not in experts]
    if missing:
        raise ValueError(f"no expert for {missing[0]!r}: this encoder has {', '.join(sorted(experts))}")
    return tuple((span.modality, span.start, span.stop) for span in spans)


class Expert(nn.Module):
    """Norm + feed-forward (exact GELU) of one modality."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, hidden)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.mlp(self.norm(x_BLD))


class Block(nn.Module):
    """Pre-norm residual block: x + g1*attention(norm1(x)), then x + g2*expert(x) per span.

    Args:
        dim: D.
        num_heads: H.
        hidden: width inside an expert.
        experts: names of the experts that are built.
        layer_scale: initial value of gamma_1 and gamma_2 [D]; 0 builds none. Shared by all experts.
        drop_path: stochastic depth rate of both residuals, per sample.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden: int,
        experts: tuple[str, ...],
        layer_scale: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.experts = nn.ModuleDict({name: Expert(dim, hidden) for name in experts})
        self.gamma_1 = nn.Parameter(layer_scale * torch.ones(dim)) if layer_scale else None
        self.gamma_2 = nn.Parameter(layer_scale * torch.ones(dim)) if layer_scale else None
        self.drop_path = DropPath(drop_path)
        self.names = frozenset(experts)

    def forward(self, x_BLD: Tensor, bias: Tensor | None, path: Route) -> Tensor:
        """[B, L, D] -> [B, L, D]; `bias` broadcasts to [B, H, L, L]."""
        attended_BLD = self.attn(self.norm1(x_BLD), bias)
        x_BLD = x_BLD + self.drop_path(_scaled(attended_BLD, self.gamma_1))
        parts = [self.experts[name](x_BLD[:, start:stop]) for name, start, stop in path]
        out_BLD = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return x_BLD + self.drop_path(_scaled(out_BLD, self.gamma_2))


def _scaled(x_BLD: Tensor, gamma: Tensor | None) -> Tensor:
    return x_BLD if gamma is None else gamma * x_BLD
