from __future__ import annotations

import io
import json

import pytest
import yaml
from rich.console import Console

from vlbeit.engine.sinks import JsonLines, Terminal, flat
from vlbeit.errors import UsageError

TRAINED = {
    "step": 5, "time": 1.0, "total": 2.5, "losses": {"itc": 2.0, "itm": 0.5}, "logs": {"accuracy": 0.25},
    "lr": 1e-4, "grad_norm": 1.0, "samples_per_second": 12.0,
}  # fmt: skip
EVALUATED = {"step": 5, "time": 1.0, "evaluation": {"overall": 61.25, "questions": 60000}}


def shown(terminal: bool) -> str:
    file = io.StringIO()
    sink = Terminal(0, 10, Console(file=file, force_terminal=terminal, width=160))
    sink.step(5), sink.write(TRAINED), sink.write(EVALUATED), sink.close()
    return file.getvalue()


def test_plain_lines_off_a_terminal():
    first, second = shown(terminal=False).splitlines()
    assert first.startswith("step 5/10  loss 2.5  itc 2  itm 0.5  lr 0.0001  12.0 samples/s  ETA 0:00:")
    assert second == "step 5  val  overall 61.25  questions 60000"


def test_bar_on_a_terminal():
    text = shown(terminal=True)
    assert "5/10" in text and "loss 2.5" in text and "questions 60000" in text and "\x1b" in text


def test_strict_json_lines(tmp_path):
    sink = JsonLines(tmp_path / "metrics.jsonl")
    sink.write(EVALUATED), sink.write({"step": 6, "losses": {"itc": float("nan")}})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [EVALUATED, {"step": 6, "losses": {"itc": None}}]


def test_names_for_trackers():
    assert flat({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a/b": 1, "a/c/d": 2, "e": 3}


SETTINGS = {"optim": {"lr": 0.1, "betas": [0.9, 0.95]}, "task": None, "seed": 3}


def test_tensorboard(toy, tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    toy.make_engine(tmp_path, trackers=["tensorboard"], settings=SETTINGS).fit()
    events = event_accumulator.EventAccumulator(str(tmp_path / "trackers" / "vlbeit"))
    events.Reload()
    assert {"total", "losses/fit", "evaluation/distance", "lr", "speed/data_wait"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("evaluation/distance")] == [5, 10, 12]
    (stored,) = (tmp_path / "trackers").rglob("hparams.yml")
    expected = {"optim/lr": 0.1, "optim/betas": "[0.9, 0.95]", "task": "null", "seed": 3}
    assert yaml.safe_load(stored.read_text()) == expected


def test_tensorboard_of_a_run_that_goes_on(toy, tmp_path):
    """What was written after the restored step is purged: no step is there twice."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    engine = toy.make_engine(tmp_path, trackers=["tensorboard"], log_every=1)
    with pytest.raises(RuntimeError, match="stumbled"):
        toy.in_step(engine, 6, stumble).fit()
    toy.make_engine(tmp_path, trackers=["tensorboard"], log_every=1).fit()
    events = event_accumulator.EventAccumulator(str(tmp_path / "trackers" / "vlbeit"))
    events.Reload()
    assert [event.step for event in events.Scalars("total")] == list(range(1, 13))


def stumble():
    raise RuntimeError("stumbled")


def test_wandb_without_network(toy, tmp_path, monkeypatch):
    """One run, also after it was broken off; the settings are its config."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    engine = toy.make_engine(tmp_path, trackers=["wandb"], settings=SETTINGS)
    with pytest.raises(RuntimeError, match="stumbled"):
        toy.in_step(engine, 6, stumble).fit()
    name = (tmp_path / "trackers" / "wandb-id").read_text()
    toy.make_engine(tmp_path, trackers=["wandb"], settings=SETTINGS).fit()
    found = [path for path in (tmp_path / "trackers" / "wandb").glob("offline-run-*")]
    assert len(found) == 2 and all(path.name.endswith(name) for path in found)


def test_a_tracker_that_fails_is_left_out(toy, tmp_path, caplog, capfd):
    """A full disk, say, which TensorBoard meets in a thread of its own: one line, and training goes on."""
    pytest.importorskip("tensorboard")
    from tensorboard.compat.tensorflow_stub.io import gfile

    engine = toy.make_engine(tmp_path, trackers=["tensorboard"], log_every=1)
    with pytest.MonkeyPatch.context() as patch:
        toy.in_step(engine, 3, lambda: patch.setattr(gfile.LocalFileSystem, "append", full))
        assert engine.fit().step == 12
    assert caplog.text.count("tensorboard has failed and is left out from here on (OSError: [Errno 28] full)") == 1
    assert "Traceback" not in capfd.readouterr().err and len((tmp_path / "metrics.jsonl").read_text().splitlines()) > 12


def full(*_):
    raise OSError(28, "full")


def test_names_of_runs_in_trackio(toy, tmp_path, monkeypatch):
    """It tells runs apart by their names alone: those of folders of one name differ, that of a run stays."""
    pytest.importorskip("trackio")
    asked: list[str] = []
    monkeypatch.setattr(
        "accelerate.Accelerator.init_trackers",
        lambda self, project, config, each: asked.append(each["trackio"]["name"]),
    )
    toy.make_engine(tmp_path / "a" / "mim", trackers=["trackio"], steps=4, schedule_steps=12).fit()
    toy.make_engine(tmp_path / "a" / "mim", trackers=["trackio"]).fit()
    toy.make_engine(tmp_path / "b" / "mim", trackers=["trackio"], steps=4).fit()
    first, again, other = asked
    assert first == again != other and all(name.startswith("mim-") for name in asked)


def refuse(*_):
    raise ConnectionError("no login\nhere")


def test_a_tracker_that_does_not_start(toy, tmp_path, monkeypatch):
    engine = toy.make_engine(tmp_path)
    monkeypatch.setattr(engine.accelerator, "init_trackers", refuse)
    engine.accelerator.log_with = ["refusing"]
    with pytest.raises(UsageError, match=r"engine.trackers=refusing does not start \(ConnectionError: no login here\)"):
        engine.fit()
