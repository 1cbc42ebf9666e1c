"""DALL-E's and FLAVA's names of the discrete VAE."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vlbeit.errors import DataError
from vlbeit.models.convert import convert, recognise
from vlbeit.models.convert.dvae import join_pair
from vlbeit.models.convert.layout import Converted
from vlbeit.models.dvae import DVAE, map_pixels
from vlbeit.models.tokenizer_kinds import build_tokenizer


def picture(rows: int, columns: int) -> Tensor:
    """Two pictures of squares in pure colours, one square per token, so that tokens differ."""
    colours = torch.randint(2, (2, 3, rows, columns), generator=torch.Generator().manual_seed(2)).float()
    return F.interpolate(colours, scale_factor=8, mode="nearest")


def run(state: dict[str, Tensor], x: Tensor, resize: str) -> Tensor:
    """The published computation on such a state dict: resize is what follows the first three groups."""

    def conv(name: str, x: Tensor) -> Tensor:
        return F.conv2d(x, state[f"{name}.w"], state[f"{name}.b"], padding="same")

    x = conv("blocks.input", x)
    for group in range(1, 5):
        for block in range(1, 3):
            name = f"blocks.group_{group}.block_{block}"
            skip = conv(f"{name}.id_path", x) if f"{name}.id_path.w" in state else x
            for step in range(1, 5):
                x = conv(f"{name}.res_path.conv_{step}", x.relu())
            x = skip + x / 8**2
        if group < 4:
            x = F.max_pool2d(x, 2) if resize == "halve" else F.interpolate(x, scale_factor=2, mode="nearest")
    return conv("blocks.output.conv", x.relu())


def built(converted: Converted) -> DVAE:
    model = build_tokenizer(converted.description).eval()
    model.load_state_dict({name.removeprefix("dvae."): value for name, value in converted.state.items()})
    assert isinstance(model, DVAE)
    return model


@torch.no_grad()
def test_dalle_encoder(tokenizer_files: ModuleType) -> None:
    converted = convert(tokenizer_files.encoder_weights())
    model, pixels_BCHW = built(converted), picture(4, 6)
    assert (converted.unexpected, model.decoder) == ([], None)
    logits_BVYX = run(tokenizer_files.encoder_weights(), map_pixels(pixels_BCHW), "halve")
    torch.testing.assert_close(model.encode(pixels_BCHW), logits_BVYX, rtol=1e-5, atol=1e-5)
    ids_BYX = model.tokens(pixels_BCHW)
    assert ids_BYX.shape == (2, 4, 6) and torch.equal(ids_BYX, logits_BVYX.argmax(1)) and ids_BYX.unique().numel() > 3


@torch.no_grad()
def test_dalle_pair(tokenizer_files: ModuleType) -> None:
    converted = convert(join_pair(tokenizer_files.encoder_weights(), tokenizer_files.decoder_weights()))
    model = built(converted)
    assert converted.unexpected == [] and model.spec.decoder_input == tokenizer_files.START
    ids_BYX = torch.randint(tokenizer_files.VOCABULARY, (2, 2, 3))
    one_hot_BVYX = F.one_hot(ids_BYX, tokenizer_files.VOCABULARY).permute(0, 3, 1, 2).float()
    expected_BSHW = run(tokenizer_files.decoder_weights(), one_hot_BVYX, "double")
    torch.testing.assert_close(model.decode_output(ids_BYX), expected_BSHW, rtol=1e-5, atol=1e-5)
    expected_BCHW = ((expected_BSHW[:, :3].sigmoid() - 0.1) / 0.8).clamp(0, 1)
    torch.testing.assert_close(model.decode(ids_BYX), expected_BCHW, rtol=1e-5, atol=1e-5)


def test_dalle_and_flava_names_mean_the_same(tokenizer_files: ModuleType) -> None:
    dalle, flava = (
        convert(tokenizer_files.encoder_weights()),
        convert(tokenizer_files.flava_names(tokenizer_files.encoder_weights())),
    )
    assert (dalle.layout, flava.layout) == ("DALL-E encoder", "transformers FLAVA codebook")
    assert dalle.description == flava.description and dalle.state.keys() == flava.state.keys()
    assert all(torch.equal(value, flava.state[name]) for name, value in dalle.state.items())


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "image_codebook."], ids=["codebook", "whole model"])
def test_encoder_agrees_with_transformers(tokenizer_files: ModuleType, prefix: str) -> None:
    from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

    config = FlavaImageCodebookConfig(
        hidden_size=tokenizer_files.HIDDEN, vocab_size=tokenizer_files.VOCABULARY, num_blocks_per_group=2
    )
    reference = FlavaImageCodebook(config).eval()
    reference.load_state_dict(tokenizer_files.flava_names(tokenizer_files.encoder_weights()), strict=True)
    others = {"flava.text_model.weight": torch.zeros(1)} if prefix else {}
    converted = convert({**others, **{f"{prefix}{name}": v for name, v in reference.state_dict().items()}})
    assert converted.dropped == list(others) and converted.unexpected == []
    model, pixels_BCHW = built(converted), picture(6, 4)
    logits_BVYX = reference(map_pixels(pixels_BCHW))
    torch.testing.assert_close(model.encode(pixels_BCHW), logits_BVYX, rtol=1e-5, atol=1e-5)
    assert logits_BVYX.std() > 0.1
    assert torch.equal(model.tokens(pixels_BCHW), reference.get_codebook_indices(map_pixels(pixels_BCHW)))


def test_decoder_alone_is_refused(tokenizer_files: ModuleType) -> None:
    with pytest.raises(DataError, match=r"decoder, which makes no tokens: name the folder with encoder\.pkl"):
        convert(tokenizer_files.decoder_weights())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("blocks.group_2.block_1.res_path.conv_3.b", None, r"dvae\.encoder\.groups\.1\.0\.residual\.5\.bias"),
        ("blocks.group_4.block_2.res_path.conv_4.w", torch.zeros(2, 2), r"group_4.*has the shape \[2, 2\]"),
        ("blocks.output.conv.w", None, "blocks.output.conv.w is missing"),
        ("blocks.input.w", torch.zeros(18, 3, 7, 7), "18 wide"),
        ("blocks.group_1.block_9.res_path.conv_1.w", torch.zeros(1), "blocks in a group are numbered"),
    ],
)
def test_damaged_files_are_refused_by_name(
    tokenizer_files: ModuleType, name: str, value: Tensor | None, message: str
) -> None:
    state = {**tokenizer_files.encoder_weights(), name: value}
    with pytest.raises(DataError, match=message):
        convert({key: tensor for key, tensor in state.items() if tensor is not None})


def test_unknown_names_are_reported(tokenizer_files: ModuleType) -> None:
    assert convert({**tokenizer_files.encoder_weights(), "blocks.extra.w": torch.zeros(1)}).unexpected == [
        "blocks.extra.w"
    ]
    with pytest.raises(DataError, match="not a BEiT, VLMo or image tokenizer"):
        recognise({"blocks.extra.w": torch.zeros(1)})
