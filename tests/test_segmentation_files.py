"""Segmentation weights of others in use: whose blocks they decode, and how they spell their classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vlbeit.adopt import labels_of, other_taps, take_weights
from vlbeit.cli import main
from vlbeit.errors import UsageError
from vlbeit.models.checkpoint import Checkpoint
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.heads import Heads
from vlbeit.models.spec import EncoderSpec
from vlbeit.objectives.base import Objective
from vlbeit.types import Batch, StepOutput

SPEC = EncoderSpec(8, 6, 2, patch_size=8, image_size=(16, 16), final_norm=False)


class Segmentation(Objective):
    """What a run of segmentation is made of."""

    def __init__(self, taps: list[int] | None = None) -> None:
        super().__init__()
        self.encoder = MoMEEncoder(SPEC)
        necks = {"kind": "feature_necks", "dim": 8} | ({"taps": taps} if taps else {})
        self.heads = Heads({"necks": necks, "segmentation": {"kind": "upernet", "dim": 8, "num_classes": 3}})

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {}

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> StepOutput:
        return StepOutput({}, {})

    def describe(self) -> dict[str, Any]:
        return {"encoder": SPEC.to_dict(), "heads": self.heads.specs}


def checkpoint(objective: Segmentation, classes: list[str] | None = None) -> Checkpoint:
    meta = {"classes": classes} if classes else {}
    return Checkpoint(Path("file.pth"), objective.describe(), {}, meta, objective.state_dict())


def test_a_decoder_of_other_blocks_is_not_measured_as_if_it_were_ours() -> None:
    theirs, ours = Segmentation([0, 1, 3, 4]), Segmentation()
    assert other_taps(checkpoint(ours), ours) == other_taps(checkpoint(theirs), theirs) == ""
    with pytest.raises(UsageError, match=r"blocks \[0, 1, 3, 4\], counted from 0, and here it is \[1, 2, 3, 5\]"):
        take_weights(ours, checkpoint(theirs), {}, print)
    take_weights(Segmentation([0, 1, 3, 4]), checkpoint(theirs), {}, print)


def test_classes_of_others_are_found_however_they_are_spelled() -> None:
    said: list[str] = []
    theirs, ours = Segmentation(), Segmentation()
    ours.heads["segmentation"].classifier.weight.data.zero_()
    found, meta = checkpoint(theirs, ["bed ", "crt screen", "sky"]), {"classes": ["sky", "CRT screen", "bed"]}
    assert labels_of(found, ours, meta, said.append) == {"classes": ["bed", "CRT screen", "sky"]}
    take_weights(ours, found, meta, said.append)
    weights = [each.heads["segmentation"].classifier.weight for each in (ours, theirs)]
    assert torch.equal(weights[0], weights[1].flip(0)) and said == []


def test_classes_are_compared_only_where_both_have_a_classifier_of_the_kind() -> None:
    said: list[str] = []
    found = checkpoint(Segmentation(), ["n01440764", "n01443537"])
    meta = {"classes": ["sky", "bed", "wall"]}
    assert labels_of(found, Segmentation(), meta, said.append) == {} and "go by their place" in said.pop()
    found.description["heads"] = {"classification": {"kind": "classification", "dim": 8, "num_classes": 2}}
    assert labels_of(found, Segmentation(), meta, said.append) == {} and said == []


WORDS = (
    *("task=segmentation", "data=masks", "data.root=own", "data.workers=0", "task.reduce_zero_label=true"),
    *("micro_batch_size=2", "global_batch_size=4"),
)
SMALL = (
    *("stage=mim", "init=none", "model=tiny", "data.image_size=32", "model.embed_dim=32", "model.num_heads=2"),
    *("model.patch_size=8", "optim.warmup_steps=0", "steps=3", "optim.lr=1e-3"),
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of pictures with masks of three classes."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for index in range(4):
            labels = np.repeat(rng.integers(0, 4, (4, 5), np.uint8), 10, axis=0).repeat(10, axis=1)
            noise = rng.integers(0, 40, (*labels.shape, 3), np.uint8)
            for kind, pixels in (("images", labels[..., None] * np.uint8(50) + noise), ("masks", labels)):
                file = tmp_path / "own" / kind / split / f"{index}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(file)
    (tmp_path / "own/classes.txt").write_text("red\ngreen\nblue\n")
    monkeypatch.setenv("VLBEIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_files_of_others_are_measured_and_gone_on_with(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *WORDS, *SMALL]) == 0
    numbers = json.loads((place / "runs/mim-segmentation/evaluation.json").read_text())
    assert main(["convert", "runs/mim-segmentation", "official.pth", "--to", "unilm"]) == 0
    assert main(["convert", "runs/mim-segmentation", "hub", "--to", "transformers"]) == 0
    written = json.loads((place / "hub/config.json").read_text())
    assert written["architectures"] == ["BeitForSemanticSegmentation"] and written["id2label"]["1"] == "green"
    for source in ("official.pth", "hub"):
        assert main(["evaluate", source, *WORDS]) == 0
        measured = json.loads((place / f"runs/{Path(source).stem}-segmentation/evaluation.json").read_text())
        assert {name: measured[name] for name in ("miou", "macc", "aacc")} == pytest.approx(
            {name: numbers[name] for name in ("miou", "macc", "aacc")}
        )
    capsys.readouterr()
    words = [word for word in SMALL if word != "init=none"]
    assert main(["train", *WORDS, *words, "init=official.pth", "run=on", "steps=1"]) == 0
    said = capsys.readouterr()
    assert "new (" not in said.out + said.err and "starting from official.pth" in said.out + said.err
