"""A run that was broken off, by whatever, ends with the very weights of the unbroken run."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from vlbeit.config import OptimConfig
from vlbeit.engine import folder as folder_module
from vlbeit.engine.checkpoint import Trained, read_state, write_state
from vlbeit.engine.folder import RunFolder
from vlbeit.engine.optim import build_optimizer
from vlbeit.engine.state import TrainingState
from vlbeit.errors import DataError

TOY = Path(__file__).with_name("toy.py")


def final(engine) -> dict[str, torch.Tensor]:
    return {**engine.objective.state_dict(), **{f"ema.{k}": v for k, v in engine.ema.module.state_dict().items()}}


def assert_same_bits(left, right):
    for name, value in final(left).items():
        assert torch.equal(value, final(right)[name]), name


def watched(toy, micro_batch: int = 8):
    """The toy's samples, which keep the steps that were trained on in `seen`."""

    class Watched(toy.Samples):
        def steps(self, start, stop):
            for step, batches in enumerate(super().steps(start, stop), start):
                self.seen.append(step)
                yield batches

    samples = Watched(micro_batch)
    samples.seen = []
    return samples


@pytest.fixture(scope="module")
def unbroken(toy, tmp_path_factory):
    torch.set_num_threads(1)
    engine = toy.make_engine(tmp_path_factory.mktemp("unbroken"), micro_batch=2, ema_decay=0.9)
    engine.fit()
    return engine


class Crash(BaseException):
    pass


@pytest.mark.parametrize("at", range(12))
def test_crash_at_any_step(toy, tmp_path, unbroken, at):
    class Crashing(toy.Samples):
        def batch(self, step, start, stop):
            if (step, start) == (at, 4):  # in the middle of an accumulation
                raise Crash
            return super().batch(step, start, stop)

    with pytest.raises(Crash):
        toy.make_engine(tmp_path, stream=Crashing(2), ema_decay=0.9).fit()
    stream = watched(toy, micro_batch=2)
    engine = toy.make_engine(tmp_path, stream=stream, ema_decay=0.9)
    state = engine.fit()
    assert stream.seen == list(range(at // 4 * 4, 12))
    assert_same_bits(engine, unbroken)
    assert state == unbroken.state
    assert same_metrics(tmp_path, unbroken.folder.path)
    exported = [torch.load(path / "checkpoint" / "weights.pt") for path in (tmp_path, unbroken.folder.path)]
    assert all(torch.equal(exported[0][name], exported[1][name]) for name in exported[0])


def same_metrics(left: Path, right: Path) -> bool:
    def read(path):
        text = (path / "metrics.jsonl").read_text()
        return [
            {k: v for k, v in json.loads(line).items() if k not in ("time", "samples_per_second", "speed")}
            for line in text.splitlines()
        ]

    return read(left) == read(right)


def test_killed_anywhere(toy, tmp_path, unbroken):
    """kill -9, also at every stage of writing a state."""
    subprocess.run([sys.executable, TOY, "kill", tmp_path], check=True, capture_output=True, timeout=300)
    assert {path.name for path in tmp_path.iterdir()} == toy.KILLS.keys()
    for name in toy.KILLS:
        path = tmp_path / name
        stream = watched(toy, micro_batch=2)
        engine = toy.make_engine(path, stream=stream, ema_decay=0.9)
        before = engine.folder.last_step()
        assert before == {"first batch": None, "old state moved away": 12}.get(name, 4), name
        engine.fit()
        assert stream.seen == list(range(before or 0, 12)), name
        assert_same_bits(engine, unbroken)
        assert same_metrics(path, unbroken.folder.path), name
        assert not list(path.rglob(".tmp-*"))
        assert sorted(p.name for p in (path / "state").iterdir()) == ["step-000008", "step-000012"]


@pytest.mark.parametrize("name", ["adamw", "lamb", "lion", "sgd", "adafactor", "radam", "adopt"])
def test_every_optimizer_resumes_to_the_bit(toy, tmp_path, name):
    settings = {"optimizer": name, "ema_decay": 0.9}
    whole = toy.make_engine(**settings)
    whole.fit()
    toy.make_engine(tmp_path, **settings).fit()
    (tmp_path / "last.json").write_text('{"step": 8}')
    stream = watched(toy)
    resumed = toy.make_engine(tmp_path, stream=stream, **settings)
    resumed.fit()
    assert stream.seen == [8, 9, 10, 11]
    assert_same_bits(resumed, whole)


def test_finished_run_does_nothing_and_longer_one_goes_on(toy, tmp_path):
    toy.make_engine(tmp_path).fit()
    before = (tmp_path / "metrics.jsonl").read_bytes()
    assert toy.make_engine(tmp_path).fit().step == 12
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert toy.make_engine(tmp_path, steps=16).fit().step == 16


def test_metrics_are_cut_back_to_the_state(toy, tmp_path):
    toy.make_engine(tmp_path).fit()
    (tmp_path / "last.json").write_text('{"step": 8}')
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "torn')
    toy.make_engine(tmp_path).restore()
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1] == 8 and steps == sorted(steps)


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["_flush_tree", "_flush_folder", "write_json"])
def test_full_disk_leaves_the_state_before(toy, tmp_path, monkeypatch, unbroken, call):
    class Filling(toy.Samples):
        def steps(self, start, stop):
            for step, batches in enumerate(super().steps(start, stop), start):
                if step == 6:
                    monkeypatch.setattr(folder_module, call, full_disk)
                yield batches

    with pytest.raises(DataError, match=r"cannot write .*step-000008: the disk is full: free space and run the same"):
        toy.make_engine(tmp_path, stream=Filling(2), ema_decay=0.9).fit()
    monkeypatch.undo()
    assert not list((tmp_path / "state").glob(".tmp-*"))
    stream = watched(toy, micro_batch=2)
    engine = toy.make_engine(tmp_path, stream=stream, ema_decay=0.9)
    assert engine.folder.last_step() == 4
    engine.fit()
    assert stream.seen == list(range(4, 12))
    assert_same_bits(engine, unbroken)


@pytest.mark.parametrize("size", ["550k", "700k"])  # runs out in the weights, in the moments of the optimizer
def test_really_full_disk(tmp_path, size):
    """torch and safetensors each report a full disk in their own way."""
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", tmp_path], capture_output=True
    ).returncode:
        pytest.skip("may not mount a small disk here")
    model = torch.nn.Linear(200, 200)
    optimizer = build_optimizer([{"params": list(model.parameters())}], OptimConfig())
    model(torch.ones(1, 200)).sum().backward()
    optimizer.step()
    trained = Trained(model, optimizer, None, None)
    run = RunFolder(tmp_path / "run")
    try:
        run.save_state(1, lambda folder: write_state(folder, trained, TrainingState(step=1)))
        with pytest.raises(DataError, match=r"step-000002: the disk is full: free space and run the same command"):
            run.save_state(2, lambda folder: write_state(folder, trained, TrainingState(step=2)))
        assert [path.name for path in run.states.iterdir()] == ["step-000001"]
        assert read_state(run.last_state(), trained).step == 1
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


@pytest.mark.parametrize("file", ["model.safetensors", "ema.safetensors", "progress.pt"])
def test_damaged_state_is_named(toy, tmp_path, file):
    toy.make_engine(tmp_path, ema_decay=0.9, steps=4).fit()
    damaged = tmp_path / "state" / "step-000004" / file
    damaged.write_bytes(damaged.read_bytes()[:50])
    with pytest.raises(DataError, match=r"cannot go on from .*step-000004: .*last.json"):
        toy.make_engine(tmp_path, ema_decay=0.9, steps=8).fit()


SAVED = {"in parts": {"checkpoint": "sharded"}, "later": {"async_save": True, "checkpoint": "sharded"}}


@pytest.mark.parametrize("mode", SAVED)
@pytest.mark.parametrize("name", ["adamw", "lamb", "lion", "sgd", "adafactor", "radam", "adopt"])
def test_parts_resume_to_the_bit_and_become_whole(toy, tmp_path, name, mode):
    """Saved in parts, gone on with in whole states, and in parts again: the unbroken run."""
    settings = {"optimizer": name, "ema_decay": 0.9, "schedule_steps": 12}
    whole = toy.make_engine(**settings)
    whole.fit()
    toy.make_engine(tmp_path, steps=4, **settings, **SAVED[mode]).fit()
    assert (tmp_path / "state" / "step-000004" / ".metadata").exists()
    toy.make_engine(tmp_path, steps=8, **settings).fit()
    assert (tmp_path / "state" / "step-000008" / "model.safetensors").exists()
    resumed = toy.make_engine(tmp_path, **settings, **SAVED[mode])
    resumed.fit()
    assert_same_bits(resumed, whole)


def test_training_goes_on_while_a_state_is_written(toy, tmp_path, monkeypatch, unbroken):
    """The step after a save does not wait for it, what is saved is of the step before, the next save waits."""
    go, seen = threading.Event(), []
    flush = folder_module._flush_tree

    def slow(folder):
        seen.append((folder.name, go.wait(20)))
        flush(folder)

    class Watching(toy.Samples):
        def steps(self, start, stop):
            for step, batches in enumerate(super().steps(start, stop), start):
                if step == 6:
                    assert not (tmp_path / "last.json").exists(), "named before it was whole"
                    go.set()
                yield batches

    monkeypatch.setattr(folder_module, "_flush_tree", slow)
    engine = toy.make_engine(tmp_path, stream=Watching(2), ema_decay=0.9, async_save=True)
    engine.fit()
    assert seen == [(f".tmp-step-{step:06d}", True) for step in (4, 8, 12)]
    assert_same_bits(engine, unbroken)
    (tmp_path / "last.json").write_text('{"step": 8}')
    again = toy.make_engine(tmp_path, stream=toy.Samples(2), ema_decay=0.9)
    again.fit()
    assert_same_bits(again, unbroken)


def test_killed_while_a_state_is_written(toy, tmp_path):
    """The state before is the last one, and what was begun is gone after the next start."""
    child = os.fork()
    if child == 0:
        flush = folder_module._flush_tree

        def deadly(folder):
            if "step-000008" in folder.name:
                os.kill(os.getpid(), signal.SIGKILL)
            flush(folder)

        folder_module._flush_tree = deadly
        toy.make_engine(tmp_path, checkpoint="sharded", async_save=True).fit()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert (tmp_path / "state" / ".tmp-step-000008").is_dir()
    engine = toy.make_engine(tmp_path)
    engine.restore()
    assert engine.state.step == 4 and [p.name for p in (tmp_path / "state").iterdir()] == ["step-000004"]


def test_full_disk_behind_the_back(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "_flush_tree", full_disk)
    with pytest.raises(DataError, match=r"cannot write .*step-000004: the disk is full: free space and run the same"):
        toy.make_engine(tmp_path, async_save=True).fit()
    assert not list((tmp_path / "state").iterdir())


def test_a_pickle_that_names_code_is_not_read(toy, tmp_path):
    toy.make_engine(tmp_path, steps=4, checkpoint="sharded").fit()
    file = tmp_path / "state" / "step-000004" / ".metadata"
    file.write_bytes(b"cos\nsystem\n(S'touch %s'\ntR." % str(tmp_path / "ran").encode())
    with pytest.raises(DataError, match=r"cannot go on from .*: .metadata names (os|posix).system"):
        toy.make_engine(tmp_path, steps=8).fit()
    assert not (tmp_path / "ran").exists()


def test_parts_of_another_model_are_named(toy, tmp_path):
    toy.make_engine(tmp_path, steps=4, checkpoint="sharded").fit()
    engine = toy.make_engine(tmp_path, steps=8, ema_decay=0.9)
    with pytest.raises(DataError, match=r"cannot go on from .*step-000004: it has no ema/"):
        engine.fit()
