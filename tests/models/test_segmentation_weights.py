"""Weights of segmentation models: groups of the optimizer, loading, going on with other classes and sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import vlbeit
from vlbeit.config import OptimConfig
from vlbeit.errors import DataError
from vlbeit.models.checkpoint import save_checkpoint
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.groups import beit_decays, param_groups
from vlbeit.models.heads import Heads
from vlbeit.models.spec import EncoderSpec
from vlbeit.models.transfer import transfer

CLASSES = {"classes": ["wall", "sky", "tree"]}


class Segmenter(nn.Module):
    """Encoder and heads of a segmentation run, nothing at its initial value."""

    def __init__(self, classes: int = 3, size: int = 32, seed: int = 0, decoder: str = "upernet") -> None:
        super().__init__()
        torch.manual_seed(seed)
        spec = EncoderSpec(32, 3, 2, patch_size=8, image_size=(size, size), final_norm=False)
        self.encoder = MoMEEncoder(spec)
        heads: dict[str, dict[str, Any]] = {
            "necks": {"kind": "feature_necks", "dim": 32},
            "segmentation": {"kind": decoder, "dim": 32, "num_classes": classes, "channels": 8},
            "auxiliary": {"kind": "fcn", "dim": 32, "num_classes": classes, "channels": 8},
        }
        self.heads = Heads(heads)
        with torch.no_grad():
            for norm in (module for module in self.modules() if isinstance(module, nn.BatchNorm2d)):
                norm.running_mean.normal_()  # type: ignore[union-attr]
                norm.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
                norm.num_batches_tracked.add_(7)  # type: ignore[operator, union-attr]
            for parameter in self.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))

    def describe(self) -> dict[str, Any]:
        return {"encoder": self.encoder.spec.to_dict(), "heads": self.heads.specs}


def take(target: Segmenter, source: Segmenter, theirs: dict[str, Any], ours: dict[str, Any]) -> Any:
    return transfer(target, source.state_dict(), source.encoder.spec, target.encoder.spec, (theirs, ours))


def test_decoders_learn_at_full_rate_and_vectors_do_not_decay() -> None:
    model = Segmenter()
    optim = OptimConfig(layer_decay=0.5, weight_decay=0.1)
    groups = param_groups(model, optim, beit_decays)
    decay = {name: group["weight_decay"] for group in groups for name in group["names"]}
    scale = {name: group["lr_scale"] for group in groups for name in group["names"]}
    heads = [name for name in decay if name.startswith("heads.")]
    assert len(heads) == len(list(model.heads.parameters())) and {scale[name] for name in heads} == {1.0}
    assert scale["encoder.blocks.2.attn.qkv.weight"] == 0.5 and scale["encoder.cls_token"] == 0.5**4
    for name, module in model.heads.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            vector = isinstance(module, nn.BatchNorm2d) or own == "bias"
            assert vector == (parameter.ndim == 1)
            assert decay[f"heads.{name}.{own}"] == (0.0 if vector else 0.1)


@torch.no_grad()
@pytest.mark.parametrize("decoder", ["upernet", "setr_pup"])
def test_load_gives_encoder_and_heads(decoder: str, tmp_path: Path) -> None:
    model = Segmenter(decoder=decoder).eval()
    save_checkpoint(tmp_path, model.state_dict(), model.describe(), {}, CLASSES)
    loaded = vlbeit.load(tmp_path)
    assert list(loaded.heads) == ["necks", "segmentation", "auxiliary"] and not loaded.heads.training
    maps = [torch.randn(1, 32, 4, 4) for _ in range(4)]
    assert torch.equal(loaded.heads["segmentation"](maps), model.heads["segmentation"](maps))
    assert loaded.report.unexpected == [] and loaded.meta == CLASSES


def test_a_start_from_a_segmentation_run_keeps_the_decoder_and_its_statistics() -> None:
    source, same = Segmenter(seed=1), Segmenter(seed=2)
    report = take(same, source, CLASSES, CLASSES)
    assert report.missing == report.resized == report.unexpected == []
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in same.state_dict().items())
    assert int(same.heads["necks"].up4[1].num_batches_tracked) == 7

    larger = Segmenter(size=48, seed=2)
    report = take(larger, source, CLASSES, CLASSES)
    assert report.missing == [] and report.resized == [f"encoder.rel_pos.{layer}.image" for layer in range(3)]


def test_rows_of_both_classifiers_go_by_the_names_of_their_classes() -> None:
    source, target = Segmenter(seed=1), Segmenter(classes=4, seed=2)
    initial = {head: target.heads[head].classifier.bias.detach().clone() for head in ("segmentation", "auxiliary")}
    report = take(target, source, CLASSES, {"classes": ["tree", "dog", "wall", "cat"]})
    assert report.missing == []
    for head, before in initial.items():
        given, found = source.heads[head].classifier, target.heads[head].classifier
        assert torch.equal(found.weight[[2, 0]], given.weight[[0, 2]]) and found.weight.shape == (4, 8, 1, 1)
        assert torch.equal(found.bias[[2, 0]], given.bias[[0, 2]]) and torch.equal(found.bias[[1, 3]], before[[1, 3]])
        name = f"heads.{head}.classifier.weight"
        assert report.remapped[name] == (f"2 of 4 rows of {name} by their classes",)
    assert torch.equal(target.heads["segmentation"].fuse.conv.weight, source.heads["segmentation"].fuse.conv.weight)


def test_other_classes_leave_the_rest_of_the_decoder() -> None:
    source, target = Segmenter(seed=1), Segmenter(seed=2)
    report = take(target, source, CLASSES, {"classes": ["a", "b", "c"]})
    names = [f"heads.{head}.classifier.{leaf}" for head in ("segmentation", "auxiliary") for leaf in ("weight", "bias")]
    assert report.missing == names
    with pytest.raises(DataError, match="head segmentation: a list of 2 labels for a classifier of width 3"):
        take(target, source, {"classes": ["wall", "sky"]}, CLASSES)


def test_a_tower_of_another_task_leaves_the_decoder_new() -> None:
    source, target = Segmenter(seed=1), Segmenter(seed=2)
    state = {name: value for name, value in source.state_dict().items() if name.startswith("encoder.")}
    state["heads.classification.fc.weight"] = torch.zeros(9, 32)
    labels = ({"classes": [str(number) for number in range(9)]}, CLASSES)
    report = transfer(target, state, source.encoder.spec, target.encoder.spec, labels)
    assert report.unexpected == ["heads.classification.fc.weight"]
    assert {name.split(".")[1] for name in report.missing} == {"necks", "segmentation", "auxiliary"}
