"""Vision-language objective: parity with the golden tensors, and what gets a gradient."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from vlbeit.models.convert import Hints, convert
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.spec import EncoderSpec
from vlbeit.objectives.contrastive import ContrastRule, contrast
from vlbeit.objectives.global_contrast import GlobalContrast
from vlbeit.objectives.matching import hardest
from vlbeit.objectives.vl import VLObjective
from vlbeit.stages.mlm import freeze_tower
from vlbeit.stages.vl import vl_heads

GOLDEN = Path(__file__).parents[1] / "golden" / "vlmo" / "vlmo_rel_pretrain"
SPEC = {
    "patch_size": 16,
    "image_size": (64, 64),
    "experts": ("image", "text"),
    "fused_layers": 1,
    "vocab_size": 120,
    "text_positions": 20,
}


def golden_objective() -> VLObjective:
    config = json.loads(GOLDEN.with_suffix(".json").read_text())
    encoder = MoMEEncoder(EncoderSpec(config["embed_dim"], config["depth"], config["num_heads"], **SPEC))
    published = GlobalContrast(ContrastRule(same_picture_negatives=True), hardest)
    objective = VLObjective(encoder, vl_heads(48, 120), contrast=published).eval()
    weights = load_file(f"{GOLDEN}.weights.safetensors")
    objective.load_state_dict(convert(weights, Hints(image_size=(64, 64))).state)
    return objective


def golden_batch() -> tuple[dict, dict]:
    io = load_file(f"{GOLDEN}.io.safetensors")
    batch = {
        "image": io["in.image"],
        "text_ids": io["in.text_ids"],
        "text_keep": io["in.text_masks"].bool(),
        "mlm_ids": io["in.text_ids_mlm"],
        "mlm_labels": io["in.text_labels_mlm"],
    }
    return batch, io


@torch.no_grad()
def test_golden_losses() -> None:
    objective, (batch, io) = golden_objective(), golden_batch()
    losses = objective(batch, objective.counts(batch)).losses
    torch.testing.assert_close(losses["itc"], io["out.itc.loss"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(losses["mlm"], io["out.mlm.loss_weighted"], rtol=1e-5, atol=1e-5)
    own, _ = objective(batch, {}).seen
    _, (_, image_logits) = contrast(own, objective.contrast.rule)
    torch.testing.assert_close(image_logits, io["out.itc.i2t_logits"], rtol=1e-5, atol=1e-4)


def test_every_parameter_of_vl_gets_a_gradient() -> None:
    objective, (batch, _) = golden_objective().train(), golden_batch()
    torch.stack(list(objective(batch, objective.counts(batch)).losses.values())).sum().backward()
    assert [name for name, p in objective.named_parameters() if p.grad is None] == []


def test_text_stage_trains_what_vlmo_trains() -> None:
    encoder = MoMEEncoder(EncoderSpec(48, 4, 3, **{**SPEC, "fused_layers": 0}))
    freeze_tower(encoder, attention=True)
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    kinds = {".".join(part for part in name.split(".") if not part.isdecimal()) for name in trained}
    assert kinds == {
        "type_embed.weight",
        "norm.weight",
        "norm.bias",
        "rel_pos.text",
        *(f"text_embed.{part}.weight" for part in ("word_embeddings", "token_type_embeddings", "norm")),
        "text_embed.norm.bias",
        *(f"blocks.experts.text.{part}" for part in ("norm.weight", "norm.bias")),
        *(f"blocks.experts.text.mlp.{layer}.{part}" for layer in ("fc1", "fc2") for part in ("weight", "bias")),
    }


@torch.no_grad()
def test_what_contrast_learns_is_in_the_logs() -> None:
    objective, (batch, _) = golden_objective(), golden_batch()
    objective.heads["contrast"].logit_scale.fill_(3.0)
    logs = objective(batch, objective.counts(batch)).logs
    for name, scale in {
        "temperature": 3.0,
        "temperature_fused": float(objective.heads["contrast_fused"].logit_scale),
    }.items():
        total, count = logs[name]
        torch.testing.assert_close(total / count, torch.tensor(-scale).exp())
    assert "bias" not in logs
