from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from vlbeit.models.dvae import DVAE, DVAESpec
from vlbeit.objectives.tokenizer import (
    Annealing,
    CodebookUsage,
    TokenizerObjective,
    divergence_from_uniform,
    perplexity,
)

TINY: dict[str, Any] = {"vocab_size": 32, "hidden": 16, "blocks_per_group": 1, "decoder_input": 16}
FIXED = Annealing(temperature_start=1.0, temperature_end=1.0, temperature_steps=0, kl_weight=0.0, kl_steps=0)


def make(annealing: Annealing = FIXED, diversity_weight: float = 0.0, **changes: Any) -> TokenizerObjective:
    torch.manual_seed(0)
    return TokenizerObjective(DVAE(DVAESpec(**TINY | changes)), annealing, diversity_weight)


def patches(number: int, size: int = 16) -> torch.Tensor:
    """Pictures of 8x8 squares of one colour each."""
    generator = torch.Generator().manual_seed(1)
    return (
        torch.rand(number, 3, size // 8, size // 8, generator=generator).repeat_interleave(8, 2).repeat_interleave(8, 3)
    )


def test_temperature_and_kl_weight_are_annealed() -> None:
    annealing = Annealing(temperature_start=1.0, temperature_end=0.1, temperature_steps=100, kl_weight=6.6, kl_steps=10)
    steps = torch.tensor([0, 25, 50, 100, 1000])
    expected = [1.0, 0.1 + 0.45 * (1 + math.cos(math.pi / 4)), 0.55, 0.1, 0.1]
    torch.testing.assert_close(annealing.temperature(steps), torch.tensor(expected))
    torch.testing.assert_close(annealing.kl(torch.tensor([0, 5, 10, 11])), torch.tensor([0.0, 3.3, 6.6, 6.6]))
    assert Annealing(kl_steps=0).kl(torch.tensor(0)).item() == pytest.approx(6.6)


def test_step_is_saved_and_advanced() -> None:
    objective = make()
    objective.after_step()
    objective.after_step()
    restored = make()
    restored.load_state_dict(objective.state_dict())
    assert restored.step.item() == 2


def test_losses_are_sums_over_the_counts_given() -> None:
    """Two halves with the counts of the whole give the loss of the whole."""
    objective = make(quantizer="fsq", vocab_size=25)
    pixels_BCHW = patches(4)
    whole = {"pixels": pixels_BCHW}
    halves = [{"pixels": half} for half in pixels_BCHW.chunk(2)]
    counts = objective.counts(whole)
    assert counts["reconstruction"].item() == 4 * 3 * 16 * 16
    total = objective(whole, counts).losses["reconstruction"]
    torch.testing.assert_close(sum(objective(half, counts).losses["reconstruction"] for half in halves), total)


def test_kl_has_the_weight_of_the_bound() -> None:
    """6.6 / 192 times the mean KL of a token, at 192 values per token."""
    objective = make(Annealing(kl_steps=0))
    batch = {"pixels": patches(2)}
    out = objective(batch, objective.counts(batch))
    kl_sum, tokens = out.logs["kl_per_token"]
    assert tokens.item() == 2 * 4
    torch.testing.assert_close(out.losses["kl"], 6.6 / 192 * kl_sum / tokens)


@pytest.mark.parametrize("likelihood", ["logit_laplace", "l1", "l2"])
@pytest.mark.parametrize("quantizer", ["gumbel", "fsq"])
def test_every_parameter_gets_a_gradient(quantizer: str, likelihood: str) -> None:
    objective = make(Annealing(kl_steps=0), quantizer=quantizer, likelihood=likelihood)
    batch = {"pixels": torch.rand(2, 3, 16, 24)}
    out = objective(batch, objective.counts(batch))
    assert set(out.losses) == set(objective.counts(batch))
    sum(out.losses.values()).backward()
    without = [name for name, p in objective.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without
    assert all(torch.isfinite(p.grad).all() for p in objective.parameters())


def test_diversity_is_zero_for_even_and_full_for_one_token() -> None:
    assert divergence_from_uniform(torch.full((8,), 1 / 8)).item() == pytest.approx(0, abs=1e-6)
    assert divergence_from_uniform(torch.eye(8)[2]).item() == pytest.approx(math.log(8))


def test_diversity_has_its_weight_and_no_effect_on_a_deterministic_quantizer() -> None:
    objective = make(diversity_weight=0.3)
    batch = {"pixels": patches(2)}
    counts = objective.counts(batch)
    assert counts["diversity"].item() == 2 * 4
    q_V = objective.dvae.posterior(batch["pixels"]).exp().mean((0, 2, 3))
    expected = 0.3 * (q_V * (q_V * 32).log()).sum()
    torch.testing.assert_close(objective(batch, counts).losses["diversity"], expected)
    assert set(make(diversity_weight=0.3, quantizer="fsq", vocab_size=25).counts(batch)) == {"reconstruction"}


@pytest.mark.parametrize(("quantizer", "likelihood"), [("gumbel", "l2"), ("fsq", "l1"), ("fsq", "logit_laplace")])
def test_overfits_one_batch(quantizer: str, likelihood: str) -> None:
    """32 squares of 32 colours: nearly every one gets a token of its own."""
    torch.manual_seed(0)
    spec = DVAESpec(64, 16, blocks_per_group=1, decoder_input=32, quantizer=quantizer, likelihood=likelihood)
    annealing = Annealing(temperature_end=0.5, temperature_steps=100, kl_weight=0.0)
    objective = TokenizerObjective(DVAE(spec), annealing, diversity_weight=0.01)
    batch = {"pixels": patches(8)}
    counts = objective.counts(batch)
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
    before = score(objective, batch)
    for _ in range(150):
        optimizer.zero_grad()
        sum(objective(batch, counts).losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimizer.step()
        objective.after_step()
    after = score(objective, batch)
    assert after["l1"] < 0.07 < 0.2 < before["l1"]
    assert after["perplexity"] > 15 and after["psnr"] > before["psnr"] + 8


def score(objective: TokenizerObjective, batch: dict[str, Any]) -> dict[str, float]:
    usage = CodebookUsage(objective.dvae.spec.vocab_size)
    usage.update(objective.eval(), batch)
    objective.train()
    return usage.compute()


def test_perplexity_of_known_counts() -> None:
    assert perplexity(torch.tensor([5, 5, 5, 5, 0, 0])).item() == pytest.approx(4)
    assert perplexity(torch.tensor([7, 0])).item() == pytest.approx(1)
    assert perplexity(torch.tensor([2, 1, 1])).item() == pytest.approx(2**1.5)


class FixedTokens(torch.nn.Module):
    """A tokenizer that gives the ids it was told and a grey picture."""

    def tokens(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[[0, 1], [1, 0]]]).expand(len(pixels_BCHW), 2, 2)

    def decode(self, ids_BYX: torch.Tensor) -> torch.Tensor:
        return torch.full((len(ids_BYX), 3, 16, 16), 0.5)


def test_usage_over_batches_and_after_a_restart() -> None:
    objective = torch.nn.Module()
    objective.dvae = FixedTokens()
    usage = CodebookUsage(8)
    usage.update(objective, {"pixels": torch.full((2, 3, 16, 16), 0.6)})
    restored = CodebookUsage(8)
    restored.load_state_dict(usage.state_dict())
    restored.update(objective, {"pixels": torch.full((2, 3, 16, 16), 0.4)})
    expected = {"usage": 0.25, "perplexity": 2.0, "l1": 0.1, "psnr": 20.0}
    assert restored.compute() == pytest.approx(expected, rel=1e-5)
