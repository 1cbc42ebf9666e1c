"""timm's BEiT in and out: the same outputs, nothing lost, nothing made up."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models.beit import checkpoint_filter_fn

from vlbeit.errors import DataError, UsageError
from vlbeit.models.convert import convert, recognise
from vlbeit.models.convert.layout import Hints
from vlbeit.models.convert.timm import matches, timm_arguments, to_timm
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.image_tower import ImageTower
from vlbeit.models.spec import EncoderSpec

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 4, "img_size": 64}
VARIANTS: dict[str, dict[str, Any]] = {
    "classifier": {"num_classes": 5},
    "classifier on CLS": {"num_classes": 5, "global_pool": "token"},
    "headless": {"num_classes": 0},
    "normalised tokens": {"num_classes": 0, "use_fc_norm": False},
    "one table": {"num_classes": 5, "use_rel_pos_bias": False, "use_shared_rel_pos_bias": True},
    "absolute": {"num_classes": 5, "use_rel_pos_bias": False, "use_abs_pos_emb": True},
    "no scales": {"num_classes": 5, "init_values": None},
    "wide": {"num_classes": 5, "img_size": (32, 64), "mlp_ratio": 2.5},
    "small patches": {"num_classes": 5, "patch_size": 8},
}


def made(name: str = "beit_base_patch16_224", **arguments: Any) -> torch.nn.Module:
    return timm.create_model(name, **{**SMALL, **arguments})


def image(size: int | tuple[int, int] = 64) -> torch.Tensor:
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(3))


def hints(variant: str) -> Hints:
    return Hints(num_heads=4, image_size=(32, 64) if variant == "wide" else None)


@pytest.mark.parametrize("variant", VARIANTS)
def test_in_and_out_give_the_same_outputs_and_the_same_bits(variant: str, shaken: Any, ours: Any) -> None:
    theirs = shaken(made(**VARIANTS[variant]))
    x = image(VARIANTS[variant].get("img_size", 64))
    converted = convert(theirs.state_dict(), hints(variant))
    model = ours(converted)
    with torch.inference_mode():
        features = theirs.forward_features(x)
        torch.testing.assert_close(model.tokens(x), features, atol=1e-5, rtol=1e-5)
        if "classification" in model.heads:
            torch.testing.assert_close(model(x), theirs(x), atol=1e-5, rtol=1e-5)
    assert converted.layout == ("unilm BEiT" if variant == "absolute" else "timm")
    assert not converted.unexpected and not converted.missing
    back = to_timm(converted.description, converted.state)
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(value, back[name]) for name, value in theirs.state_dict().items())
    name, arguments = timm_arguments(converted.description)
    again = timm.create_model(name, **arguments)
    again.load_state_dict(back, strict=True)
    with torch.inference_mode():
        assert torch.equal(again.eval()(x), theirs(x))


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "beitv2_large_patch16_224"])
def test_published_sizes(name: str, blank: Any, shaken: Any, ours: Any) -> None:
    with blank():
        theirs, again = (timm.create_model(name, num_classes=7) for _ in range(2))
    shaken(theirs)
    converted = convert(theirs.state_dict())
    x = image(224)[:1]
    with torch.inference_mode():
        torch.testing.assert_close(ours(converted)(x), theirs(x), atol=1e-5, rtol=1e-5)
    normalize = "imagenet" if name.startswith("beitv2") else "half"
    assert timm_arguments(converted.description, normalize) == (name, {"num_classes": 7})
    again.load_state_dict(to_timm(converted.description, converted.state), strict=True)
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in again.state_dict().items())


@pytest.mark.parametrize("size", ["base", "large"])
def test_resize_to_384_is_that_of_timm(size: str, blank: Any, shaken: Any) -> None:
    sizes = {"depth": 3, "num_classes": 7}  # a table per block: the twelfth is resized as the third
    with blank():
        source = shaken(timm.create_model(f"beit_{size}_patch16_224", **sizes))
        theirs = timm.create_model(f"beit_{size}_patch16_384", **sizes).eval()
    theirs.load_state_dict(checkpoint_filter_fn(source.state_dict(), theirs))
    converted = convert(source.state_dict())
    tower = ImageTower(MoMEEncoder(EncoderSpec.from_dict(converted.description["encoder"])), 7).eval()
    renamed = {"heads.classification.fc.": "head.", "heads.classification.fc_norm.": "fc_norm."}
    state = converted.state
    for ours, timms in renamed.items():
        state = {name.replace(ours, timms): value for name, value in state.items()}
    tower.load_state_dict(state)
    tower.set_input_size(384)
    x = image(384)[:1]
    with torch.inference_mode():
        torch.testing.assert_close(tower(x), theirs(x), atol=1e-5, rtol=1e-5)


def test_trained_by_us_goes_out_at_another_size(shaken: Any) -> None:
    spec = EncoderSpec(64, 2, 4, image_size=(48, 96), final_norm=False, positions="shared")
    tower = shaken(ImageTower(MoMEEncoder(spec), 3))
    state = {f"heads.classification.{n.replace('head', 'fc')}": v for n, v in tower.state_dict().items() if "head" in n}
    state |= {f"heads.classification.{n}": v for n, v in tower.state_dict().items() if n.startswith("fc_norm")}
    state |= {n: v for n, v in tower.state_dict().items() if n.startswith("encoder")}
    heads = {"classification": {"kind": "classification", "dim": 64, "num_classes": 3}}
    description = {"encoder": spec.to_dict(), "heads": heads}
    name, arguments = timm_arguments(description)
    theirs = timm.create_model(name, **arguments).eval()
    theirs.load_state_dict(to_timm(description, state), strict=True)
    x = image((48, 96))
    with torch.inference_mode():
        torch.testing.assert_close(theirs(x), tower(x), atol=1e-5, rtol=1e-5)


def test_image_part_of_a_vl_run_goes_out(shaken: Any) -> None:
    spec = EncoderSpec(32, 3, 4, experts=("image", "text"), fused_layers=1, vocab_size=50, image_size=(64, 64))
    encoder = shaken(MoMEEncoder(spec))
    state = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    description = {"encoder": spec.to_dict(), "heads": {"mlm": {"kind": "mlm", "dim": 32, "vocab_size": 50}}}
    name, arguments = timm_arguments(description)
    theirs = timm.create_model(name, **arguments).eval()
    theirs.load_state_dict(to_timm(description, state), strict=True)
    x = image()
    with torch.inference_mode():
        want = encoder(encoder.embed_image(x)).x_BLD
        torch.testing.assert_close(theirs.forward_features(x), want, atol=1e-5, rtol=1e-5)


def test_backbone_without_any_norm_keeps_its_features(shaken: Any) -> None:
    spec = EncoderSpec(32, 3, 4, image_size=(64, 64), final_norm=False)
    encoder = shaken(MoMEEncoder(spec))
    description = {"encoder": spec.to_dict(), "heads": {}}
    state = to_timm(description, {f"encoder.{name}": value for name, value in encoder.state_dict().items()})
    assert torch.equal(state["fc_norm.weight"], torch.ones(32)) and not state["fc_norm.bias"].any()
    name, arguments = timm_arguments(description)
    theirs = timm.create_model(name, **arguments).eval()
    theirs.load_state_dict(state, strict=True)
    with torch.inference_mode():
        want = encoder(encoder.embed_image(image())).x_BLD
        torch.testing.assert_close(theirs.forward_features(image()), want, atol=1e-5, rtol=1e-5)


def test_nothing_to_give_is_refused() -> None:
    text = EncoderSpec(32, 2, 4, experts=("text",), vocab_size=50, image_size=None).to_dict()
    foreign = EncoderSpec(32, 2, 4, image_tower="timm:resnet18", towers={"image": {"grid": [2, 2]}}).to_dict()
    for description in ({"dvae": {}}, {"encoder": text}, {"encoder": foreign}):
        with pytest.raises(UsageError):
            to_timm(description, {})


def test_absolute_positions_ask_for_the_heads() -> None:
    state = made(**VARIANTS["absolute"]).state_dict()
    with pytest.raises(UsageError, match="num_heads"):
        convert(state)
    assert convert(state, Hints(num_heads=4)).description["encoder"]["num_heads"] == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update({"blocks.1.norm1.weight": torch.ones(3)}), "blocks.1.norm1.weight has shape"),
        (lambda s: s.update({"pos_embed": torch.zeros(1, 17, 32)}), "both absolute"),
        (lambda s: [s.pop(n) for n in list(s) if "table" in n], "no positions of either kind"),
        (lambda s: s.update({"rel_pos_bias.relative_position_bias_table": torch.zeros(52, 4)}), "table per block"),
    ],
)
def test_what_does_not_hold_together_is_refused(change: Any, message: str) -> None:
    state = made(num_classes=5).state_dict()
    change(state)
    with pytest.raises(DataError, match=message):
        convert(state)


def test_what_is_missing_is_named() -> None:
    state = made(num_classes=5).state_dict()
    del state["blocks.1.mlp.fc2.bias"]
    assert convert(state).missing == ["encoder.blocks.1.experts.image.mlp.fc2.bias"]


def test_size_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="image_size"):
        convert(made().state_dict(), Hints(image_size=(96, 96)))
    with pytest.raises(UsageError, match="image_size="):
        convert(made(img_size=(32, 64)).state_dict())


def test_unknown_names_are_unexpected() -> None:
    state = made(num_classes=5).state_dict() | {"blocks.0.mlp.norm.weight": torch.ones(128), "ema": torch.ones(1)}
    assert sorted(convert(state).unexpected) == ["blocks.0.mlp.norm.weight", "ema"]


def test_told_apart_from_unilm_and_other_transformers() -> None:
    state = made(num_classes=5).state_dict()
    index = torch.zeros(17, 17, dtype=torch.long)
    assert matches(state) and recognise(state).name == "timm"
    for name in ("blocks.0.attn.relative_position_index", "mask_token", "lm_head.weight"):
        assert not matches({**state, name: index}), f"{name}: only unilm has that"
    assert not matches({f"backbone.{name}": value for name, value in state.items()})
    assert not matches(timm.create_model("vit_tiny_patch16_224", depth=1).state_dict())
    assert not matches(load_file("tests/golden/beit/beit_cls_relpos.weights.safetensors"))
    assert not matches(load_file("tests/golden/beit/beit_mim_shared_relpos.weights.safetensors"))
    assert not matches(load_file("tests/golden/vlmo/vlmo_rel_vqa.weights.safetensors"))
