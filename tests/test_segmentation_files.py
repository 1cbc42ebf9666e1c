"""Segmentation weights of others in use: whose blocks they decode, and how they spell their classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vlbeit.adopt import labels_of, other_taps, take_weights
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
