from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from vlbeit.errors import UsageError
from vlbeit.models.dvae import (
    DVAE,
    MIN_LOG_SCALE,
    DVAEEncoder,
    DVAESpec,
    ResidualBlock,
    logit_laplace_log_density,
    map_pixels,
    unmap_pixels,
)

TINY = DVAESpec(vocab_size=32, hidden=8, blocks_per_group=1, decoder_input=16)
TINY_FSQ = DVAESpec(vocab_size=25, hidden=8, blocks_per_group=1, decoder_input=16, quantizer="fsq", likelihood="l1")


def test_default_encoder_has_the_published_size() -> None:
    """FlavaImageCodebook() and OpenAI's encoder both have 53,786,240 parameters."""
    with torch.device("meta"):
        encoder = DVAEEncoder(DVAESpec(), 8192)
    assert sum(p.numel() for p in encoder.parameters()) == 53_786_240


def test_pinned_output() -> None:
    dvae = DVAE(TINY).eval()
    with torch.no_grad():
        for number, parameter in enumerate(dvae.parameters()):
            wave = torch.arange(parameter.numel()).add(number).sin() / max(parameter[0].numel(), 4) ** 0.5
            parameter.copy_(wave.reshape(parameter.shape))
        pixels_BCHW = torch.linspace(0, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
        assert dvae.encode(pixels_BCHW).abs().mean().item() == pytest.approx(0.6345878, rel=1e-4)
        assert dvae.decode(dvae.tokens(pixels_BCHW)).mean().item() == pytest.approx(0.3731698, rel=1e-4)


@pytest.mark.parametrize("spec", [TINY, TINY_FSQ], ids=["gumbel", "fsq"])
def test_shapes_of_a_picture_that_is_not_square(spec: DVAESpec) -> None:
    dvae, pixels_BCHW = DVAE(spec).eval(), torch.rand(2, 3, 24, 40)
    ids_BYX = dvae.tokens(pixels_BCHW)
    assert ids_BYX.shape == (2, 3, 5) and ids_BYX.dtype == torch.int64
    log_q_BVYX = dvae.posterior(pixels_BCHW)
    assert log_q_BVYX.shape == (2, spec.vocab_size, 3, 5)
    torch.testing.assert_close(log_q_BVYX.exp().sum(1), torch.ones(2, 3, 5))
    assert torch.equal(log_q_BVYX.argmax(1), ids_BYX)
    picture_BCHW = dvae.decode(ids_BYX)
    assert picture_BCHW.shape == pixels_BCHW.shape and picture_BCHW.min() >= 0 and picture_BCHW.max() <= 1
    # in evaluation a pass is: encode, take the most probable token, decode
    torch.testing.assert_close(dvae.picture(dvae(pixels_BCHW).output_BSHW), picture_BCHW)
    torch.testing.assert_close(dvae.decode(dvae.quantizer.codes(ids_BYX)), picture_BCHW)


def test_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UsageError, match="20x32 pixels: both must be multiples of 8"):
        DVAE(TINY).tokens(torch.rand(1, 3, 20, 32))


@pytest.mark.parametrize("spec", [TINY, TINY_FSQ, DVAESpec()], ids=["gumbel", "fsq", "default"])
def test_spec_survives_json(spec: DVAESpec) -> None:
    with torch.device("meta"):
        description = json.loads(json.dumps(DVAE(spec).describe()))
        assert DVAE.from_description(description).spec == spec


def test_fsq_vocabulary_is_the_product_of_the_levels() -> None:
    assert DVAESpec(vocab_size=8192, quantizer="fsq").vocab_size == 8000
    assert DVAESpec(quantizer="fsq", levels=(8, 5, 5, 5)).vocab_size == 1000


def test_map_pixels_round_trip() -> None:
    pixels = torch.linspace(0, 1, 11)
    assert map_pixels(pixels)[[0, -1]].tolist() == pytest.approx([0.1, 0.9])
    torch.testing.assert_close(unmap_pixels(map_pixels(pixels)), pixels)


@pytest.mark.parametrize(("mean", "log_scale"), [(0.0, 0.0), (1.5, -1.0), (-0.7, -2.0), (0.3, MIN_LOG_SCALE - 3)])
def test_logit_laplace_density_integrates_to_one(mean: float, log_scale: float) -> None:
    # the midpoints are even in logit(x): narrow where the density is
    edges = torch.sigmoid(torch.linspace(-40, 40, 400_001, dtype=torch.float64))
    x, width = (edges[1:] + edges[:-1]) / 2, edges.diff()
    inside = (x > 0) & (x < 1)
    log_density = logit_laplace_log_density(
        x[inside], torch.tensor(mean, dtype=torch.float64), torch.tensor(log_scale, dtype=torch.float64)
    )
    assert (log_density.exp() * width[inside]).sum().item() == pytest.approx(1, abs=1e-3)


def test_logit_laplace_at_one_point() -> None:
    """x = 1/2, mean 0: 1 / (2 b / 4) = 2 / b."""
    value = logit_laplace_log_density(torch.tensor(0.5), torch.tensor(0.0), torch.tensor(-1.0))
    assert value.item() == pytest.approx(0.6931472 + 1)


@pytest.mark.parametrize(("likelihood", "expected"), [("l1", 0.25), ("l2", 0.0625)])
def test_differences_are_in_pixel_units(likelihood: str, expected: float) -> None:
    dvae = DVAE(DVAESpec(vocab_size=8, hidden=8, likelihood=likelihood))
    output_BSHW = torch.logit(map_pixels(torch.full((1, 3, 8, 8), 0.75)))
    terms_BCHW = dvae.reconstruction_terms(output_BSHW, torch.full((1, 3, 8, 8), 0.5))
    torch.testing.assert_close(terms_BCHW, torch.full((1, 3, 8, 8), expected))


def test_mid_grey_enters_as_zero() -> None:
    encoder = DVAE(TINY).encoder
    z_BDHW = encoder.input(map_pixels(torch.full((1, 3, 16, 16), 0.5)))
    torch.testing.assert_close(z_BDHW[..., 3:-3, 3:-3], torch.zeros(1, 8, 10, 10), atol=1e-5, rtol=0)


def test_convolving_before_upsampling_is_the_same() -> None:
    torch.manual_seed(0)
    block = ResidualBlock((8, 16), (1, 3, 3, 3), 0.5, upsample=True)
    plain = ResidualBlock((8, 16), (1, 3, 3, 3), 0.5, upsample=False)
    plain.load_state_dict(block.state_dict())
    x_BDHW = torch.randn(2, 8, 3, 5)
    doubled_BDHW = x_BDHW.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(block(x_BDHW), plain(doubled_BDHW))


def test_without_decoder_it_makes_the_same_tokens() -> None:
    whole = DVAE(TINY).eval()
    alone = DVAE(replace(TINY, decoder=False)).eval()
    alone.load_state_dict({name: v for name, v in whole.state_dict().items() if not name.startswith("decoder.")})
    pixels_BCHW = torch.rand(1, 3, 16, 16)
    assert torch.equal(alone.tokens(pixels_BCHW), whole.tokens(pixels_BCHW))
    assert torch.equal(alone.posterior(pixels_BCHW), whole.posterior(pixels_BCHW))
    for asked in (alone.decode, alone.decode_output):
        with pytest.raises(ValueError, match="without its decoder"):
            asked(alone.tokens(pixels_BCHW))


def test_descriptions_from_before_the_decoder_was_optional() -> None:
    described = DVAE(TINY).describe()
    del described["decoder"]
    assert DVAE.from_description(described).spec == TINY
