"""The settings of stage=vl on the command line: contrast over the whole batch, pair by pair, and older runs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from vlbeit.cli import main
from vlbeit.compose import from_yaml

SMALL = (
    "model.embed_dim=32",
    "model.depth=2",
    "model.num_heads=2",
    "model.fused_layers=1",
    "data.workers=0",
    "data.limit=24",
    "global_batch_size=8",
    "engine.log_every=1",
    "stage=vl",
)


def scales(run: Path) -> dict[str, float]:
    state = load_file(run / "checkpoint" / "model.safetensors")
    return {name: float(value) for name, value in state.items() if "logit_" in name}


def test_whole_batch_pair_by_pair(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One pair at a time, negatives of the whole batch; then on to a softmax, whose scale is another."""
    monkeypatch.chdir(tmp_path)
    words = ["train", *SMALL, f"data.root={scenes}"]
    whole = ["init=none", "micro_batch_size=1", "stage.cache_gradients=true"]
    assert main([*words, *whole, "stage.contrastive=sigmoid", "steps=2", "run=sigmoid"]) == 0
    learned = scales(tmp_path / "sigmoid")
    assert learned["heads.contrast.logit_bias"] == pytest.approx(-10, abs=0.1)
    assert learned["heads.contrast_fused.logit_scale"] == pytest.approx(math.log(10), abs=0.1)
    line = json.loads((tmp_path / "sigmoid" / "metrics.jsonl").read_text().splitlines()[0])
    losses = line["losses"]
    assert set(losses) == {"itc", "itm", "mlm"} and losses == {name: line["logs"][name] for name in losses}
    assert line["total"] == pytest.approx(sum(losses.values()), rel=0.02)  # mlm_weight is 1 here
    assert main(["evaluate", "sigmoid"]) == 0
    softmax = ["init=sigmoid", "micro_batch_size=8", "steps=1", "run=softmax"]
    assert main([*words, *softmax]) == 0
    begun = scales(tmp_path / "softmax")
    assert "heads.contrast.logit_bias" not in begun
    assert begun["heads.contrast.logit_scale"] == pytest.approx(math.log(1 / 0.07), abs=0.1)
    capsys.readouterr()
    assert main([*words, "init=none", "micro_batch_size=1", "steps=2", "run=refused"]) == 2
    assert "stage.cache_gradients=true" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("stage.contrastive=hinge", "stage.contrastive=hinge is not one of softmax, sigmoid"),
        ("stage.gather=all", "stage.gather=all is not one of gradient, published"),
    ],
)
def test_unknown_choices(scenes: Path, capsys: pytest.CaptureFixture[str], word: str, said: str) -> None:
    assert main(["train", *SMALL, f"data.root={scenes}", "init=none", "steps=1", word]) == 2
    assert said in capsys.readouterr().err


def test_a_single_picture_is_not_trained_on(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", *SMALL, f"data.root={scenes}", "init=none", "micro_batch_size=8", "steps=1", "data.limit=1"]
    assert main(words) == 1
    assert "all pairs to train on are of one picture" in capsys.readouterr().err


def test_runs_from_before_keep_their_negatives(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stored config without the key is one of a run that took other captions for negatives, and says so."""
    monkeypatch.chdir(tmp_path)
    words = ["train", *SMALL, f"data.root={scenes}", "init=none", "micro_batch_size=8", "run=old"]
    assert main([*words, "steps=1"]) == 0
    file = tmp_path / "old" / "config.yaml"
    stored = yaml.safe_load(file.read_text())
    for key in ("contrastive", "gather", "same_picture_negatives", "cache_gradients"):
        del stored["stage"][key]
    file.write_text(yaml.safe_dump(stored))
    settings = from_yaml(file).stage
    assert (settings.contrastive, settings.gather, settings.same_picture_negatives) == ("softmax", "gradient", True)
    capsys.readouterr()
    assert main([*words, "steps=2"]) == 2
    assert "stage.same_picture_negatives" in capsys.readouterr().err
    assert main([*words, "steps=2", "stage.same_picture_negatives=true"]) == 0
