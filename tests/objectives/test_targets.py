from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from vlbeit.errors import UsageError
from vlbeit.models.dvae import DVAE, DVAESpec
from vlbeit.models.spec import EncoderSpec
from vlbeit.models.vqkd import VQKD, VQKDSpec
from vlbeit.objectives.targets import PixelTarget, Target, TokenTarget, build_target
from vlbeit.objectives.variational import VariationalTerms, divergence, draw, left_out

TINY = DVAESpec(vocab_size=32, hidden=8, blocks_per_group=1, decoder_input=16)
TINY_VQKD = VQKDSpec(
    EncoderSpec(8, 1, 2, 8, image_size=(16, 24), layer_scale=0.0, positions="absolute"), vocab_size=16, code_dim=4
)


def token_target() -> TokenTarget:
    torch.manual_seed(0)
    return TokenTarget(DVAE(TINY))


def test_tokens_are_those_of_the_tokenizer_row_by_row() -> None:
    target, pixels_BCHW = token_target(), torch.rand(2, 3, 16, 24)
    ids_BN = target({"pixels": pixels_BCHW}, (2, 3))
    assert torch.equal(ids_BN.reshape(2, 2, 3), target.dvae.tokens(pixels_BCHW))
    assert target.head_width == 32


def test_tokenizer_stays_frozen_and_in_evaluation() -> None:
    target = token_target().train()
    assert not target.dvae.training and not target.dvae.quantizer.training
    assert not any(p.requires_grad for p in target.parameters())
    assert not target({"pixels": torch.rand(1, 3, 8, 8, requires_grad=True)}, (1, 1)).requires_grad


def test_view_that_does_not_fit_the_grid_is_refused() -> None:
    with pytest.raises(UsageError, match=r"2x3 tokens of a view of 16x24 pixels.*4x4 patches.*32x32 pixels"):
        token_target()({"pixels": torch.rand(1, 3, 16, 24)}, (4, 4))


def test_view_has_one_token_per_patch() -> None:
    assert token_target().view((2, 3)) == (16, 24)
    target = TokenTarget(VQKD(TINY_VQKD))
    assert target.view((2, 3)) == (16, 24) and target({"pixels": torch.rand(2, 3, 16, 24)}, (2, 3)).shape == (2, 6)
    with pytest.raises(UsageError, match="2x3 tokens of 16x24 pixels, 4x4 of 32x32 are needed"):
        target.view((4, 4))


def test_token_terms_are_cross_entropies() -> None:
    target = token_target()
    prediction_MV = torch.zeros(2, 32)
    prediction_MV[0, 3] = math.log(31.0)  # half of the probability
    ids_M = torch.tensor([3, 5])
    torch.testing.assert_close(target.terms(prediction_MV, ids_M), torch.tensor([math.log(2), math.log(32)]))
    assert target.correct(prediction_MV, ids_M).tolist() == [1, 0]


def test_pixel_values_of_a_picture_made_by_hand() -> None:
    """Two patches of 2x2 side by side; values 0..7 in reading order, second channel 100 more."""
    plane_HW = torch.arange(8.0).reshape(2, 4)
    image_BCHW = torch.stack([plane_HW, plane_HW + 100])[None]
    values_BNP = PixelTarget(2)({"image": image_BCHW}, (1, 2))
    assert values_BNP.tolist() == [[[0, 1, 4, 5, 100, 101, 104, 105], [2, 3, 6, 7, 102, 103, 106, 107]]]


def test_pixel_order_is_that_of_a_patch_embedding() -> None:
    embedding = nn.Conv2d(3, 5, 4, stride=4, bias=False)
    image_BCHW = torch.rand(2, 3, 8, 12)
    values_BNP = PixelTarget(4)({"image": image_BCHW}, (2, 3))
    expected_BND = embedding(image_BCHW).flatten(2).transpose(1, 2)
    torch.testing.assert_close(values_BNP @ embedding.weight.flatten(1).T, expected_BND)


def test_pixel_terms() -> None:
    values_MP, prediction_MP = torch.zeros(1, 12), torch.full((1, 12), -2.0)
    assert PixelTarget(2).terms(prediction_MP, values_MP).tolist() == [4]
    assert PixelTarget(2).correct(prediction_MP, values_MP) is None


def test_picture_of_another_size_is_refused() -> None:
    with pytest.raises(UsageError, match="16x16 pixels has not 4x4 patches of 8 pixels"):
        PixelTarget(8)({"image": torch.rand(1, 3, 16, 16)}, (4, 4))


@pytest.mark.parametrize(
    "target", [token_target(), TokenTarget(VQKD(TINY_VQKD)), PixelTarget(4)], ids=["dvae", "vqkd", "pixels"]
)
def test_targets_are_rebuilt_from_json(target: Target) -> None:
    rebuilt = build_target(json.loads(json.dumps({"heads": {}, **target.describe()})))
    rebuilt.load_state_dict(target.state_dict())
    assert rebuilt.describe() == target.describe() and rebuilt.head_width == target.head_width


def test_divergence_by_hand() -> None:
    q_MV = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5]])
    p_MV = torch.tensor([[0.25, 0.25, 0.5], [0.1, 0.6, 0.3], [0.2, 0.3, 0.5]])
    expected = torch.tensor([math.log(2), math.log(10), 0.0])
    torch.testing.assert_close(divergence(q_MV.log(), p_MV.log()), expected)


def test_drawn_tokens_follow_the_posterior_and_the_sample_alone() -> None:
    q_V = torch.tensor([0.1, 0.6, 0.0, 0.3])
    log_q_BVYX = q_V.log().reshape(1, 4, 1, 1).expand(2, 4, 100, 100)
    ids_BYX = draw(log_q_BVYX, ["a", "b"])
    shares_V = torch.bincount(ids_BYX.flatten(), minlength=4) / 20_000
    torch.testing.assert_close(shares_V, q_V, atol=0.02, rtol=0)
    assert shares_V[2] == 0
    assert torch.equal(draw(log_q_BVYX[:1], ["b"])[0], ids_BYX[1]) and not torch.equal(ids_BYX[0], ids_BYX[1])


class Guess(nn.Module):
    """A masked prediction that is even over the vocabulary."""

    def __init__(self, spec: DVAESpec) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.target = TokenTarget(DVAE(spec))

    def masked_logits(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(int(batch["mask"].sum()), self.target.head_width), batch["mask"]


def batch_of(number: int) -> dict[str, object]:
    generator = torch.Generator().manual_seed(number)
    pixels_BCHW = torch.rand(number, 3, 16, 16, generator=generator)
    mask_BN = torch.zeros(number, 4, dtype=torch.bool)
    mask_BN[:, 1:3] = True
    return {"pixels": pixels_BCHW, "mask": mask_BN, "sample_id": [str(row) for row in range(number)]}


def test_kl_of_an_even_guess_is_that_to_the_uniform_prior() -> None:
    objective, batch = Guess(TINY), batch_of(3)
    terms = VariationalTerms()
    terms.update(objective, batch)
    kl_BYX = objective.target.dvae(batch["pixels"]).kl_BYX
    assert terms.compute()["elbo_kl"] == pytest.approx(kl_BYX.flatten(1)[:, 1:3].mean().item(), rel=1e-4)


def test_without_decoder_the_kl_is_measured_alone() -> None:
    objective, batch = Guess(TINY), batch_of(3)
    whole, alone = VariationalTerms(), VariationalTerms()
    whole.update(objective, batch)
    objective.target.dvae.decoder = None
    alone.update(objective, batch)
    assert alone.compute() == {"elbo_kl": whole.compute()["elbo_kl"]}


def test_what_is_left_out_is_said() -> None:
    assert left_out(TokenTarget(DVAE(TINY)).describe()) == ""
    assert "elbo_reconstruction" in left_out(TokenTarget(DVAE(replace(TINY, decoder=False))).describe())
    assert "every elbo_" in left_out(TokenTarget(VQKD(TINY_VQKD)).describe())


def test_kl_of_a_certain_tokenizer_is_the_cross_entropy() -> None:
    objective = Guess(DVAESpec(vocab_size=25, hidden=8, blocks_per_group=1, decoder_input=16, quantizer="fsq"))
    terms = VariationalTerms()
    terms.update(objective, batch_of(2))
    assert terms.compute()["elbo_kl"] == pytest.approx(math.log(25), rel=1e-5)


@pytest.mark.parametrize("likelihood", ["logit_laplace", "l1", "l2"])
def test_reconstruction_term_is_a_log_density_over_pixels(likelihood: str) -> None:
    spec = DVAESpec(
        vocab_size=25, hidden=8, quantizer="fsq", blocks_per_group=1, decoder_input=16, likelihood=likelihood
    )
    objective, batch = Guess(spec), batch_of(4)
    dvae, pixels_BCHW = objective.target.dvae, batch["pixels"]
    output_BSHW = dvae.decode_output(dvae.tokens(pixels_BCHW)).double()
    difference_BCHW = dvae.picture(output_BSHW) - pixels_BCHW
    if likelihood == "l1":
        density = torch.distributions.Laplace(0.0, difference_BCHW.abs().mean()).log_prob(difference_BCHW).mean()
    elif likelihood == "l2":
        density = (
            torch.distributions.Normal(0.0, difference_BCHW.square().mean().sqrt()).log_prob(difference_BCHW).mean()
        )
    else:  # by change of variables: pixel -> mapped -> logit
        mapped_BCHW = 0.8 * pixels_BCHW.double() + 0.1
        laplace = torch.distributions.Laplace(output_BSHW[:, :3], output_BSHW[:, 3:].exp())
        slope_BCHW = 0.8 / (mapped_BCHW * (1 - mapped_BCHW))
        density = (laplace.log_prob(torch.logit(mapped_BCHW)) + slope_BCHW.log()).mean()
    terms = VariationalTerms()
    terms.update(objective, batch)
    result = terms.compute()
    assert result["elbo_reconstruction"] == pytest.approx(density.item(), rel=1e-4)
    assert result["elbo_l1"] == pytest.approx(difference_BCHW.abs().mean().item(), rel=1e-4)


def test_terms_do_not_depend_on_the_batches() -> None:
    objective, whole = Guess(TINY), batch_of(4)
    one, two = VariationalTerms(), VariationalTerms()
    one.update(objective, whole)
    for rows in (slice(0, 1), slice(1, 4)):
        two.update(objective, {name: value[rows] for name, value in whole.items()})
        restored = VariationalTerms()
        restored.load_state_dict(two.state_dict())
        two = restored
    assert two.compute() == pytest.approx(one.compute(), rel=1e-5)
