"""The command that goes on with an unfinished run, and who names it."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from vlbeit import chain, compose, going_on, preflight, suggest
from vlbeit.cli import main
from vlbeit.comparing import compare
from vlbeit.data.sources import open_records
from vlbeit.errors import DataError, UsageError
from vlbeit.inference import Trained
from vlbeit.runs import cells, following, list_runs

WORDS = {
    "tokenizer": ["stage=tokenizer", "model=tiny", "data=pairs", "data.root=my pairs", "stage.hidden=64", "steps=20"],
    "recipe": ["recipe=vlmo_base_vqa_480", "data.root=vqa"],
    "scenes": ["stage=vl", "task=vqa", "optim.lr=1e-4", "engine.trackers=[wandb,trackio]", "data.limit=7"],
    "mix": ["stage=vl", "data.mix=[coco,/a/*.tar*2]", "epochs=3", "optim.clip_grad=null"],
}


def unfinished(run: str, words: list[str], step: int = 3, steps: int = 60) -> None:
    """A run that was stopped after some steps, before it gave anybody weights."""
    config = replace(compose.compose([*words, f"run={run}"]).config, steps=steps, micro_batch_size=4)
    Path(run, "checkpoint").mkdir(parents=True)
    Path(run, "config.yaml").write_text(compose.to_yaml(config))
    Path(run, "last.json").write_text(json.dumps({"step": step, "state": f"step-{step:06d}", "owes_evaluation": True}))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_the_command_makes_the_same_config(words: list[str]) -> None:
    unfinished("runs/a b", words)
    verb, *typed = shlex.split(going_on.command("runs/a b"))[1:]
    assert verb == "train"
    again = compose.compose(typed).config
    assert compose.differing_keys(compose.from_yaml("runs/a b/config.yaml"), again) == []
    assert (again.steps, again.run) == (60, "runs/a b")


def test_a_run_without_weights_is_to_be_gone_on_with() -> None:
    unfinished("runs/mine", WORDS["tokenizer"])
    Path("runs/other").mkdir()
    command = going_on.command("runs/mine")
    for refused in (lambda: compare(Path("runs/mine"), Path("runs/other")), lambda: Trained("runs/mine")):
        with pytest.raises(DataError) as told:
            refused()
        assert str(told.value) == f"runs/mine has no weights yet: first go on with its training, `{command}`"
    found = list_runs(Path("runs"))
    assert cells(found[0])[-1].startswith("3 of 60 steps") and following(found) == command
    later = compose.compose([*WORDS["tokenizer"][1:4], "stage=mim", "stage.tokenizer=runs/mine"]).config
    with pytest.raises(UsageError) as told:
        chain.missing_runs(replace(later, init="none"))
    assert f"runs/mine is unfinished, and this run starts from it: first go on with it, `{command}`" in str(told.value)


@pytest.mark.parametrize("key", ["stage.tokenizer", "init"])
def test_what_is_no_run_names_its_key(key: str) -> None:
    task = ["task=classification"] if key == "init" else []
    config = compose.compose(["stage=mim", *task, "data=imagefolder", f"{key}=nope"]).config
    told = f"^{key}=nope: no such file or folder, and no published name: none is near"
    with pytest.raises(UsageError, match=told):
        chain.missing_runs(config)


def test_a_file_where_a_folder_is_read() -> None:
    Path("mine.csv").write_text("image,caption\n")
    config = compose.compose(["stage=mim", "data=imagefolder", "data.root=mine.csv"]).config
    with pytest.raises(DataError, match=r"data.root=mine.csv is a file, and data=imagefolder reads a folder: set data"):
        open_records(config.data, "images", "train")


@pytest.mark.parametrize(
    ("batch", "world", "micro", "told"),
    [(64, 2, 64, "micro_batch_size=32"), (48, 1, 64, "micro_batch_size=48"), (60, 2, 16, "micro_batch_size=15"),
     (64, 3, 8, "global_batch_size=48"), (2, 4, "auto", "global_batch_size=4")],
)  # fmt: skip
def test_a_batch_that_works_is_named(batch: int, world: int, micro: int | str, told: str) -> None:
    assert preflight.fitting(batch, world, micro) == f"try {told}"


def test_what_comes_next_keeps_what_was_typed() -> None:
    Path("own").mkdir()
    data = [
        "data=pairs",
        "data.root=own",
        "data.images=my pictures",
        "data.val_split=test",
        "data.max_bad_fraction=0.1",
    ]
    words = ["stage=vl", *data, "model.image_tower=timm:resnet18", "model.train_towers=false"]
    typed = shlex.split(suggest.after_training(compose.compose(words).config))
    assert {*data, *words[-2:]} <= {*typed}
    assert "model.train_towers=true" not in typed and not [word for word in typed if word.startswith("data.train_")]


def test_a_place_where_no_run_can_be(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, *given: object, **named: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", str(path))

    monkeypatch.setattr(Path, "mkdir", refused)
    from vlbeit.engine.folder import RunFolder

    with pytest.raises(DataError, match=r"run=nope cannot be made here \(No such file or directory\); choose another"):
        RunFolder("nope").locked().__enter__()


def test_a_tracker_that_is_not_installed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlbeit.engine.device.get_available_trackers", list)
    assert main(["train", "stage=mim", "engine.trackers=[trackio]"]) == 2
    assert "engine.trackers=trackio is not installed here: pip install 'vlbeit[trackio]'" in capsys.readouterr().err
