"""transformers' Beit models in and out: the same outputs, nothing lost, nothing missing or unexpected there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from transformers import BeitConfig, BeitForImageClassification, BeitForMaskedImageModeling

from vlbeit.data.transforms import ClassificationEval
from vlbeit.errors import DataError, UsageError
from vlbeit.models.convert import convert, recognise
from vlbeit.models.convert.layout import Hints
from vlbeit.models.convert.transformers import matches, to_transformers
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.spec import EncoderSpec

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "image_size": 64,
    "layer_norm_eps": 1e-6,
    "vocab_size": 11,
    "num_labels": 5,
    "use_relative_position_bias": True,
}
SHARED = {"use_relative_position_bias": False, "use_shared_relative_position_bias": True}
ABSOLUTE = {"use_relative_position_bias": False, "use_absolute_position_embeddings": True}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "pooled": ("BeitModel", {}),
    "normalised": ("BeitModel", {"use_mean_pooling": False}),
    "classifier": ("BeitForImageClassification", {}),
    "classifier on CLS": ("BeitForImageClassification", {"use_mean_pooling": False}),
    "absolute": ("BeitForImageClassification", {**ABSOLUTE, "layer_scale_init_value": 0.0}),
    "mim": ("BeitForMaskedImageModeling", {**SHARED, "use_mask_token": True}),
    "mim with a table per layer": ("BeitForMaskedImageModeling", {"use_mask_token": True, "patch_size": 8}),
}


def made(name: str = "BeitForImageClassification", **settings: Any) -> torch.nn.Module:
    return getattr(transformers, name)(BeitConfig(**{**SMALL, **settings}))


def image(size: int = 64) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(3))


def compare(theirs: Any, model: Any, x: torch.Tensor) -> None:
    """Tokens, and what the head gives."""
    with torch.inference_mode():
        if isinstance(theirs, BeitForMaskedImageModeling):
            patches = (x.shape[-1] // theirs.config.patch_size) ** 2
            mask = torch.rand(len(x), patches, generator=torch.Generator().manual_seed(4)) < 0.4
            want = theirs(x, bool_masked_pos=mask).logits
            got = model.heads["masked_patch"](model.tokens(x, mask)[:, 1:])
        elif isinstance(theirs, BeitForImageClassification):
            want, got = theirs(x).logits, model(x)
        else:
            want, got = theirs(x).last_hidden_state, model.tokens(x)
            if theirs.config.use_mean_pooling:
                torch.testing.assert_close(model(x), theirs(x).pooler_output, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def loaded(name: str, folder: Path) -> Any:
    model, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


@pytest.mark.parametrize("names", ["of the hub", "inside"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_in_and_out(variant: str, names: str, tmp_path: Path, shaken: Any, ours: Any) -> None:
    name, settings = VARIANTS[variant]
    theirs = shaken(made(name, **settings))
    state = theirs.state_dict()
    if names == "of the hub":
        theirs.save_pretrained(tmp_path / "theirs")
        state = load_file(tmp_path / "theirs/model.safetensors")
    converted = convert(state, Hints(num_heads=4))
    assert converted.layout == "transformers" and not converted.unexpected and not converted.missing
    compare(theirs, ours(converted), image())
    to_transformers(converted.description, converted.state, tmp_path / "ours")
    again = loaded(name, tmp_path / "ours")
    assert again.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in again.state_dict().items())
    assert json.loads((tmp_path / "ours/config.json").read_text())["architectures"] == [name]
    if names == "of the hub":
        assert load_file(tmp_path / "ours/model.safetensors").keys() == state.keys()


@pytest.mark.parametrize("size", ["base", "large"])
def test_published_sizes(size: str, tmp_path: Path, blank: Any, shaken: Any, ours: Any) -> None:
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    settings = {"layer_norm_eps": 1e-6, "use_relative_position_bias": True, **(large if size == "large" else {})}
    with blank():
        theirs = shaken(BeitForImageClassification(BeitConfig(**settings)))
    converted = convert(theirs.state_dict())
    compare(theirs, ours(converted), image(224)[:1])
    to_transformers(converted.description, converted.state, tmp_path)
    again = loaded("BeitForImageClassification", tmp_path)
    with torch.inference_mode():
        torch.testing.assert_close(again(image(224)[:1]).logits, theirs(image(224)[:1]).logits)


def test_image_part_of_a_vl_run_goes_out(tmp_path: Path, shaken: Any) -> None:
    spec = EncoderSpec(32, 3, 4, experts=("image", "text"), fused_layers=1, vocab_size=50, image_size=(64, 64))
    encoder = shaken(MoMEEncoder(spec))
    state = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    to_transformers({"encoder": spec.to_dict(), "heads": {}}, state, tmp_path)
    theirs = loaded("BeitModel", tmp_path)
    with torch.inference_mode():
        want = encoder(encoder.embed_image(image())).x_BLD
        torch.testing.assert_close(theirs(image()).last_hidden_state, want, atol=1e-5, rtol=1e-5)


def test_classes_and_preparation_go_out(tmp_path: Path) -> None:
    converted = convert(made(image_size=64).state_dict())
    names = ["cat", "dog", "eel", "fox", "gnu"]
    to_transformers(converted.description, converted.state, tmp_path, classes=names, normalize="imagenet")
    assert list(loaded("BeitForImageClassification", tmp_path).config.id2label.values()) == names
    noise = torch.randint(0, 255, (12, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    picture = Image.fromarray(noise.numpy()).resize((160, 120), Image.Resampling.BICUBIC)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    theirs = processor(picture, return_tensors="pt")["pixel_values"][0]
    own = ClassificationEval((64, 64), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))(picture)
    assert theirs.shape == own.shape and (theirs - own).abs().mean() < 0.05


def test_default_precision_of_the_norms_is_near(shaken: Any, ours: Any) -> None:
    theirs = shaken(made(layer_norm_eps=1e-12))  # what the hub's configs say; the originals were trained with 1e-6
    with torch.inference_mode():
        got = ours(convert(theirs.state_dict()))(image())
        torch.testing.assert_close(got, theirs(image()).logits, atol=1e-3, rtol=1e-3)


def test_pictures_that_are_not_square_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="square"):
        convert(made(image_size=[32, 64]).state_dict(), Hints(image_size=(32, 64)))
    spec = EncoderSpec(32, 2, 4, image_size=(32, 64))
    with pytest.raises(UsageError, match="square"):
        to_transformers({"encoder": spec.to_dict()}, {}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_to_give_is_refused(tmp_path: Path) -> None:
    text = EncoderSpec(32, 2, 4, experts=("text",), vocab_size=50, image_size=None).to_dict()
    for description in ({"dvae": {}}, {"encoder": text}):
        with pytest.raises(UsageError):
            to_transformers(description, {}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("taken", "missing"),
    [
        ("output.dense.bias", "encoder.blocks.1.experts.image.mlp.fc2.bias"),
        ("attention.attention.key.weight", "encoder.blocks.1.attn.qkv.weight"),
    ],
)
def test_what_is_missing_is_named(taken: str, missing: str, tmp_path: Path) -> None:
    made().save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state[f"beit.encoder.layer.1.{taken}"]
    assert convert(state).missing == [missing]


def test_two_final_norms_are_refused() -> None:
    state = made("BeitForMaskedImageModeling", use_mean_pooling=False).state_dict()
    with pytest.raises(DataError, match="layernorm"):
        convert(state)


def test_told_apart_from_other_models() -> None:
    assert recognise(made("BeitModel").state_dict()).name == "transformers"
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    assert not matches(transformers.ViTModel(transformers.ViTConfig(**small)).state_dict())
    assert not matches(transformers.Dinov2Model(transformers.Dinov2Config(**small)).state_dict())
    assert not matches(load_file("tests/golden/beit/beit_cls_relpos.weights.safetensors"))


def test_index_buffers_of_old_files_are_left_out() -> None:
    state: dict[str, Any] = made("BeitModel").state_dict()
    state["encoder.layer.0.attention.attention.relative_position_bias.relative_position_index"] = torch.zeros(5, 5)
    assert not convert(state).unexpected
