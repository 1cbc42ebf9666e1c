from __future__ import annotations

import io
import itertools
import re

import pytest
import torch
from rich.console import Console
from torch import nn

from vlbeit import dist
from vlbeit.engine import evaluate, progress
from vlbeit.engine.device import make_accelerator
from vlbeit.engine.progress import Progress, counting
from vlbeit.engine.sinks import Terminal


@pytest.fixture
def file() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds pass between two looks at the clock."""
    ticks = itertools.count(0, 10)
    monkeypatch.setattr(progress.time, "perf_counter", lambda: float(next(ticks)))


def plain(file: io.StringIO) -> Console:
    return Console(file=file, width=160)


def terminal(file: io.StringIO) -> Console:
    return Console(file=file, force_terminal=True, width=160)


def test_long_work_tells_how_far_it_is(file: io.StringIO, clock: None) -> None:
    with counting("evaluated", 20, console=plain(file)) as add:
        for _ in range(5):
            add(4)
    lines = file.getvalue().splitlines()
    assert lines and all(re.fullmatch(r"evaluated \d+ of 20  0\.\d samples/s  ETA 0:\d\d:\d\d", line) for line in lines)
    assert lines[-1].endswith("ETA 0:00:00") and len(lines) < 5, "not after every batch"


def test_short_work_is_quiet(file: io.StringIO) -> None:
    with counting("evaluated", 8, console=plain(file)) as add:
        add(8)
    assert file.getvalue() == ""


def test_what_was_done_before_counts_as_done_but_not_as_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    work = Progress(100, 60, plain(io.StringIO()))
    assert work.eta == "unknown"
    now[0] = 10.0
    work.reach(80)
    assert work.speed == 2 and work.eta == "0:00:10"


def test_counts_for_all_processes_and_speaks_for_the_main_one(
    file: io.StringIO, clock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "TOLD_EVERY", 0.0)
    monkeypatch.setattr(dist, "world_size", lambda: 3)
    with counting("answered", 10, 2, plain(file)) as add:
        add(2), add(2)
    assert [line.split("  ")[0] for line in file.getvalue().splitlines()] == ["answered 8 of 10", "answered 10 of 10"]
    monkeypatch.setattr(dist, "is_main", lambda: False)
    before = file.getvalue()
    with counting("answered", 10, 2, plain(file)) as add:
        add(2)
    assert file.getvalue() == before


def test_an_evaluation_has_its_bar_below_that_of_training(file: io.StringIO) -> None:
    training = Terminal(0, 10, terminal(file))
    training.step(5)
    with counting("evaluated", 8) as add:  # finds the terminal by itself
        add(4)
        Progress._bars.refresh()
    training.step(6)
    training.close()
    assert "evaluated" in file.getvalue() and "4/8" in file.getvalue() and "6/10" in file.getvalue()
    again = io.StringIO()
    with pytest.raises(KeyboardInterrupt), counting("evaluated", 8, console=terminal(again)) as add:
        add(8)
        raise KeyboardInterrupt
    assert "8/8" in again.getvalue(), "training's display is closed: this one is new"
    assert Progress._bars is None


def test_evaluators_tell_their_progress(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "TOLD_EVERY", 0.0)
    batches = [{"x": torch.ones(count, 1), "sample_id": ["a"] * count} for count in (2, 1)]
    evaluate.run_evaluators(nn.Identity(), batches, {}, make_accelerator("cpu"), 3)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["evaluated 2 of 3", "evaluated 3 of 3"]
