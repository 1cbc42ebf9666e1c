"""Checkpoints of earlier releases still load and give what they gave.

`tests/golden/release-*`: checkpoint folders as that release wrote them (runs of two steps on the built-in data), and
`expected.safetensors`, inputs with the outputs of that release.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import vlbeit
from vlbeit.inference import Trained
from vlbeit.models.image_tower import ImageTower

RELEASES = sorted((Path(__file__).parents[1] / "golden").glob("release-*"))
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def test_there_is_one() -> None:
    assert [release.name for release in RELEASES][:1] == ["release-0.1"]


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.name)
@torch.no_grad()
def test_outputs_are_as_they_were(release: Path) -> None:
    expected = load_file(release / "expected.safetensors")
    image, text = expected["image"], {name: expected[name] for name in ("text_ids", "text_keep")}

    vqa = vlbeit.load(release / "vl-vqa")
    tokens = vqa.encode(image=image, **text).x_BLD
    torch.testing.assert_close(tokens, expected["vl-vqa.tokens"], **TOLERANCE)
    logits = vqa.heads["answer"](vqa.heads["pooler"](tokens))
    torch.testing.assert_close(logits, expected["vl-vqa.logits"], **TOLERANCE)

    mim = vlbeit.load(release / "mim")
    tokens = mim.encode(image).x_BLD
    torch.testing.assert_close(tokens, expected["mim.tokens"], **TOLERANCE)
    torch.testing.assert_close(mim.heads["masked_patch"](tokens[:, 1:]), expected["mim.logits"], **TOLERANCE)
    visual = mim.image_tokenizer.tokens(image.sigmoid()[:, :, :24, :24].contiguous())
    assert torch.equal(visual, expected["mim.visual"])

    tower = ImageTower.from_run(release / "mim-classification")
    torch.testing.assert_close(tower(image), expected["mim-classification.logits"], **TOLERANCE)


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.name)
@pytest.mark.parametrize("run", ["vl-vqa", "mim", "mim-classification"])
def test_runs_can_be_read_back(release: Path, run: str) -> None:
    """Config, recipe and objective too: what `evaluate`, `predict` and `submit` need."""
    trained = Trained(release / run)
    assert trained.is_run and trained.config.title == run
