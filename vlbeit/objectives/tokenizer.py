"""Training of the discrete VAE (Ramesh et al. 2021): reconstruction + KL to the uniform prior, both annealed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlbeit import dist
from vlbeit.models.dvae import DVAE, DVAEOutput
from vlbeit.objectives.base import Objective
from vlbeit.types import Batch, Logs, StepOutput


@dataclass(frozen=True)
class Annealing:
    """Half-cosine ramps from the first step; 0 steps: the end value from the start.

    The defaults are DALL-E's (Ramesh et al. 2021, A.2): temperature 1 to 1/16 over 150,000 updates, KL weight 0 to
    6.6 over 5,000.
    """

    temperature_start: float = 1.0
    temperature_end: float = 1 / 16
    temperature_steps: int = 150_000
    kl_weight: float = 6.6
    kl_steps: int = 5_000

    def temperature(self, step: Tensor) -> Tensor:
        """Of the Gumbel-softmax relaxation at this step."""
        return _ramp(self.temperature_start, self.temperature_end, step, self.temperature_steps)

    def kl(self, step: Tensor) -> Tensor:
        """Weight of the KL term in the evidence lower bound at this step."""
        return _ramp(0.0, self.kl_weight, step, self.kl_steps)


def _ramp(start: float, end: float, step: Tensor, steps: int) -> Tensor:
    share = (step / steps).clamp_max(1.0) if steps else torch.ones_like(step, dtype=torch.float32)
    return end + (start - end) * (1 + torch.cos(math.pi * share)) / 2


class TokenizerObjective(Objective):
    """Loss of a discrete VAE on `batch["pixels"]` [B, C, H, W] in [0, 1].

    `reconstruction` and `kl` are divided by the number of pixel values, so that the KL weight is that of the bound:
    6.6 at 192 values per token weighs the mean KL of a token by 6.6 / 192 (Ramesh et al. 2021, A.2). `diversity`, off
    at weight 0, is KL(mean of q over the micro-batch || uniform) in nats: it keeps all tokens in use in short
    trainings (Baevski et al. 2020, wav2vec 2.0, section 3.2). The step that the ramps follow is a buffer: it is saved
    with the weights.
    """

    step: Tensor

    def __init__(self, dvae: DVAE, annealing: Annealing, diversity_weight: float = 0.0) -> None:
        super().__init__()
        self.dvae = dvae
        self.annealing = annealing
        self.diversity_weight = diversity_weight
        # a deterministic quantizer has neither posterior to regularise
        stochastic = ("kl", "diversity") if diversity_weight else ("kl",)
        self.loss_names = ("reconstruction",) if dvae.spec.quantizer == "fsq" else ("reconstruction", *stochastic)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def describe(self) -> dict[str, Any]:
        """`{"dvae": spec}`, from which `DVAE.from_description` builds it again."""
        return {"dvae": self.dvae.describe()}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Pixel values of the batch; tokens for `diversity`."""
        pixels_BCHW = batch["pixels"]
        batch_size, _, height, width = pixels_BCHW.shape
        rows, columns = self.dvae.grid(height, width)
        tokens = batch_size * rows * columns
        numbers = {name: tokens if name == "diversity" else pixels_BCHW.numel() for name in self.loss_names}
        return {name: torch.tensor(float(number), device=pixels_BCHW.device) for name, number in numbers.items()}

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> StepOutput:
        """Losses `reconstruction` and, with a stochastic quantizer, `kl` and `diversity`."""
        pixels_BCHW = batch["pixels"]
        temperature = self.annealing.temperature(self.step)
        out = self.dvae(pixels_BCHW, temperature)
        sums = {"reconstruction": self.dvae.reconstruction_terms(out.output_BSHW, pixels_BCHW).sum()}
        if out.kl_BYX is not None:
            sums["kl"] = self.annealing.kl(self.step) * out.kl_BYX.sum()
        if "diversity" in self.loss_names:
            unevenness = divergence_from_uniform(self.dvae.quantizer.posterior(out.z_BZYX).exp().mean((0, 2, 3)))
            sums["diversity"] = self.diversity_weight * unevenness * out.z_BZYX[:, 0].numel()
        losses = {name: sums[name] / counts[name] for name in self.loss_names}
        return StepOutput(losses, self._logs(out, pixels_BCHW, temperature))

    @torch.no_grad()
    def _logs(self, out: DVAEOutput, pixels_BCHW: Tensor, temperature: Tensor) -> Logs:
        one = torch.ones((), device=pixels_BCHW.device)
        difference_BCHW = self.dvae.picture(out.output_BSHW) - pixels_BCHW
        counts_V = torch.bincount(self.dvae.quantizer.tokens(out.z_BZYX).flatten(), minlength=self.dvae.spec.vocab_size)
        logs = {
            "l1": (difference_BCHW.abs().sum(), one * difference_BCHW.numel()),
            "batch_perplexity": (perplexity(counts_V), one),
        }
        if out.kl_BYX is not None:
            logs["kl_per_token"] = (out.kl_BYX.sum(), one * out.kl_BYX.numel())
            logs["temperature"] = (temperature * one, one)
        return logs

    def after_step(self) -> None:
        """Advance the ramps."""
        self.step += 1


def divergence_from_uniform(share_V: Tensor) -> Tensor:
    """KL(shares || uniform) in nats: 0 where all tokens are used evenly, log V where one is."""
    return math.log(len(share_V)) + torch.xlogy(share_V, share_V).sum()


def perplexity(counts_V: Tensor) -> Tensor:
    """exp of the entropy of the tokens' shares: the number of tokens that would be used if all were used evenly."""
    share_V = counts_V.double() / counts_V.sum()
    return len(share_V) * (-divergence_from_uniform(share_V)).exp()


class CodebookUsage:
    """Evaluator: how much of the vocabulary a split uses, and how well pictures are rebuilt from token ids alone.

    `usage` share of the vocabulary seen at least once · `perplexity` · `l1` mean absolute difference and `psnr` in dB,
    pixels in [0, 1].
    """

    def __init__(self, vocab_size: int) -> None:
        self.counts_V = torch.zeros(vocab_size, dtype=torch.int64)
        self.sums = torch.zeros(3, dtype=torch.float64)  # absolute and squared differences, values

    @torch.no_grad()
    def update(self, objective: nn.Module, batch: Batch) -> None:
        """Count the tokens of `batch["pixels"]` and compare the pictures that they decode to."""
        dvae, pixels_BCHW = objective.dvae, batch["pixels"]
        ids_BYX = dvae.tokens(pixels_BCHW)
        difference_BCHW = (dvae.decode(ids_BYX) - pixels_BCHW).double()
        self.counts_V += torch.bincount(ids_BYX.flatten(), minlength=len(self.counts_V)).cpu()
        sums = [difference_BCHW.abs().sum().item(), difference_BCHW.square().sum().item(), difference_BCHW.numel()]
        self.sums += torch.tensor(sums, dtype=torch.float64)

    def compute(self) -> dict[str, float]:
        """The four numbers, over all processes."""
        counts_V = torch.stack(dist.gather_objects(self.counts_V)).sum(0)
        absolute, squared, values = sum(dist.gather_objects(self.sums)).tolist()
        return {
            "usage": (counts_V > 0).double().mean().item(),
            "perplexity": perplexity(counts_V).item(),
            "l1": absolute / values,
            "psnr": 10 * math.log10(values / max(squared, 1e-12)),
        }

    def state_dict(self) -> dict[str, Any]:
        return {"counts": self.counts_V, "sums": self.sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.counts_V, self.sums = state["counts"].clone(), state["sums"].clone()
