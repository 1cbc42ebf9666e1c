"""Which parameters decay and how fast each learns."""

from __future__ import annotations

import pytest
import torch

from vlbeit.config import OptimConfig
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.groups import beit_decays, layer_id, param_groups, vlmo_decays
from vlbeit.models.heads import Heads
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
