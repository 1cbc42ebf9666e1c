from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from vlbeit.engine.sinks import JsonLines, Terminal, flat

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
    assert second == "step 5  overall 61.25  questions 60000"


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


def test_trackers(toy, tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    toy.make_engine(tmp_path, trackers=["tensorboard"]).fit()
    events = event_accumulator.EventAccumulator(str(tmp_path / "trackers" / "vlbeit"))
    events.Reload()
    assert {"total", "losses/fit", "evaluation/distance", "lr"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("evaluation/distance")] == [5, 10, 12]
