"""Quantizers of the discrete VAE: from the encoder's output to codes for the decoder and token ids.

Legend of shape suffixes: B batch, V vocabulary, Y rows and X columns of tokens, K channels of a code,
Z channels of the encoder's output.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MOST_LEVELS_CHANNELS = 8  # 8 channels of 8 levels are 16 million tokens: more than any tokenizer has


def at_least_float(x: Tensor) -> Tensor:
    """float32 for half precision, which has too few digits for sums over a vocabulary or over pixels."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def in_full_precision(module: nn.Module, x: Tensor) -> Tensor:
    """A module that tokens are read off, outside autocast, as published: values of 8 bits would tie and move tokens."""
    with torch.autocast(x.device.type, enabled=False):
        return module(x.to(next(module.parameters()).dtype))


class Quantized(NamedTuple):
    """A code as the decoder sees it in training."""

    code_BKYX: Tensor
    kl_BYX: Tensor | None  # KL(q(z|x) || uniform) in nats; None: the quantizer has no such term


class Quantizer(nn.Module, ABC):
    """What both quantizers offer."""

    vocab_size: int
    in_channels: int  # Z: channels that the encoder must give
    code_channels: int  # K: channels that the decoder gets

    @abstractmethod
    def forward(self, z_BZYX: Tensor, temperature: Tensor | float = 1.0) -> Quantized:
        """Differentiable codes for training."""

    @abstractmethod
    def tokens(self, z_BZYX: Tensor) -> Tensor:
        """Most probable token ids [B, Y, X]."""

    @abstractmethod
    def posterior(self, z_BZYX: Tensor) -> Tensor:
        """log q(z|x), [B, V, Y, X], in nats."""

    @abstractmethod
    def codes(self, ids_BYX: Tensor) -> Tensor:
        """Codes [B, K, Y, X] of token ids."""


class GumbelQuantizer(Quantizer):
    """Categorical posterior, relaxed by Gumbel-softmax in training (Jang et al. 2017, Maddison et al. 2017).

    A code is a point of the probability simplex: soft in training, or one-hot with a straight-through gradient
    where `straight_through` is set; the DALL-E dVAE (Ramesh et al. 2021) trains with soft codes.
    """

    def __init__(self, vocab_size: int, *, straight_through: bool = False) -> None:
        super().__init__()
        self.vocab_size = self.in_channels = self.code_channels = vocab_size
        self.straight_through = straight_through

    def forward(self, z_BZYX: Tensor, temperature: Tensor | float = 1.0) -> Quantized:
        log_q_BVYX = self.posterior(z_BZYX)
        if self.training:
            # -log of an exponential variate is a Gumbel variate
            noise_BVYX = -torch.empty_like(log_q_BVYX).exponential_().clamp_min(1e-20).log()
            code_BVYX = ((log_q_BVYX + noise_BVYX) / temperature).softmax(1)
        else:
            code_BVYX = self.codes(log_q_BVYX.argmax(1)).to(log_q_BVYX.dtype)
        if self.training and self.straight_through:
            hard_BVYX = self.codes(code_BVYX.argmax(1)).to(code_BVYX.dtype)
            code_BVYX = hard_BVYX + code_BVYX - code_BVYX.detach()
        kl_BYX = (log_q_BVYX.exp() * log_q_BVYX).sum(1) + math.log(self.vocab_size)
        return Quantized(code_BVYX, kl_BYX)

    def tokens(self, z_BZYX: Tensor) -> Tensor:
        return z_BZYX.argmax(1)

    def posterior(self, z_BZYX: Tensor) -> Tensor:
        return at_least_float(z_BZYX).log_softmax(1)

    def codes(self, ids_BYX: Tensor) -> Tensor:
        return F.one_hot(ids_BYX, self.vocab_size).permute(0, 3, 1, 2).float()


class FSQQuantizer(Quantizer):
    """Finite scalar quantization (Mentzer et al. 2023, arXiv:2309.15505): every channel is bounded by tanh and
    rounded to one of a few levels, straight-through in the backward pass; nothing is learned, so nothing collapses.

    `levels` gives the number of levels per channel; the vocabulary is their product, and the id of a code is its
    number in mixed radix, the first channel varying fastest. The codes lie evenly in [-1, 1], both ends included.
    Differs from the paper: also an even number of levels is placed symmetrically around 0, which needs no offset.
    The posterior is deterministic: probability 1 for the token of the code.
    """

    radix: Tensor
    top: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.vocab_size = math.prod(self.levels)
        self.in_channels = self.code_channels = len(self.levels)
        radix = [math.prod(self.levels[:channel]) for channel in range(len(self.levels))]
        self.register_buffer("radix", torch.tensor(radix)[:, None, None], persistent=False)
        self.register_buffer("top", torch.tensor(self.levels)[:, None, None] - 1, persistent=False)

    def _positions(self, z_BZYX: Tensor) -> Tensor:
        """Places on the scale of levels, 0 to levels - 1, not rounded."""
        return (at_least_float(z_BZYX).tanh() + 1) / 2 * self.top

    def forward(self, z_BZYX: Tensor, temperature: Tensor | float = 1.0) -> Quantized:
        """Temperature has no meaning here."""
        place_BKYX = self._positions(z_BZYX)
        rounded_BKYX = place_BKYX + (place_BKYX.round() - place_BKYX).detach()
        return Quantized(rounded_BKYX / self.top * 2 - 1, None)

    def tokens(self, z_BZYX: Tensor) -> Tensor:
        return (self._positions(z_BZYX).round().long() * self.radix).sum(1)

    def posterior(self, z_BZYX: Tensor) -> Tensor:
        ids_BYX = self.tokens(z_BZYX)
        log_q_BVYX = torch.full(
            (ids_BYX.shape[0], self.vocab_size, *ids_BYX.shape[1:]),
            -math.inf,
            dtype=at_least_float(z_BZYX).dtype,
            device=z_BZYX.device,
        )
        return log_q_BVYX.scatter_(1, ids_BYX[:, None], 0.0)

    def codes(self, ids_BYX: Tensor) -> Tensor:
        digits_BKYX = ids_BYX[:, None] // self.radix % (self.top + 1)
        return digits_BKYX.float() / self.top * 2 - 1


def choose_levels(vocab_size: int) -> tuple[int, ...]:
    """The levels, each 5 to 8, with the largest product that is not above `vocab_size` (at least 5).

    The paper advises at least 5 levels per channel. Of equal products the one with the fewest channels is taken:
    1000 -> (8, 5, 5, 5), 240 -> (8, 6, 5).
    """
    if vocab_size < 5:
        raise ValueError(f"vocab_size={vocab_size}: finite scalar quantization needs at least 5 tokens")
    best: tuple[int, ...] = (5,)
    for channels in range(1, MOST_LEVELS_CHANNELS + 1):
        for levels in combinations_with_replacement((8, 7, 6, 5), channels):
            if math.prod(best) < math.prod(levels) <= vocab_size:
                best = levels
    return best
