"""The engine on two gloo processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, Path(__file__).with_name("toy.py"), "ranks", folder]
    workers = [
        subprocess.Popen(command, env={**os.environ, **common, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"
    ]
    assert [process.wait(timeout=200) for process in workers] == [0, 0]
    return folder


def test_weights_of_one_process(toy, ran, tmp_path):
    """Each process accumulates two micro-batches; some have no terms of the second loss."""
    one = toy.make_engine(tmp_path, micro_batch=8, dropout=0.0, precision="fp64", ema_decay=0.9)
    one.fit()
    for file, module in {"model": one.objective, "ema": one.ema.module}.items():
        for name, value in load_file(ran / "whole" / "state" / "step-000012" / f"{file}.safetensors").items():
            torch.testing.assert_close(value, module.state_dict()[name], rtol=0, atol=1e-12)


def test_metrics_of_one_process(toy, ran, tmp_path):
    toy.make_engine(tmp_path, micro_batch=8, dropout=0.0, precision="fp64", ema_decay=0.9).fit()
    both = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (ran / "whole", tmp_path)]
    for two, one in zip(*[map(json.loads, lines) for lines in both], strict=True):
        assert (two["step"], two.get("samples")) == (one["step"], one.get("samples"))
        assert two.get("total") == pytest.approx(one.get("total"))
        assert two.get("logs") == pytest.approx(one.get("logs"))
        assert two.get("evaluation") == pytest.approx(one.get("evaluation"))


def test_unreadable_samples_of_all(ran):
    state = torch.load(ran / "whole" / "state" / "step-000012" / "progress.pt", weights_only=True)["state"]
    assert state["bad"] == ["step3-sample0", "step3-sample2", "step3-sample4", "step3-sample6"]


def test_all_stop_for_one(ran):
    """A NaN on rank 1, and a signal to rank 1: both processes stop, at the same step, with the same words."""
    logs = [json.loads((ran / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert logs[0] == logs[1]
    assert (
        logs[0]["nan"].startswith("step 2: ")
        and "samples of the batch: step2-sample6, step2-sample7." in logs[0]["nan"]
    )
    assert logs[0]["stop"].startswith("stopped after step 5 of 12")
    assert json.loads((ran / "stop" / "last.json").read_text())["step"] == 5


def test_sinks_that_cannot_be_opened_end_all(ran):
    logs = [json.loads((ran / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert logs[0]["sinks"] == logs[1]["sinks"] and "sinks/environment.json" in logs[0]["sinks"]


def test_an_evaluation_is_broken_off_on_all(ran):
    """A signal to rank 1 in its evaluation: rank 0 ends its own, then both save and stop; the evaluation is owed."""
    logs = [json.loads((ran / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert logs[0]["evaluation"] == logs[1]["evaluation"]
    assert logs[0]["evaluation"].startswith("stopped after step 5 of 12")
    state = torch.load(ran / "evaluation" / "state" / "step-000005" / "progress.pt", weights_only=True)["state"]
    assert (state["step"], state["evaluated"], state["best"]) == (5, 0, None)
