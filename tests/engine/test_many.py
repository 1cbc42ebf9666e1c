"""Two gloo processes: sharded weights (FSDP2), states in parts, written later; and processes that end together."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both processes left of every job in ranks.py."""
    root = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, Path(__file__).with_name("ranks.py"), root]
    subprocess.run(command, check=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return root


@pytest.fixture(scope="module")
def runs(ranks: Path) -> dict[str, Path]:
    """Runs of all ways to save, by processes with whole weights and with sharded ones."""
    codes = json.loads((ranks / "codes.json").read_text())
    for name in ("ddp", "fsdp"):
        assert codes[name] == [0, 0], [(ranks / name / f"said{rank}").read_text() for rank in (0, 1)]
    return {name: ranks / name for name in ("ddp", "fsdp")}


@pytest.fixture(scope="module")
def one(toy, tmp_path_factory: pytest.TempPathFactory):
    """The unbroken run of one process, which holds the whole batch."""
    engine = make_one(toy, tmp_path_factory.mktemp("one"))
    engine.fit()
    return engine


def make_one(toy, path: Path, **settings):
    own = {"micro_batch": 8, "dropout": 0.0, "precision": "fp64", "ema_decay": 0.9, "clip_grad": 0.5}
    return toy.make_engine(path, **own, **settings)


def weights(engine) -> dict[str, torch.Tensor]:
    averaged = {f"ema.{name}": value for name, value in engine.ema.module.state_dict().items()}
    moments = {
        f"{name}.{key}": value
        for name, parameter in engine.objective.named_parameters()
        for key, value in engine.optimizer.optimizer.state[parameter].items()
    }
    return {**engine.objective.state_dict(), **averaged, **moments}


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("mode", ["whole", "parts", "whole, later", "parts, later"])
def test_state_of_two_processes_is_that_of_one(toy, runs, one, tmp_path, kind, mode):
    """Restored on one process: weights, average and moments of the run that one process made unbroken."""
    path = tmp_path / "run"
    shutil.copytree(runs[kind] / mode, path)
    files = {file.name for file in (path / "state" / "step-000012").iterdir()}
    parts = {".metadata", "__0_0.distcp", "__1_0.distcp", "progress.pt"}
    assert files == (parts if "parts" in mode else {"model.safetensors", "ema.safetensors", "progress.pt"})
    engine = make_one(toy, path)
    engine.restore()
    assert engine.state == one.state
    found = weights(engine)
    for name, value in weights(one).items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-12, msg=name)


def evaluations(run: Path) -> dict[int, float]:
    """After the steps at which every run evaluates."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {
        line["step"]: line["evaluation"]["distance"] for line in lines if "evaluation" in line and line["step"] != 8
    }


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_evaluation_and_export_see_whole_weights(runs, one, kind):
    for mode in ("whole", "parts, later"):
        path, alone = runs[kind] / mode, one.folder.path
        assert evaluations(path) == pytest.approx(evaluations(alone), abs=1e-12)
        exported = [torch.load(p / "checkpoint" / "weights.pt") for p in (path, alone)]
        assert exported[0].keys() == exported[1].keys()
        for name, value in exported[1].items():
            torch.testing.assert_close(exported[0][name], value, rtol=0, atol=1e-12, msg=name)


def test_weights_alone_from_parts(runs, one):
    told = {kind: json.loads((path / "rank0.json").read_text()) for kind, path in runs.items()}
    assert [told[kind]["sharded"] for kind in ("ddp", "fsdp")] == [False, True]
    for kind in told:
        assert told[kind]["scale"] == pytest.approx(one.objective.scale.item(), abs=1e-12)


@pytest.mark.parametrize("later", [False, True])
def test_a_part_that_cannot_be_written(runs, later):
    """All processes say so, and the state before stays the last one."""
    for kind, path in runs.items():
        said = [json.loads((path / f"rank{rank}.json").read_text())[f"full disk, {later}"] for rank in (0, 1)]
        assert said[0] == said[1] and "step-000008: the disk is full: free space" in said[0], (kind, said)
        run = path / f"full {later}"
        assert json.loads((run / "last.json").read_text())["step"] == 4
        assert [state.name for state in (run / "state").iterdir()] == ["step-000004"]


@pytest.fixture(scope="module")
def ended(ranks: Path) -> dict[str, dict]:
    """What both processes said and how they ended, by the way in which one of them did."""
    found = {}
    for way, codes in json.loads((ranks / "codes.json").read_text()).items():
        files = [ranks / way / f"rank{rank}.json" for rank in (0, 1)]
        told = [json.loads(file.read_text()) if file.exists() else {} for file in files]
        found[way] = {"told": told, "codes": codes, "said": [(ranks / way / f"said{r}").read_text() for r in (0, 1)]}
    return found


@pytest.mark.parametrize(
    ("way", "words", "code"),
    [
        ("killed", "has ended without a word: killed, or out of memory", -signal.SIGKILL),
        ("refused", "has stopped: shard 7 has vanished", 1),
        ("broken", "has stopped: KeyError: 'ours'", 3),
    ],
)
def test_one_ends_and_so_do_all(ended, way, words, code):
    """One line: who, why, what is intact; long before the time limit of exchanges."""
    run = ended[way]
    told = run["told"][0]
    assert run["codes"] == [1, code], run
    assert told["said"].startswith("process 1 of 2 (") and words in told["said"], told
    assert told["said"].endswith("step-000003 is intact: run the same command again") and not told["quiet"]
    assert told["seconds"] < 30


def test_one_that_does_not_answer_is_named(ended):
    told = ended["stopped"]["told"][0]
    assert told["said"].startswith("process 1 of 2 (") and "does not answer (engine.timeout=" in told["said"], told
    assert ended["stopped"]["codes"][0] == 1


def test_what_all_have_met_is_said_once(ended):
    run = ended["agreed"]
    assert run["codes"] == [1, 1]
    assert [told["said"] for told in run["told"]] == ["all of us"] * 2
    assert sorted(told["quiet"] for told in run["told"]) == [False, True]


def test_nobody_waits_for_a_dead_main_process(ended):
    """Rank 1 waits outside any exchange, and the store has gone with the main process: its thread ends it."""
    run = ended["waits"]
    assert run["codes"] == [-signal.SIGKILL, 1]
    assert "process 0" in str(run["told"][1]) + run["said"][1]


def test_what_the_main_process_alone_meets_is_said_once(ended):
    run = ended["main refused"]
    assert run["codes"] == [1, 1]
    assert [told["said"] for told in run["told"]] == ["runs/vl is in use"] * 2
    assert sorted(told["quiet"] for told in run["told"]) == [False, True]
    assert run["said"] == ["", ""], "no stack of torch"


def test_nobody_waits_for_a_main_process_that_has_failed(ended):
    """Rank 1 hears of it outside any exchange, before the store goes and long before its thread ends it."""
    run = ended["main broken"]
    assert run["codes"] == [3, 1]
    told = run["told"][1]
    assert told["said"].startswith("process 0 of 2 (") and "has stopped: KeyError: 'ours'; no state" in told["said"]
    assert told["seconds"] < 15 and run["said"][1] == ""
