"""The image tower with timm's methods, against timm's own BEiT."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm.data
import timm.optim
import torch
from timm.layers import resize_rel_pos_bias_table
from timm.models import group_parameters

from vlbeit.models.checkpoint import save_checkpoint
from vlbeit.models.convert import Hints, convert
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.groups import beit_decays, layer_id
from vlbeit.models.heads import Heads
from vlbeit.models.image_tower import ImageTower
from vlbeit.models.spec import EncoderSpec

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 2, "patch_size": 8, "image_size": (32, 48)}
JOINT = {"experts": ("image", "text"), "fused_layers": 1, "vocab_size": 9, "text_positions": 8, "mask_token": True}


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """Weights away from their initial values."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module.eval()


def tower(num_classes: int = 0, global_pool: str = "avg", **parts) -> ImageTower:
    torch.manual_seed(0)
    return shaken(ImageTower(MoMEEncoder(EncoderSpec(**{**SMALL, **parts})), num_classes, global_pool))


@pytest.fixture(params=["avg", "token"])
def pair(request: pytest.FixtureRequest) -> tuple[ImageTower, torch.nn.Module]:
    """Ours and timm's with the same weights; pooling by the patches has its norm after it, as in timm."""
    pool = request.param
    sizes = {"img_size": (32, 48), "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 7}
    torch.manual_seed(0)
    theirs = shaken(timm.create_model("beit_base_patch16_224", **sizes, global_pool=pool))
    ours = tower(7, pool, final_norm=pool == "token")
    names = {"heads.classification.fc.": "head.", "heads.classification.fc_norm.": "fc_norm."}
    state = convert(theirs.state_dict(), Hints(image_size=(32, 48))).state
    for old, new in names.items():
        state = {name.replace(old, new): value for name, value in state.items()}
    ours.load_state_dict(state)
    return ours, theirs


@torch.no_grad()
def test_features_and_logits_are_those_of_timm(pair: tuple[ImageTower, torch.nn.Module]) -> None:
    ours, theirs = pair
    image = torch.randn(2, 3, 32, 48)
    torch.testing.assert_close(ours(image), theirs(image))
    features = ours.forward_features(image)
    assert features.shape == (2, 1 + 4 * 6, 32)
    torch.testing.assert_close(features, theirs.forward_features(image))
    torch.testing.assert_close(ours.forward_head(features, True), theirs.forward_head(features, pre_logits=True))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"indices": 2, "norm": True},
        {"indices": [-1, 0], "output_fmt": "NLC"},
        {"indices": [1], "stop_early": True},
        {"indices": [0], "return_prefix_tokens": True},
        {"indices": [1, 2], "intermediates_only": True},
    ],
)
@torch.no_grad()
def test_intermediates_are_those_of_timm(pair: tuple[ImageTower, torch.nn.Module], options: dict) -> None:
    image = torch.randn(2, 3, 32, 48)
    ours, theirs = (model.forward_intermediates(image, **options) for model in pair)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("positions", ["per_layer", "shared", "absolute"])
def test_timm_optimizers_see_the_layers_and_decays_of_our_groups(positions: str) -> None:
    model = tower(5, positions=positions, mask_token=True, final_norm=False)
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert layers == {name: layer_id(name, 3, positions == "shared") for name, _ in model.named_parameters()}
    optimizer = timm.optim.create_optimizer_v2(model, lr=1.0, weight_decay=0.1, layer_decay=0.65)
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        group = of[id(parameter)]
        assert group["lr_scale"] == pytest.approx(0.65 ** (4 - layers[name])), name
        assert group["weight_decay"] == (0.1 if beit_decays(name, parameter) else 0.0), name


def test_data_config() -> None:
    model = tower()
    found = timm.data.resolve_data_config(model=model)
    assert found["input_size"] == (3, 32, 48) and found["mean"] == found["std"] == (0.5, 0.5, 0.5)
    assert found["interpolation"] == "bicubic" and found["crop_pct"] == 0.875
    model.set_input_size(384)
    assert timm.data.resolve_data_config(model=model)["crop_pct"] == 1.0


def test_classifier_is_replaced() -> None:
    model = tower()
    image = torch.randn(2, 3, 32, 48)
    assert (model.num_classes, model.num_features, model.head_hidden_size) == (0, 32, 32)
    pooled = model(image)
    torch.testing.assert_close(pooled, model.forward_features(image)[:, 1:].mean(1))
    model.reset_classifier(6, "token")
    assert model(image).shape == (2, 6) and model.get_classifier() is model.head and model.num_classes == 6
    torch.testing.assert_close(
        model.forward_head(model.forward_features(image), True), model.forward_features(image)[:, 0]
    )
    model.reset_classifier(0, "")
    assert torch.equal(model(image), model.forward_features(image))
    with pytest.raises(ValueError, match="global_pool='max' is not"):
        model.reset_classifier(2, "max")


def test_another_input_size() -> None:
    model = tower(4).double()
    model.encoder.cls_token.requires_grad_(False)
    table, patches = (
        p.detach().clone() for p in (model.encoder.rel_pos[1].image, model.encoder.patch_embed.proj.weight)
    )
    model.set_input_size((40, 64))
    expected = resize_rel_pos_bias_table(table, (5, 8), (9 * 15 + 3, 2), old_window_size=(4, 6))
    torch.testing.assert_close(model.encoder.rel_pos[1].image.detach(), expected)
    assert torch.equal(model.encoder.patch_embed.proj.weight, patches)
    assert not model.encoder.training and not model.encoder.cls_token.requires_grad
    assert model(torch.randn(1, 3, 40, 64).double()).shape == (1, 4)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for on in (False, True):
        model = tower(3).train()
        model.set_grad_checkpointing(on)
        model(torch.ones(2, 3, 32, 48)).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def save(folder: Path, encoder: MoMEEncoder, heads: Heads, config: dict) -> None:
    state = {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
    state |= {f"heads.{k}": v for k, v in heads.state_dict().items()}
    save_checkpoint(folder, state, {"encoder": encoder.spec.to_dict(), "heads": heads.specs}, config, {})


@torch.no_grad()
def test_image_tower_of_a_joint_run(tmp_path: Path) -> None:
    """Its image pass is kept, the rest is left out; every parameter has a use."""
    encoder = shaken(MoMEEncoder(EncoderSpec(**SMALL, **JOINT)))
    save(tmp_path, encoder, Heads({}), {"data": {"normalize": "imagenet"}})
    model = ImageTower.from_run(tmp_path)
    image = torch.randn(2, 3, 32, 48)
    torch.testing.assert_close(model.forward_features(image), encoder(encoder.embed_image(image)).x_BLD)
    assert model.default_cfg["mean"] == (0.485, 0.456, 0.406)
    with torch.enable_grad():
        model.train()(image).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@torch.no_grad()
def test_image_tower_of_a_classification_run(tmp_path: Path) -> None:
    encoder = shaken(MoMEEncoder(EncoderSpec(**SMALL, final_norm=False)))
    heads = shaken(Heads({"classification": {"kind": "classification", "dim": 32, "num_classes": 5}}))
    save(tmp_path, encoder, heads, {})
    model = ImageTower.from_run(tmp_path)
    image = torch.randn(2, 3, 32, 48)
    expected = heads["classification"](encoder(encoder.embed_image(image)).x_BLD)
    torch.testing.assert_close(model(image), expected)
    assert model.num_classes == 5


def test_a_text_encoder_is_no_image_tower() -> None:
    encoder = MoMEEncoder(
        EncoderSpec(**{**SMALL, **JOINT, "image_size": None, "experts": ("text",), "mask_token": False})
    )
    with pytest.raises(ValueError, match="no image pass"):
        ImageTower(encoder)
