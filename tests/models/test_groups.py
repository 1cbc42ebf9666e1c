"""Which parameters decay and how fast each learns."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay

from vlbeit.config import OptimConfig
from vlbeit.models.convert import convert
from vlbeit.models.convert.layout import Hints
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.groups import beit_decays, layer_id, param_groups, vlmo_decays
from vlbeit.models.heads import Heads
from vlbeit.models.presets import PRESETS
from vlbeit.models.spec import EncoderSpec


class Tower(torch.nn.Module):
    def __init__(self, **parts) -> None:
        super().__init__()
        spec = EncoderSpec(32, 3, 2, patch_size=8, image_size=(32, 32), experts=("image", "text"), fused_layers=1,
                           vocab_size=9, text_positions=8, mask_token=True, **parts)  # fmt: skip
        self.encoder = MoMEEncoder(spec)
        self.heads = Heads(
            {
                "answer": {"kind": "vqa", "dim": 32, "num_answers": 3},
                "mlm": {"kind": "mlm", "dim": 32, "vocab_size": 9},
                "contrast": {"kind": "contrast", "dim": 32},
            }
        )


def decayed(rule) -> set[str]:
    return {name for name, p in Tower().named_parameters() if rule(name, p)}


def test_beit_rule() -> None:
    names = decayed(beit_decays)
    assert {"encoder.mask_token", "encoder.rel_pos.0.image", "encoder.blocks.0.attn.qkv.weight"} <= names
    for name in ("cls_token", "blocks.0.gamma_1", "blocks.0.attn.q_bias", "blocks.0.norm1.weight", "norm.weight"):
        assert f"encoder.{name}" not in names


def test_vlmo_rule() -> None:
    """As its groups in the golden trajectories: tables do not decay, the norms of the experts do."""
    names = decayed(vlmo_decays)
    kept = ("blocks.0.gamma_1", "cls_token", "blocks.0.experts.text.norm.weight", "blocks.2.experts.fused.norm.weight")
    assert {f"encoder.{name}" for name in kept} <= names
    assert {"heads.answer.1.weight", "heads.contrast.logit_scale"} <= names
    free = ("rel_pos.0.image", "rel_pos.0.text", "rel_pos.0.cross", "blocks.0.norm1.weight", "norm.weight",
            "text_embed.norm.weight", "blocks.0.attn.q_bias", "blocks.0.experts.image.norm.bias")  # fmt: skip
    assert not names & {f"encoder.{name}" for name in free}
    assert not names & {"heads.mlm.norm.weight", "heads.mlm.decoder.bias"}


def test_layers() -> None:
    depth = 3
    first = ("cls_token", "mask_token", "patch_embed.proj.weight", "text_embed.norm.weight", "type_embed.weight")
    assert {layer_id(f"encoder.{name}", depth, False) for name in first} == {0}
    assert layer_id("encoder.blocks.2.attn.q_bias", depth, False) == 3
    assert layer_id("encoder.rel_pos.1.image", depth, False) == 2
    assert layer_id("encoder.rel_pos.0.image", depth, True) == 4, "one table for all layers belongs to none"
    assert {layer_id(name, depth, False) for name in ("encoder.norm.bias", "heads.answer.0.weight")} == {4}


def test_every_trainable_parameter_once() -> None:
    tower = Tower()
    tower.encoder.cls_token.requires_grad_(False)
    optim = OptimConfig(layer_decay=0.5, head_lr_scale=20.0, weight_decay=0.1)
    groups = param_groups(tower, optim, vlmo_decays, scaled_head="answer")
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, p in tower.named_parameters() if p.requires_grad)
    scale = {name: group["lr_scale"] for group in groups for name in group["names"]}
    assert scale["heads.answer.0.weight"] == 20 and scale["heads.mlm.dense.weight"] == 1
    assert scale["encoder.blocks.0.attn.qkv.weight"] == pytest.approx(0.5**3)
    assert {group["weight_decay"] for group in groups} == {0.0, 0.1}


def test_several_heads_at_one_rate() -> None:
    groups = param_groups(Tower(), OptimConfig(head_lr_scale=20.0), vlmo_decays, scaled_head=("answer", "mlm"))
    fast = {name.split(".")[1] for group in groups if group["lr_scale"] == 20 for name in group["names"]}
    slow = {name.split(".")[1] for group in groups if group["lr_scale"] == 1 for name in group["names"]}
    assert fast == {"answer", "mlm"} and "contrast" in slow and not fast & slow


class Classifier(torch.nn.Module):
    def __init__(self, depth: int, positions: str = "per_layer") -> None:
        super().__init__()
        spec = EncoderSpec(
            32, depth, 2, patch_size=16, image_size=(32, 32), positions=positions, layer_scale=0.1, final_norm=False
        )
        self.encoder = MoMEEncoder(spec)
        self.heads = Heads({"classification": {"kind": "classification", "dim": 32, "num_classes": 5}})


def settings(objective: torch.nn.Module, optim: OptimConfig) -> dict[str, tuple[float, float]]:
    """Name of a parameter -> (lr_scale, weight_decay)."""
    groups = param_groups(objective, optim, beit_decays, scaled_head="classification")
    return {name: (group["lr_scale"], group["weight_decay"]) for group in groups for name in group["names"]}


def timm_settings(name: str, optim: OptimConfig, **arguments) -> dict[str, tuple[float, float]]:
    """Our name of a parameter -> what timm's layer decay gives to the same one of its model."""
    model = timm.create_model(name, embed_dim=32, num_heads=2, img_size=32, num_classes=5, **arguments)
    groups = param_groups_layer_decay(
        model, optim.weight_decay, no_weight_decay_list=model.no_weight_decay(), layer_decay=optim.layer_decay
    )
    theirs = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    named = list(model.named_parameters())
    # what becomes of a tensor full of one number tells its name here
    marked = {theirs_name: torch.full_like(p, float(i)) for i, (theirs_name, p) in enumerate(named)}
    converted = convert(marked, Hints(2, (32, 32))).state
    assert len({int(value.flatten()[0]) for value in converted.values()}) == len(named)
    return {ours: theirs[id(named[int(value.flatten()[0])][1])] for ours, value in converted.items()}


@pytest.mark.parametrize(
    ("name", "decay"),
    [
        ("beit_base_patch16_224", 0.65),
        ("beit_large_patch16_224", 0.75),
        ("beitv2_base_patch16_224", 0.6),
        ("beitv2_large_patch16_224", 0.8),
    ],
)
def test_layer_decay_is_that_of_timm(name: str, decay: float) -> None:
    """Every parameter learns as fast as in timm, and decays as much, but for the position tables.

    timm's models leave those out of weight decay; BEiT's script does so only with
    --disable_weight_decay_on_rel_pos_bias, which no published command has.
    """
    depth, optim = PRESETS[name.split("_")[1]].depth, OptimConfig(layer_decay=decay, weight_decay=0.05)
    ours, theirs = settings(Classifier(depth), optim), timm_settings(name, optim, depth=depth)
    assert ours.keys() == theirs.keys()
    for key, (scale, weight_decay) in theirs.items():
        assert ours[key][0] == pytest.approx(scale, rel=1e-12), key
        assert (ours[key][1] == weight_decay) != key.startswith("encoder.rel_pos."), key
    tables = [value for key, value in ours.items() if key.startswith("encoder.rel_pos.")]
    assert len(tables) == depth and {weight_decay for _, weight_decay in tables} == {0.05}


def test_one_table_for_all_layers_learns_at_full_speed_and_in_timm_as_the_first_layer() -> None:
    """BEiT's script counts whatever is no embedding and no block to the last layer; timm names it with the stem."""
    optim = OptimConfig(layer_decay=0.5)
    ours = settings(Classifier(3, "shared"), optim)
    theirs = timm_settings(
        "beit_base_patch16_224", optim, depth=3, use_rel_pos_bias=False, use_shared_rel_pos_bias=True
    )
    differing = {key: (ours[key][0], theirs[key][0]) for key in ours if ours[key][0] != theirs[key][0]}
    assert differing == {"encoder.rel_pos.0.image": (1.0, 0.5**4)}


@pytest.mark.parametrize(("depth", "decay"), [(12, 0.65), (24, 0.75)])
def test_published_assignment(depth: int, decay: float) -> None:
    """decay^(L + 1 - i): i is 0 for the embeddings, b + 1 for block b with its table, L + 1 for all else."""
    found = settings(Classifier(depth), OptimConfig(layer_decay=decay))
    for name, (scale, _) in found.items():
        _, part, number = (name + ".").split(".")[:3]
        layer = {"cls_token": 0, "patch_embed": 0}.get(part, depth + 1)
        if part in ("blocks", "rel_pos"):
            layer = int(number) + 1
        assert scale == pytest.approx(decay ** (depth + 1 - layer)), name
    assert len({scale for scale, _ in found.values()}) == depth + 2
