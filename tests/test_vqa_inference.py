"""Native pictures, test-time flip and ensembles on the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from vlbeit import compose
from vlbeit.cli import main


@pytest.fixture
def evaluated(in_chain: Path):
    """Numbers of `vlbeit evaluate runs/vl-vqa WORDS` in the file with a suffix, which goes with a second run."""
    shutil.copytree("runs/vl-vqa", "second")

    def evaluate(suffix: str, *words: str) -> dict[str, object]:
        assert main(["evaluate", "runs/vl-vqa", "task.controls=false", *words]) == 0
        return json.loads(Path(f"runs/vl-vqa/evaluation{suffix}.json").read_text())

    yield evaluate
    shutil.rmtree("second")
    for path in [*Path("runs/vl-vqa").glob("*-changed.json"), *Path("runs/vl-vqa").glob("*-ensemble.json")]:
        path.unlink()


def test_two_runs_answer_together(evaluated, capsys):
    alone = evaluated("")
    both = evaluated("-ensemble", "--with", "second")
    assert both["ensemble"] == ["second"] and "ensemble" not in alone
    assert {name: both[name] for name in ("overall", "questions")} == {
        name: alone[name] for name in ("overall", "questions")
    }, "a run and its copy are as good as the run"
    capsys.readouterr()
    for twice in (["second", "second"], ["second", "second/"], ["runs/vl-vqa/"], [str(Path("runs/vl-vqa").resolve())]):
        assert main(["evaluate", "runs/vl-vqa", *(word for run in twice for word in ("--with", run))]) == 2
        assert "a run is named twice" in capsys.readouterr().err
    assert main(["evaluate", "runs/vl-vqa", "--with", "runs/mim"]) == 2
    assert "--with runs/mim: it is a run of mim, not one that answers questions" in capsys.readouterr().err
    assert main(["evaluate", "runs/mim", "--with", "second"]) == 2
    assert "runs/mim is a run of stage=mim: train a task on it" in capsys.readouterr().err
    assert main(["evaluate", "runs/mim-classification", "--with", "second"]) == 2
    assert "task=classification cannot be evaluated together" in capsys.readouterr().err


def test_two_runs_submit_together(evaluated, scenes, tmp_path):
    words = ["submit", "runs/vl-vqa", "task.test_flip=true", f"data.root={scenes}", "--split", "test2015"]
    try:
        assert main([*words, "--with", "second", "--out", str(tmp_path / "both.json")]) == 0
        assert main([*words, "--out", str(tmp_path / "one.json")]) == 0
        facts = [json.loads(path.read_text()) for path in Path("runs/vl-vqa/submissions").glob("*/submission.json")]
    finally:
        shutil.rmtree("runs/vl-vqa/submissions")
    assert sorted(each.get("ensemble", []) for each in facts) == [[], ["second"]], "two submissions, not one"
    assert all(each["test_flip"] is True for each in facts)
    both, one = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("both", "one"))
    assert both == one, "a run and its copy are as good as the run"


def test_the_flipped_picture_is_said(evaluated):
    flipped = evaluated("-changed", "task.test_flip=true")
    assert flipped["test_flip"] is True and flipped["questions"] == 24


@pytest.mark.parametrize("resize", ["native", "pad"])
def test_training_in_the_pictures_own_aspect(in_chain, again, tmp_path, capsys, resize):
    """The scenes are square: in a wide frame they are less wide."""
    run = tmp_path / "run"
    words = ["train", *again["vl-vqa"], f"run={run}", "data.image_size=[32,48]", f"data.resize={resize}", "init=none"]
    assert main([*words, "micro_batch_size=auto"]) == 0
    assert compose.from_yaml(run / "config.yaml").data.resize == resize
    assert json.loads((run / "evaluation.json").read_text())["questions"] == 24
    assert (run / "batch0.png").is_file()
    picture = tmp_path / "tall.png"
    Image.new("RGB", (40, 90), (200, 30, 30)).save(picture)
    capsys.readouterr()
    assert main(["predict", str(run), str(picture), "what color is it?"]) == 0
    said = capsys.readouterr().out
    assert any(line.split()[:1] == [answer] for line in said.splitlines() for answer in answers_of(run)), said
    copy = shutil.copytree(run, tmp_path / "copy")
    shutil.rmtree(run)
    assert main(["evaluate", str(copy)]) == 0
    assert f"next: vlbeit predict {copy} picture.jpg" in capsys.readouterr().out


def test_native_pictures_go_on_at_their_micro_batch(in_chain, again, tmp_path, capsys):
    """The order of an epoch hangs on it: at another one some questions would come twice and others never."""
    words = [*again["vl-vqa"], "data.image_size=[32,48]", "data.resize=native", "init=none", f"run={tmp_path / 'run'}"]
    assert main(["train", *words, "micro_batch_size=2"]) == 0
    assert main(["train", *words, "micro_batch_size=4", "steps=3"]) == 2
    assert "was trained with micro_batch_size=2, on which the order of its samples hangs" in capsys.readouterr().err
    assert main(["train", *words, "micro_batch_size=auto", "steps=3"]) == 0
    assert "8 samples, 2 at a time" in capsys.readouterr().out


def answers_of(run: Path) -> list[str]:
    return [answer for answer in json.loads((run / "checkpoint" / "answers.json").read_text()) if " " not in answer]
