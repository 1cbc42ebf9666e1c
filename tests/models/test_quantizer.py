from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from vlbeit.models.quantizer import FSQQuantizer, GumbelQuantizer, choose_levels


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (5,), (7, 6, 6), (4, 3)])
def test_fsq_ids_round_trip_over_the_whole_vocabulary(levels: tuple[int, ...]) -> None:
    quantizer = FSQQuantizer(levels)
    ids_BYX = torch.arange(math.prod(levels)).reshape(1, 1, -1)
    codes_BKYX = quantizer.codes(ids_BYX)
    assert codes_BKYX.min() == -1 and codes_BKYX.max() == 1
    z_BZYX = torch.atanh(codes_BKYX * (1 - 1e-6))
    assert torch.equal(quantizer.tokens(z_BZYX), ids_BYX)
    torch.testing.assert_close(quantizer(z_BZYX).code_BKYX, codes_BKYX)


def test_fsq_reaches_every_level_and_no_other() -> None:
    quantizer = FSQQuantizer((8, 5))
    ids_BYX = quantizer.tokens(3 * torch.randn(1, 2, 100, 100, generator=torch.Generator().manual_seed(0)))
    assert ids_BYX.unique().tolist() == list(range(40))


def test_fsq_first_channel_varies_fastest() -> None:
    z_BZYX = torch.tensor([9.0, -9.0, -9.0]).reshape(1, 3, 1, 1)
    quantizer = FSQQuantizer((8, 6, 5))
    assert quantizer.tokens(z_BZYX).item() == 7
    assert quantizer.tokens(z_BZYX.roll(1, dims=1)).item() == 5 * 8
    assert quantizer.tokens(z_BZYX.roll(2, dims=1)).item() == 4 * 8 * 6


def test_fsq_gradient_is_that_of_tanh() -> None:
    quantizer = FSQQuantizer((8, 5))
    z_BZYX = torch.randn(2, 2, 3, 3, requires_grad=True)
    quantizer(z_BZYX).code_BKYX.sum().backward()
    torch.testing.assert_close(z_BZYX.grad, 1 - z_BZYX.detach().tanh() ** 2)


def test_fsq_posterior_is_certain() -> None:
    quantizer = FSQQuantizer((5, 5))
    z_BZYX = torch.randn(2, 2, 3, 4)
    log_q_BVYX = quantizer.posterior(z_BZYX)
    assert torch.equal(log_q_BVYX.argmax(1), quantizer.tokens(z_BZYX))
    assert torch.equal(log_q_BVYX.exp().sum(1), torch.ones(2, 3, 4))
    assert quantizer(z_BZYX).kl_BYX is None


@pytest.mark.parametrize(
    ("vocab_size", "levels"),
    [(5, (5,)), (240, (8, 6, 5)), (256, (7, 6, 6)), (1000, (8, 5, 5, 5)), (64000, (8, 8, 8, 5, 5, 5))],
)
def test_levels_are_chosen_for_the_vocabulary(vocab_size: int, levels: tuple[int, ...]) -> None:
    assert choose_levels(vocab_size) == levels


def test_levels_never_exceed_the_vocabulary() -> None:
    products = [math.prod(choose_levels(size)) for size in range(5, 2000)]
    assert all(product <= size for size, product in enumerate(products, start=5))
    assert all(a <= b for a, b in pairwise(products))
    with pytest.raises(ValueError, match="at least 5"):
        choose_levels(4)


def test_gumbel_samples_follow_the_posterior() -> None:
    torch.manual_seed(0)
    quantizer = GumbelQuantizer(3)
    q_V = torch.tensor([0.2, 0.5, 0.3])
    z_BZYX = q_V.log().reshape(1, 3, 1, 1).expand(1, 3, 200, 200)
    code_BVYX = quantizer(z_BZYX, 0.5).code_BKYX
    torch.testing.assert_close(code_BVYX.sum(1), torch.ones(1, 200, 200))
    shares_V = torch.bincount(code_BVYX.argmax(1).flatten(), minlength=3) / 40_000
    torch.testing.assert_close(shares_V, q_V, atol=0.01, rtol=0)


def test_gumbel_sharpens_as_the_temperature_falls() -> None:
    quantizer, z_BZYX = GumbelQuantizer(16), torch.zeros(1, 16, 20, 20)
    torch.manual_seed(0)
    warm = quantizer(z_BZYX, 1.0).code_BKYX.amax(1).mean()
    torch.manual_seed(0)
    cold = quantizer(z_BZYX, torch.tensor(1 / 16)).code_BKYX.amax(1).mean()
    assert warm < 0.5 < 0.9 < cold


def test_gumbel_straight_through_is_one_hot_with_a_soft_gradient() -> None:
    quantizer = GumbelQuantizer(6, straight_through=True)
    z_BZYX = torch.randn(1, 6, 2, 2, requires_grad=True)
    code_BVYX = quantizer(z_BZYX).code_BKYX
    torch.testing.assert_close(code_BVYX, quantizer.codes(code_BVYX.argmax(1)))
    (code_BVYX * torch.arange(6.0)[:, None, None]).sum().backward()
    assert z_BZYX.grad is not None and z_BZYX.grad.abs().sum() > 0


def test_gumbel_is_deterministic_in_evaluation() -> None:
    quantizer, z_BZYX = GumbelQuantizer(6).eval(), torch.randn(1, 6, 2, 2)
    assert torch.equal(quantizer(z_BZYX).code_BKYX, quantizer.codes(z_BZYX.argmax(1)))


def test_kl_to_uniform() -> None:
    quantizer = GumbelQuantizer(4)
    certain, even = torch.tensor([100.0, 0, 0, 0]), torch.zeros(4)
    half = torch.tensor([0.5, 0.5, 1e-9, 1e-9]).log()
    kl_BYX = quantizer(torch.stack([certain, even, half]).reshape(3, 4, 1, 1)).kl_BYX
    torch.testing.assert_close(kl_BYX.flatten(), torch.tensor([math.log(4), 0.0, math.log(2)]))
