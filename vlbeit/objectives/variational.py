"""BEiT's variational view of masked image modeling, measured.

log p(x|x~) >= E_{z~q(z|x)}[log p(x|z)] - KL(q(z|x) || p(z|x~)) with picture x, masked picture x~, tokens z, tokenizer
q, its decoder p(x|z) and the masked prediction p(z|x~) (Bao et al. 2022, section 2.4).

Legend of shape suffixes: B batch, C colour channels, H height, W width, M masked patches of the batch, N patches,
V vocabulary, Y rows and X columns of tokens.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlbeit import dist
from vlbeit.models.dvae import EPSILON
from vlbeit.models.quantizer import at_least_float
from vlbeit.types import Batch


class VariationalTerms:
    """Evaluator of both terms, in nats, for a discrete VAE.

    The objective has `target.dvae` and `masked_logits(batch) -> (logits [M, V], mask [B, N])`.
    `elbo_reconstruction`: log p(x|z), a density over [0, 1], per pixel value (pixel and channel), one z per picture
    drawn from q; higher is better. A tokenizer trained with l1 or l2 has no scale: its Laplace or normal density gets
    the one that fits the split best. `elbo_kl`: KL(q(z|x) || p(z|x~)) per masked patch; lower is better. A certain q
    (fsq) makes it the cross-entropy of masked image modeling. `elbo_l1`: mean absolute difference of picture and
    decoded z, pixels in [0, 1]. Without a decoder there is `elbo_kl` alone.
    """

    def __init__(self) -> None:
        self.likelihood = ""
        # log density, absolute and squared differences, pixel values, KL, masked patches
        self.sums = torch.zeros(6, dtype=torch.float64)

    @torch.no_grad()
    def update(self, objective: nn.Module, batch: Batch) -> None:
        """Add a batch with `pixels`, `mask`, `sample_id` and what the encoder needs."""
        dvae: Any = objective.target.dvae
        pixels_BCHW = batch["pixels"]
        self.likelihood = dvae.spec.likelihood
        logits_MV, mask_BN = objective.masked_logits(batch)
        log_q_BVYX = dvae.posterior(pixels_BCHW)
        log_q_MV = log_q_BVYX.flatten(2).transpose(1, 2)[mask_BN]
        kl = divergence(log_q_MV, at_least_float(logits_MV).log_softmax(-1)).double().sum()

        self.sums[4:] += torch.stack([kl, mask_BN.sum().to(kl)]).cpu()
        if dvae.decoder is not None:
            output_BSHW = dvae.decode_output(draw(log_q_BVYX, batch["sample_id"]))
            self._add_pixels(dvae, output_BSHW, pixels_BCHW)

    def _add_pixels(self, dvae: Any, output_BSHW: Tensor, pixels_BCHW: Tensor) -> None:
        """The terms that compare the picture with what the decoder made of its tokens."""
        terms_BCHW = dvae.reconstruction_terms(output_BSHW, pixels_BCHW).double()
        difference_BCHW = (dvae.picture(output_BSHW) - pixels_BCHW).double()
        self.sums[:4] += torch.stack(
            [
                # a density over mapped values, (1 - 2 epsilon) times as wide as pixels
                (math.log(1 - 2 * EPSILON) - terms_BCHW).sum(),
                difference_BCHW.abs().sum(),
                difference_BCHW.square().sum(),
                torch.tensor(float(difference_BCHW.numel())).to(terms_BCHW),
            ]
        ).cpu()

    def compute(self) -> dict[str, float]:
        """The three numbers, over all processes; of a tokenizer without a decoder the second."""
        density, absolute, squared, values, kl, masked = sum(dist.gather_objects(self.sums)).tolist()
        if values == 0:
            return {"elbo_kl": kl / masked}
        if self.likelihood == "l1":  # Laplace, scale = mean absolute difference
            reconstruction = -math.log(2 * absolute / values) - 1
        elif self.likelihood == "l2":  # normal, variance = mean squared difference
            reconstruction = -0.5 * math.log(2 * math.pi * squared / values) - 0.5
        else:
            reconstruction = density / values
        return {"elbo_reconstruction": reconstruction, "elbo_kl": kl / masked, "elbo_l1": absolute / values}

    def state_dict(self) -> dict[str, Any]:
        return {"likelihood": self.likelihood, "sums": self.sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.likelihood, self.sums = state["likelihood"], state["sums"].clone()


def left_out(target: Mapping[str, Any]) -> str:
    """Why a target's description of its tokenizer lets not all terms be measured, in words; empty: it does."""
    if target["target"] != "dvae":
        return "hard codes alone, no posterior and no way back to pixels: the evaluation leaves out every elbo_ number"
    if not target["dvae"].get("decoder", True):
        return "no decoder: the evaluation leaves out elbo_reconstruction and elbo_l1"
    return ""


def divergence(log_q_MV: Tensor, log_p_MV: Tensor) -> Tensor:
    """KL(q || p) [M] in nats; tokens of probability 0 under q add nothing."""
    q_MV = log_q_MV.exp()
    return torch.where(q_MV > 0, q_MV * (log_q_MV - log_p_MV), 0.0).sum(-1)


def draw(log_q_BVYX: Tensor, sample_ids: Sequence[str]) -> Tensor:
    """Token ids [B, Y, X] drawn from q, the same for the same sample in any batch."""
    shape = log_q_BVYX.shape[2:]
    generators = [torch.Generator().manual_seed(zlib.crc32(name.encode())) for name in sample_ids]
    noise_B1YX = torch.stack([torch.rand(1, *shape, generator=generator) for generator in generators])
    below_BVYX = log_q_BVYX.exp().cumsum(1) < noise_B1YX.to(log_q_BVYX)
    return below_BVYX.sum(1).clamp_max(log_q_BVYX.shape[1] - 1)
