"""Fifty optimizer steps of the reference implementations, run again through our objectives, groups and engine.

float64, one process; every final weight within 1e-8. Planted recipe mistakes must show.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vlbeit.config import OptimConfig
from vlbeit.engine.device import make_accelerator
from vlbeit.engine.loop import Engine, FitPlan
from vlbeit.engine.optim import build_optimizer
from vlbeit.engine.schedule import make_schedule
from vlbeit.models.convert import Hints, convert
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.groups import Rule, beit_decays, param_groups, vlmo_decays
from vlbeit.models.heads import Heads
from vlbeit.models.spec import EncoderSpec
from vlbeit.objectives.base import Objective
from vlbeit.objectives.contrastive import ContrastRule
from vlbeit.objectives.global_contrast import GlobalContrast
from vlbeit.objectives.matching import hardest
from vlbeit.objectives.mim import MIMObjective
from vlbeit.objectives.mlm import MLMObjective
from vlbeit.objectives.targets import TokenTarget
from vlbeit.objectives.vl import VLObjective
from vlbeit.stages.mlm import freeze_tower
from vlbeit.stages.vl import vl_heads
from vlbeit.tasks.classification.objective import ClassificationObjective
from vlbeit.tasks.vqa.objective import VQAObjective, answer_heads

GOLDEN = Path(__file__).parent / "golden" / "trajectory"
DIM, STEPS = 32, 50


class GivenTokens(TokenTarget):
    """Token ids that the batch brings along: the trajectory's tokenizer is not part of it."""

    def __init__(self, vocab_size: int) -> None:
        torch.nn.Module.__init__(self)
        self.head_width = vocab_size

    def train(self, mode: bool = True) -> GivenTokens:
        return self

    def forward(self, batch: dict[str, Any], grid: tuple[int, int]) -> Tensor:
        return batch["tokens"]


def spec(config: dict[str, Any], **parts: Any) -> EncoderSpec:
    size = config["img_size"]
    return EncoderSpec(DIM, config["depth"], config["num_heads"], image_size=(size, size), **parts)


def vlmo_spec(config: dict[str, Any], fused: bool = True) -> EncoderSpec:
    return spec(
        config,
        experts=("image", "text"),
        fused_layers=config["depth"] - config["vlffn_start"] if fused else 0,
        vocab_size=config["vocab"],
        text_positions=config["max_text_len_of_initckpt"],
    )


def mim(config: dict[str, Any]) -> Objective:
    target = GivenTokens(config["vocab"])
    encoder = MoMEEncoder(spec(config, positions="shared", mask_token=True))
    return MIMObjective(
        encoder, Heads({"masked_patch": {"kind": "masked_patch", "dim": DIM, "dim_out": target.head_width}}), target
    )


def classification(config: dict[str, Any]) -> Objective:
    head = {"kind": "classification", "dim": DIM, "num_classes": config["num_classes"]}
    encoder = MoMEEncoder(spec(config, final_norm=False))
    return ClassificationObjective(encoder, Heads({"classification": head}), smoothing=0.1)


def textmlm(config: dict[str, Any]) -> Objective:
    encoder = MoMEEncoder(vlmo_spec(config, fused=False))
    freeze_tower(encoder, attention=True)
    return MLMObjective(encoder, Heads({"mlm": {"kind": "mlm", "dim": DIM, "vocab_size": config["vocab"]}}))


def vl(config: dict[str, Any]) -> Objective:
    published = GlobalContrast(ContrastRule(same_picture_negatives=True), hardest)
    return VLObjective(MoMEEncoder(vlmo_spec(config)), vl_heads(DIM, config["vocab"]), contrast=published)


def vqa(config: dict[str, Any]) -> Objective:
    return VQAObjective(MoMEEncoder(vlmo_spec(config)), Heads(answer_heads(DIM, 11)))


BUILD = {
    "beit_mim": (mim, beit_decays, {"lr": 1.5e-3, "min_lr": 1e-5, "warmup_steps": 10, "clip_grad": 0.5}),
    "beit_classification": (
        classification,
        beit_decays,
        {"lr": 4e-3, "min_lr": 1e-6, "warmup_steps": 10, "layer_decay": 0.65},
    ),
    "vlmo_textmlm": (textmlm, vlmo_decays, {"lr": 1e-3, "warmup_steps": 5, "schedule": "linear"}),
    "vlmo_vl": (vl, vlmo_decays, {"lr": 1e-3, "warmup_steps": 5, "schedule": "linear"}),
    "vlmo_vqa": (vqa, vlmo_decays, {"lr": 6e-4, "warmup_steps": 5, "schedule": "linear", "head_lr_scale": 20.0}),
}


def batches(name: str) -> list[dict[str, Any]]:
    """The five batches under the names of `vlbeit.types.Batch`."""
    ours = {"text_ids_mlm": "mlm_ids", "text_labels_mlm": "mlm_labels", "targets": "target"}
    columns = {ours.get(key, key): value for key, value in load_file(GOLDEN / f"{name}.batches.safetensors").items()}
    if "image" in columns:
        columns["image"] = columns["image"].double() / 127.5 - 1
    if "text_keep" in columns:
        columns["text_keep"] = columns["text_keep"].bool()
    return [
        {"sample_id": [str(i) for i in range(4)]} | {key: value[t] for key, value in columns.items()} for t in range(5)
    ]


class Given:
    """Step t sees batch t % 5."""

    def __init__(self, name: str) -> None:
        self.batches = batches(name)

    def steps(self, start: int, stop: int):
        return ([self.batches[step % 5]] for step in range(start, stop))


def state(name: str, part: str, objective: Objective) -> dict[str, Tensor]:
    hints = Hints(image_size=objective.encoder.spec.image_size)
    stored = convert(load_file(GOLDEN / f"{name}.{part}.safetensors"), hints).state
    return {key: value for key, value in stored.items() if not (name == "vlmo_textmlm" and "pooler" in key)}


def run(name: str, *, decays: Rule | None = None, **changes: Any) -> float:
    """Train through the engine; the largest difference of any weight from the reference's."""
    config = json.loads((GOLDEN / f"{name}.json").read_text())
    build, rule, recipe = BUILD[name]
    optim = OptimConfig(**{"weight_decay": config["weight_decay"], "betas": list(config["betas"]), **recipe, **changes})
    objective = build(config).double()
    objective.load_state_dict(state(name, "init", objective))
    head = "answer" if name == "vlmo_vqa" else None
    groups = param_groups(objective, optim, decays or rule, scaled_head=head)
    plan = FitPlan(STEPS, make_schedule(optim, STEPS), precision="fp64", clip_grad=optim.clip_grad)
    Engine(objective, build_optimizer(groups, optim), Given(name), plan, make_accelerator("cpu", "fp64")).fit()
    final = state(name, "final", objective)
    own = objective.state_dict()
    assert own.keys() == final.keys()
    return max((own[key] - final[key]).abs().max().item() for key in own)


@pytest.mark.parametrize("name", BUILD)
def test_final_weights(name: str) -> None:
    assert run(name) < 1e-8


def undecayed(part: str, rule: Rule) -> Rule:
    return lambda name, parameter: part not in name and rule(name, parameter)


MISTAKES: dict[str, tuple[str, dict[str, Any]]] = {
    "mask token not decayed": ("beit_mim", {"decays": undecayed("mask_token", beit_decays)}),
    "no clipping": ("beit_mim", {"clip_grad": None}),
    "one layer's rate off": ("beit_classification", {"layer_decay": 0.66}),
    "position table decayed": ("vlmo_textmlm", {"decays": beit_decays}),
    "temperatures not decayed": ("vlmo_vl", {"decays": undecayed("logit_scale", vlmo_decays)}),
    "AdamW betas of BEiT": ("vlmo_vl", {"betas": [0.9, 0.999]}),
    "head at the common rate": ("vlmo_vqa", {"head_lr_scale": 1.0}),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_planted_mistake_shows(mistake: str) -> None:
    name, change = MISTAKES[mistake]
    assert run(name, **change) > 1e-7
