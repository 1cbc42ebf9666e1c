"""The VQ-KD tokenizer against outputs of the reference implementation, and its file layout."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from vlbeit.errors import DataError, UsageError
from vlbeit.models.convert import convert, recognise
from vlbeit.models.convert.layout import Converted, Hints
from vlbeit.models.spec import EncoderSpec
from vlbeit.models.tokenizer_kinds import build_tokenizer
from vlbeit.models.vqkd import VQKD, VQKDSpec

GOLDEN = Path(__file__).parents[1] / "golden" / "beit"
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
HINTS = Hints(num_heads=2)


def golden() -> tuple[dict, dict, dict]:
    stem = GOLDEN / "beit2_vqkd"
    config = json.loads(stem.with_suffix(".json").read_text())
    return config, load_file(f"{stem}.weights.safetensors"), load_file(f"{stem}.io.safetensors")


def built(converted: Converted) -> VQKD:
    model = build_tokenizer(converted.description).eval()
    model.load_state_dict({name.removeprefix("vqkd."): value for name, value in converted.state.items()})
    assert isinstance(model, VQKD)
    return model


@torch.no_grad()
def test_golden() -> None:
    config, weights, tensors = golden()
    model = built(convert(weights, HINTS))
    ids_BYX = model.tokens(tensors["in.image_01"])
    assert ids_BYX.shape == (3, 4, 4)
    assert torch.equal(ids_BYX.flatten(1), tensors["out.tokens"])
    torch.testing.assert_close(model.decode(ids_BYX), tensors["out.reconstruction"], **TOLERANCE)
    # the commitment loss: how far the codes before the look-up are from those after it
    loss = F.mse_loss(model.codebook[ids_BYX.flatten(1)], model.encode(tensors["in.image_01"]))
    torch.testing.assert_close(loss, tensors["out.quantize_loss"], **TOLERANCE)
    assert model.spec.vocab_size == config["n_embed"] and model.spec.code_dim == config["code_dim"]
    assert model.spec.downsample == 16 and model.spec.teacher_dim == config["decoder_out_dim"]


@torch.no_grad()
def test_a_picture_stored_by_rows_keeps_its_rows() -> None:
    """Tokens of 2x3 patches: a file whose positions are not square needs the size of its pictures."""
    spec = replace(tiny(), encoder=replace(tiny().encoder, image_size=(16, 24)), decoder=None)
    model = VQKD(spec).eval()
    assert model.tokens(torch.rand(2, 3, 16, 24)).shape == (2, 2, 3)


def test_what_serves_training_is_dropped_and_named() -> None:
    weights = golden()[1]
    extra = {name: torch.zeros(2) for name in ("teacher_model.proj", "scaling_layer.shift", "extra.weight")}
    converted = convert({**weights, **extra}, HINTS)
    assert converted.unexpected == ["extra.weight"]
    averages = ("cluster_size", "embedding.cluster_size", "embedding.embed_avg", "embedding.initted")
    assert set(converted.dropped) == {"teacher_model.proj", "scaling_layer.shift", *(f"quantize.{n}" for n in averages)}
    taken = {theirs for names in converted.sources.values() for theirs in names}
    assert taken | set(converted.dropped) == {*weights, "teacher_model.proj", "scaling_layer.shift"}


def test_heads_are_asked_for() -> None:
    weights = golden()[1]
    with pytest.raises(UsageError, match=r"no published VQ-KD encoder is 48 wide; say it: .*num_heads="):
        convert(weights)
    with pytest.raises(UsageError, match="num_heads=5 does not divide the width 48"):
        convert(weights, Hints(num_heads=5))


@pytest.mark.parametrize(("width", "heads"), [(768, 12), (1024, 16)])
def test_heads_of_published_widths_are_known(tokenizer_files: ModuleType, width: int, heads: int) -> None:
    published = VQKDSpec(
        EncoderSpec(width, 1, heads, layer_scale=0.0, positions="absolute", mlp_ratio=0.125),
        EncoderSpec(
            width, 1, heads, patch_size=1, image_size=(14, 14), layer_scale=0.0, positions="absolute", mlp_ratio=0.125
        ),
    )
    with torch.device("meta"):
        state = tokenizer_files.official(VQKD(published))
    assert VQKDSpec.from_dict(convert(state).description["vqkd"]) == published


def test_decoder_is_optional() -> None:
    weights = {name: value for name, value in golden()[1].items() if not name.startswith("deco")}
    model = built(convert(weights, HINTS))
    assert torch.equal(model.tokens(golden()[2]["in.image_01"]).flatten(1), golden()[2]["out.tokens"])
    with pytest.raises(ValueError, match="without its decoder"):
        model.decode(torch.zeros(1, 4, 4, dtype=torch.long))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.pos_embed": None}, "encoder.pos_embed is missing"),
        ({"encoder.blocks.1.norm1.weight": None}, "encoder.blocks.1.norm1.weight"),
        ({"encode_task_layer.2.bias": torch.zeros(7)}, r"encode_task_layer.2.bias has the shape \[7\]"),
        ({"quantize.embedding.initted": torch.zeros(1)}, "was never filled"),
        ({"encoder.blocks.0.mlp.fc1.weight": torch.zeros(3)}, "2 dimensions are needed"),
        ({"encoder.blocks.7.norm1.weight": torch.zeros(48)}, "blocks of the encoder are numbered"),
    ],
)
def test_damaged_files_are_refused_by_name(change: dict, message: str) -> None:
    weights = {**golden()[1], **change}
    with pytest.raises(DataError, match=message):
        convert({name: value for name, value in weights.items() if value is not None}, HINTS)


def test_positions_that_are_no_square() -> None:
    weights = golden()[1]
    weights["encoder.pos_embed"] = torch.zeros(1, 7, 48)
    with pytest.raises(UsageError, match=r"VQ-KD file has 6 patches, no square.* --image-size HEIGHTxWIDTH"):
        convert(weights, HINTS)
    with pytest.raises(UsageError, match=r"image_size=\(33, 48\) is not a multiple of the file's patches of 16"):
        convert(weights, replace(HINTS, image_size=(33, 48)))
    assert convert(weights | {"decoder.pos_embed": torch.zeros(1, 7, 48)}, replace(HINTS, image_size=(32, 48)))


def test_normalisation_is_that_of_training() -> None:
    """[-1, 1] as in unilm's beit2/modeling_vqkd.py, ImageNet's only where the caller says so."""
    weights = golden()[1]
    model = built(convert(weights, HINTS))
    pixels_BCHW = torch.rand(1, 3, 64, 64)
    doubled = model.encoder(model.encoder.embed_image(2 * pixels_BCHW - 1)).x_BLD[:, 1:]
    torch.testing.assert_close(model.encode(pixels_BCHW), F.normalize(model.to_code(doubled), dim=-1))
    assert convert(weights, replace(HINTS, normalize="imagenet")).description["vqkd"]["mean"] == (0.485, 0.456, 0.406)


def test_other_sizes_are_refused() -> None:
    with pytest.raises(UsageError, match="makes 2x2 tokens of 16x16 pixels, 3x2 of 24x16 are needed"):
        VQKD(tiny()).tokens(torch.rand(1, 3, 24, 16))


def test_spec_survives_json() -> None:
    description = json.loads(json.dumps(VQKD(tiny()).describe()))
    assert VQKD.from_description(description).spec == tiny()
    assert VQKDSpec.from_dict(asdict(replace(tiny(), decoder=None))).decoder is None


def test_tokens_do_not_hang_on_autocast_of_the_look_up() -> None:
    """bfloat16 in the blocks, full precision from the projection on, as published."""
    model = VQKD(tiny()).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert model.encode(torch.rand(1, 3, 16, 16)).dtype == torch.float32


def test_layout_is_recognised() -> None:
    assert recognise(golden()[1]).name == "unilm VQ-KD"


def tiny() -> VQKDSpec:
    encoder = EncoderSpec(8, 1, 2, patch_size=8, image_size=(16, 16), layer_scale=0.0, positions="absolute")
    decoder = replace(encoder, patch_size=1, image_size=(2, 2))
    return VQKDSpec(encoder, decoder, vocab_size=16, code_dim=4, teacher_dim=6)
