"""What may happen to a run from outside, through the command line: one clear line, an intact state, and the same
command goes on to the weights of the run that was left alone."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vlbeit import chain as chains
from vlbeit import launch
from vlbeit.cli import main
from vlbeit.data.loader import EvalLoader
from vlbeit.engine.loop import Engine
from vlbeit.objectives.mim import MIMObjective

SMALL = (
    "stage=mim", "stage.target=pixels", "model.embed_dim=32", "model.depth=2", "model.num_heads=2", "data.workers=0",
    "model.fused_layers=1", "data.limit=16", "global_batch_size=8", "micro_batch_size=4", "steps=4",
    "engine.log_every=1", "engine.save_every=1", "engine.evaluate_every=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the runs lie, with data of their own and the whole run."""
    root = tmp_path_factory.mktemp("survival")
    shutil.copytree(scenes, root / "data" / "scenes")
    with chdir(root):
        assert main(["train", *SMALL, "run=whole"]) == 0
        yield root


def weights(run: str) -> dict[str, torch.Tensor]:
    return load_file(Path(run) / "state" / "step-000004" / "model.safetensors")


def assert_whole(run: str) -> None:
    """The same command has just been run again: everything is as in the run that was left alone."""
    found, expected = weights(run), weights("whole")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    left, right = (json.loads((Path(each) / "evaluation.json").read_text()) for each in (run, "whole"))
    assert left == right
    evaluations = [
        [line["evaluation"] for line in map(json.loads, (Path(each) / "metrics.jsonl").open()) if "evaluation" in line]
        for each in (run, "whole")
    ]
    assert evaluations[0] == evaluations[1]


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], object]) -> None:
    """Do something as a step begins."""
    train_step = Engine.train_step

    def acting(self: Engine, micro_batches: list) -> None:
        if self.state.step == step:
            action()
        train_step(self, micro_batches)

    monkeypatch.setattr(Engine, "train_step", acting)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_stopped_while_it_starts(folder: Path, capsys, monkeypatch, number: int) -> None:
    """Making an index may take long: it is broken off, and no traceback comes of it."""
    listening = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(chains, "recipe_of", lambda config: os.kill(os.getpid(), number))
        assert main(["train", *SMALL, f"run=starting{number}"]) == 130
    said = last_line(capsys)
    assert said.startswith("stopped while nothing was being trained: nothing is lost; to go on: vlbeit train stage=mim")
    assert signal.getsignal(number) == listening and not Path(f"starting{number}", "last.json").exists()
    assert main(["train", *SMALL, f"run=starting{number}"]) == 0
    assert_whole(f"starting{number}")


def test_stopped_in_an_evaluation(folder: Path, capsys, monkeypatch) -> None:
    iterate = EvalLoader.__iter__

    def stopping(self: EvalLoader) -> Iterator[dict]:
        os.kill(os.getpid(), signal.SIGUSR2)
        yield from iterate(self)
        raise AssertionError("not broken off")

    with monkeypatch.context() as patch:
        patch.setattr(EvalLoader, "__iter__", stopping)
        assert main(["train", *SMALL, "run=evaluating"]) == 130
    assert last_line(capsys).startswith("stopped after step 2 of 4, state saved in evaluating; to go on: vlbeit train")
    state = torch.load("evaluating/state/step-000002/progress.pt", weights_only=True)["state"]
    assert state["evaluated"] < state["step"] and not Path("evaluating/evaluation.json").exists()
    assert main(["train", *SMALL, "run=evaluating"]) == 0
    assert_whole("evaluating")


def test_pictures_vanish(folder: Path, capsys, monkeypatch) -> None:
    images = Path("data/scenes/imagefolder")
    with monkeypatch.context() as patch:
        at_step(patch, 1, lambda: images.rename("elsewhere"))
        assert main(["train", *SMALL, "run=vanished"]) == 1
    said = last_line(capsys)
    Path("elsewhere").rename(images)
    assert re.match(r"error: .*cannot be used.*imagefolder.*; restore or correct them", said), said
    assert json.loads(Path("vanished/last.json").read_text())["step"] == 1
    assert main(["train", *SMALL, "run=vanished"]) == 0
    assert_whole("vanished")


def test_files_may_not_grow(folder: Path, capfd) -> None:
    """A quota, here of the process: writing the second state fails, the first one stays."""
    child = os.fork()
    if child == 0:
        with pytest.MonkeyPatch.context() as patch:
            at_step(patch, 1, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)))
            os._exit(main(["train", *SMALL, "run=quota"]))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith("error: cannot write quota/") and "what was saved before is intact" in said
    assert json.loads(Path("quota/last.json").read_text())["step"] == 1
    assert main(["train", *SMALL, "run=quota"]) == 0
    assert_whole("quota")


def test_a_step_that_is_not_finite(folder: Path, capsys, monkeypatch) -> None:
    """The run ends at it; the same command with `engine.max_skipped` goes on without it."""
    forward = MIMObjective.forward
    poison: list[float] = []

    def poisoned(self, batch, counts):
        output = forward(self, batch, counts)
        return output._replace(losses={"mim": output.losses["mim"] * (poison.pop() if poison else 1)})

    monkeypatch.setattr(MIMObjective, "forward", poisoned)
    at_step(monkeypatch, 2, lambda: poison.append(float("nan")))
    words = ["train", *SMALL, "run=poisoned"]
    assert main(words) == 1
    said = last_line(capsys)
    assert said.startswith("error: step 2: mim is nan, gradient norm is nan; samples of the batch: ")
    assert said.endswith("engine.max_skipped=N skips such a step")
    assert json.loads(Path("poisoned/last.json").read_text())["step"] == 2
    assert main([*words, "engine.max_skipped=1"]) == 0
    assert "skipped step 2: mim is nan" in capsys.readouterr().err
    lines = [json.loads(line) for line in Path("poisoned/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line.get("skipped")] == [3]
    assert not all(torch.equal(weights("poisoned")[name], value) for name, value in weights("whole").items())


def test_profile(folder: Path, capsys) -> None:
    assert main(["train", "--profile", "1", *SMALL, "run=profiled"]) == 0
    assert "wrote profiled/profile/step-000003.json.gz and profiled/profile/step-000003.txt" in capsys.readouterr().err
    assert_whole("profiled")
    line = json.loads(Path("profiled/metrics.jsonl").read_text().splitlines()[0])
    assert line["speed"].keys() == {"data_wait", "tokens_per_second", "memory_gib"}


def test_tokens_are_patches(folder: Path) -> None:
    line = json.loads(Path("whole/metrics.jsonl").read_text().splitlines()[0])
    per_sample = line["speed"]["tokens_per_second"] / line["samples_per_second"]
    side = launch.compose.from_yaml("whole/config.yaml").data.size[0] // 16
    assert per_sample == pytest.approx(side**2, rel=1e-3)
