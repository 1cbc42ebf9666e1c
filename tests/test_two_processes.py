"""The command line on two gloo processes gives the weights of one: contrast, matching and masked words gathered.
A signal stops both, and they say how to go on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vlbeit import launch
from vlbeit.cli import main
from vlbeit.engine.loop import Engine

WORDS = ("train", "stage=vl", "init=none", "stage.negatives=hardest", "precision=fp64", "data.max_bad_fraction=0")


def test_vl_on_two_processes(scenes: Path, again: dict, tmp_path: Path, capsys) -> None:
    small = [word for word in again["vl"] if not word.startswith(("stage=", "steps=", "micro_batch_size="))]
    words = [*WORDS, *small, "steps=3"]
    with chdir(tmp_path):
        assert main([*words, "micro_batch_size=8", "run=one"]) == 0
    common = {**place_of_two(), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "vlbeit", *words, "micro_batch_size=4", "run=two"],
            cwd=tmp_path,
            env={**os.environ, **common, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in "01"
    ]
    try:
        said = [rank.communicate(timeout=120)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], said
    assert "training vl in two: 3 steps of 8 samples, 4 at a time in each of 2 processes" in said[0]
    assert "training" not in said[1], "only the main process talks"
    one, two = (load_file(tmp_path / run / "state/step-000003/model.safetensors") for run in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-10, msg=name)
    one, two = (json.loads((tmp_path / run / "evaluation.json").read_text()) for run in ("one", "two"))
    texts = {name: value for name, value in one.items() if isinstance(value, str)}
    assert {name: two.pop(name) for name in texts} == texts
    assert two == pytest.approx({name: value for name, value in one.items() if name not in texts}, rel=1e-6)
    with chdir(tmp_path):
        goes_on_with_one(words, capsys)


def place_of_two() -> dict[str, str]:
    """What two processes must know to meet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}


def goes_on_with_one(words: list[str], capsys) -> None:
    """From the state of two processes: `auto` keeps what is compared, another size is told and taken."""
    shutil.copytree("two", "other")
    capsys.readouterr()
    for run in ("one", "two"):
        assert main([*words, "steps=4", "micro_batch_size=auto", f"run={run}"]) == 0
        said = capsys.readouterr().out
        assert "8 samples, 8 at a time" in said and "was trained with" not in said
    one, two = (load_file(f"{run}/state/step-000004/model.safetensors") for run in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-10, msg=name)
    assert main([*words, "steps=4", "run=other", "micro_batch_size=4"]) == 0
    said = capsys.readouterr().out
    assert "note: other was trained with 2 x 4 samples at a time" in said and "now it is 1 x 4: what compares" in said


def test_stopped_they_name_their_launcher(again: dict, tmp_path: Path, capfd, monkeypatch) -> None:
    """The command by itself would go on with one process."""
    train_step = Engine.train_step

    def stopping(self: Engine, micro_batches: list) -> None:
        train_step(self, micro_batches)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Engine, "train_step", stopping)
    words, place = ["train", *again["mim"], "stage.target=pixels", "run=stopped"], place_of_two()
    children = []
    with chdir(tmp_path):
        for rank in "01":
            children.append(os.fork())
            if children[-1] == 0:
                os.environ |= {**place, "RANK": rank, "LOCAL_RANK": rank}
                code = main(words)
                sys.stderr.flush()
                os._exit(code)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    said = capfd.readouterr().err
    assert codes == [130, 130], said
    assert "state saved in stopped; to go on: by the same launcher, vlbeit train stage=mim" in said
    assert said.count("to go on:") == 1, "one of them says it"


def test_stopped_while_they_meet(again: dict, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(launch, "_accelerator", lambda config: os.kill(os.getpid(), signal.SIGTERM))
    with chdir(tmp_path):
        assert main(["train", *again["mim"], "stage.target=pixels", "run=meeting"]) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert "nothing is lost; to go on: by the same launcher, vlbeit train stage=mim" in said
