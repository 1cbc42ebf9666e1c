"""The discrete VAE whose tokens are BEiT's targets, with the structure of DALL-E's (Ramesh et al. 2021, A.1).

Legend of shape suffixes: B batch, C colour channels, H height and W width in pixels, V vocabulary,
Y rows and X columns of tokens, K channels of a code, Z channels of the encoder's output, S = C or 2C channels
of the decoder's output.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vlbeit.errors import UsageError
from vlbeit.models.image_tokenizer import ImageTokenizer
from vlbeit.models.quantizer import (
    FSQQuantizer,
    GumbelQuantizer,
    Quantizer,
    at_least_float,
    choose_levels,
    in_full_precision,
)

EPSILON = 0.1  # keeps logit(x) finite at black and white (Ramesh et al. 2021, A.3)
MIN_LOG_SCALE = -5.0  # about half a step of 8 bits in logits; a finer scale would only model rounding
QUANTIZERS = ("gumbel", "fsq")
LIKELIHOODS = ("logit_laplace", "l1", "l2")


def map_pixels(pixels: Tensor) -> Tensor:
    """[0, 1] -> [0.1, 0.9]."""
    return (1 - 2 * EPSILON) * pixels + EPSILON


def unmap_pixels(mapped: Tensor) -> Tensor:
    """Inverse of `map_pixels`, clamped to [0, 1]."""
    return ((mapped - EPSILON) / (1 - 2 * EPSILON)).clamp(0, 1)


@dataclass(frozen=True)
class DVAESpec:
    """Everything needed to rebuild a DVAE; the defaults are DALL-E's. `from_dict(asdict(spec)) == spec`."""

    vocab_size: int = 8192
    hidden: int = 256  # width of the first group; group g has 2^g times as much
    num_groups: int = 4
    blocks_per_group: int = 2
    channels: int = 3
    decoder_input: int = 128
    quantizer: str = "gumbel"
    straight_through: bool = False  # gumbel: one-hot codes in training
    levels: tuple[int, ...] = ()  # fsq: levels per channel; empty: chosen for vocab_size
    likelihood: str = "logit_laplace"  # what the decoder's output means
    decoder: bool = True  # False: tokens alone, as of a published encoder without its decoder

    def __post_init__(self) -> None:
        if self.quantizer == "fsq":
            levels = tuple(self.levels) or choose_levels(self.vocab_size)
            object.__setattr__(self, "levels", levels)
            object.__setattr__(self, "vocab_size", math.prod(levels))
        assert self.quantizer in QUANTIZERS and self.likelihood in LIKELIHOODS
        assert self.hidden % 4 == 0, "a block is four times narrower inside"

    @property
    def downsample(self) -> int:
        """Side of the square of pixels that one token stands for: 8 with four groups."""
        return 2 ** (self.num_groups - 1)

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of each group of the encoder."""
        return tuple(self.hidden * 2**group for group in range(self.num_groups))

    @property
    def post_gain(self) -> float:
        """Factor on every residual path: one over the squared number of blocks."""
        return 1 / (self.num_groups * self.blocks_per_group) ** 2

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DVAESpec:
        """From `dataclasses.asdict`, also after a round trip through JSON."""
        return cls(**{**values, "levels": tuple(values["levels"])})


class ResidualBlock(nn.Module):
    """skip(x) + gain * residual(x); the residual path has four convolutions, four times narrower inside.

    `upsample` doubles the sides of x first. The skip and the first convolution then look at single pixels, so they
    run before the nearest neighbours are repeated: the same values for a quarter of the work.
    """

    def __init__(self, widths: tuple[int, int], kernels: tuple[int, ...], gain: float, *, upsample: bool) -> None:
        super().__init__()
        assert kernels[0] == 1 or not upsample
        width_in, width_out = widths
        inner = width_out // 4
        layers: list[nn.Module] = []
        for kernel, (before, after) in zip(kernels, pairwise((width_in, inner, inner, inner, width_out)), strict=True):
            layers += [nn.ReLU(), nn.Conv2d(before, after, kernel, padding=kernel // 2)]
        self.residual = nn.Sequential(*layers)
        self.skip = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else nn.Identity()
        self.gain = gain
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest") if upsample else nn.Identity()

    def forward(self, x_BDHW: Tensor) -> Tensor:
        skip = self.upsample(self.skip(x_BDHW))
        residual = self.upsample(self.residual[:2](x_BDHW))
        return torch.add(skip, self.residual[2:](residual), alpha=self.gain)


def _groups(widths: tuple[int, ...], kernels: tuple[int, ...], spec: DVAESpec, *, upsample: bool) -> nn.ModuleList:
    """A group of blocks for every step of widths; `upsample` holds for the first block of all groups but the first."""
    groups = nn.ModuleList()
    for before, after in pairwise(widths):
        steps = pairwise((before, *[after] * spec.blocks_per_group))
        group = [
            ResidualBlock(step, kernels, spec.post_gain, upsample=upsample and number == 0 and len(groups) > 0)
            for number, step in enumerate(steps)
        ]
        groups.append(nn.Sequential(*group))
    return groups


def _channels_last(x_BCHW: Tensor) -> Tensor:
    """Convolutions with few channels are faster in this memory format, and the layers after the first keep it."""
    return x_BCHW.contiguous(memory_format=torch.channels_last)


class DVAEEncoder(nn.Module):
    """Pixels after `map_pixels` [B, C, H, W] -> [B, out_channels, H / downsample, W / downsample]."""

    def __init__(self, spec: DVAESpec, out_channels: int) -> None:
        super().__init__()
        self.input = nn.Conv2d(spec.channels, spec.hidden, 7, padding=3)
        self.groups = _groups((spec.hidden, *spec.widths), (3, 3, 3, 1), spec, upsample=False)
        self.pool = nn.MaxPool2d(2)
        self.output = nn.Sequential(nn.ReLU(), nn.Conv2d(spec.widths[-1], out_channels, 1))

    def forward(self, mapped_BCHW: Tensor) -> Tensor:
        x = self.input(_channels_last(mapped_BCHW))
        for number, group in enumerate(self.groups):
            x = group(self.pool(x) if number else x)
        return in_full_precision(self.output, x)


class DVAEDecoder(nn.Module):
    """Codes [B, K, Y, X] -> parameters of the pixels' distribution [B, S, Y * downsample, X * downsample]."""

    def __init__(self, spec: DVAESpec, code_channels: int) -> None:
        super().__init__()
        self.input = nn.Conv2d(code_channels, spec.decoder_input, 1)
        widths = (spec.decoder_input, *reversed(spec.widths))
        self.groups = _groups(widths, (1, 3, 3, 3), spec, upsample=True)
        out = 2 * spec.channels if spec.likelihood == "logit_laplace" else spec.channels
        self.output = nn.Sequential(nn.ReLU(), nn.Conv2d(spec.hidden, out, 1))

    def forward(self, code_BKYX: Tensor) -> Tensor:
        x = self.input(_channels_last(code_BKYX))
        for group in self.groups:
            x = group(x)
        return in_full_precision(self.output, x)


def _initialise(module: nn.Module) -> None:
    """DALL-E's: weights normal with variance 1 / inputs, biases 0."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class DVAEOutput(NamedTuple):
    """A training pass."""

    output_BSHW: Tensor  # parameters of the pixels' distribution
    z_BZYX: Tensor  # the encoder's output
    kl_BYX: Tensor | None  # nats per token; None: the quantizer has no such term


class DVAE(ImageTokenizer):
    """Discrete VAE: encoder, quantizer, decoder. Pixels are float [B, C, H, W] in [0, 1], sides multiples of
    `spec.downsample` (else UsageError). Without a decoder it makes tokens and their posterior alone."""

    kind = "dvae"
    interpolation = "lanczos"  # of its view in BEiT v1
    spec: DVAESpec

    def __init__(self, spec: DVAESpec) -> None:
        super().__init__()
        self.spec = spec
        self.quantizer: Quantizer = (
            FSQQuantizer(spec.levels)
            if spec.quantizer == "fsq"
            else GumbelQuantizer(spec.vocab_size, straight_through=spec.straight_through)
        )
        self.encoder = DVAEEncoder(spec, self.quantizer.in_channels)
        self.decoder = DVAEDecoder(spec, self.quantizer.code_channels) if spec.decoder else None
        self.apply(_initialise)
        # Differs from DALL-E: mid-grey enters as 0. Without that, what all pixels share outweighs what tells them
        # apart, and in a short training one token stays the most probable one everywhere.
        with torch.no_grad():
            self.encoder.input.bias.copy_(-0.5 * self.encoder.input.weight.sum((1, 2, 3)))

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> DVAE:
        """A fresh DVAE from what `describe` gave."""
        return cls(DVAESpec.from_dict(description))

    def describe(self) -> dict[str, Any]:
        """The spec as JSON values."""
        return {**dataclasses.asdict(self.spec), "levels": list(self.spec.levels)}

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens of an image; UsageError where the downsampling does not divide it."""
        step = self.spec.downsample
        if height % step or width % step:
            raise UsageError(f"the tokenizer's image of {height}x{width} pixels: both must be multiples of {step}")
        return height // step, width // step

    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        """The encoder's output [B, Z, Y, X]."""
        self.grid(*pixels_BCHW.shape[-2:])
        return self.encoder(map_pixels(pixels_BCHW))

    def forward(self, pixels_BCHW: Tensor, temperature: Tensor | float = 1.0) -> DVAEOutput:
        """Encode, quantize differentiably, decode."""
        z_BZYX = self.encode(pixels_BCHW)
        quantized = self.quantizer(z_BZYX, temperature)
        return DVAEOutput(self._decode(quantized.code_BKYX), z_BZYX, quantized.kl_BYX)

    def tokens(self, pixels_BCHW: Tensor) -> Tensor:
        """Most probable token ids, int [B, Y, X]."""
        return self.quantizer.tokens(self.encode(pixels_BCHW))

    def posterior(self, pixels_BCHW: Tensor) -> Tensor:
        """log q(z|x) in nats, [B, V, Y, X]."""
        return self.quantizer.posterior(self.encode(pixels_BCHW))

    def decode_output(self, code: Tensor) -> Tensor:
        """The decoder's output [B, S, H, W] for token ids (int [B, Y, X]) or codes (float [B, K, Y, X]).

        Raises ValueError where there is no decoder.
        """
        return self._decode(code if code.is_floating_point() else self.quantizer.codes(code))

    def _decode(self, code_BKYX: Tensor) -> Tensor:
        if self.decoder is None:
            raise ValueError("this discrete VAE was kept without its decoder: it makes tokens alone")
        return self.decoder(code_BKYX.to(self.decoder.input.weight.dtype))

    def decode(self, code: Tensor) -> Tensor:
        """Pixels [B, C, H, W] in [0, 1] for token ids (int [B, Y, X]) or codes (float [B, K, Y, X])."""
        return self.picture(self.decode_output(code))

    def picture(self, output_BSHW: Tensor) -> Tensor:
        """Pixels in [0, 1] of the decoder's output: the centre of its distribution."""
        return unmap_pixels(at_least_float(output_BSHW)[:, : self.spec.channels].sigmoid())

    def reconstruction_terms(self, output_BSHW: Tensor, pixels_BCHW: Tensor) -> Tensor:
        """What training minimises, per pixel and channel [B, C, H, W].

        logit_laplace: -log p in nats per mapped value; l1, l2: absolute and squared difference of pixels in [0, 1].
        """
        output_BSHW, mapped_BCHW = at_least_float(output_BSHW), map_pixels(at_least_float(pixels_BCHW))
        mean_BCHW = output_BSHW[:, : self.spec.channels]
        if self.spec.likelihood == "logit_laplace":
            return -logit_laplace_log_density(mapped_BCHW, mean_BCHW, output_BSHW[:, self.spec.channels :])
        # not clamped as `picture` is: a value beyond black or white must keep its gradient
        difference_BCHW = (mean_BCHW.sigmoid() - mapped_BCHW) / (1 - 2 * EPSILON)
        return difference_BCHW.abs() if self.spec.likelihood == "l1" else difference_BCHW.square()


def logit_laplace_log_density(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log of the logit-Laplace density on (0, 1) (Ramesh et al. 2021, eq. 2), elementwise, in nats.

    exp(-|logit x - mean| / b) / (2 b x (1 - x)) with b = exp(log_scale). Differs from the paper: log b is kept
    above MIN_LOG_SCALE, because flat areas would drive the density to infinity.
    """
    log_scale = log_scale.clamp_min(MIN_LOG_SCALE)
    distance = (torch.logit(x) - mean).abs() * (-log_scale).exp()
    return -distance - log_scale - math.log(2) - x.log() - (1 - x).log()
