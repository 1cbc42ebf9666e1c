from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlbeit.config import OptimConfig
from vlbeit.engine.schedule import make_schedule

GOLDEN = Path(__file__).parents[1] / "golden" / "trajectory"
COSINE = {"schedule": "cosine", "warmup_steps": 10}
LINEAR = {"schedule": "linear", "warmup_steps": 5}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("beit_mim", {"lr": 1.5e-3, "min_lr": 1e-5, **COSINE}),
        ("beit_classification", {"lr": 4e-3, "min_lr": 1e-6, **COSINE}),
        ("vlmo_textmlm", {"lr": 1e-3, **LINEAR}),
        ("vlmo_vl", {"lr": 1e-3, **LINEAR}),
        ("vlmo_vqa", {"lr": 6e-4, **LINEAR}),
    ],
)
def test_reference_rates(name, settings):
    expected = json.loads((GOLDEN / f"{name}.json").read_text())["lr"]
    schedule = make_schedule(OptimConfig(**settings), len(expected))
    assert [schedule(step) for step in range(len(expected))] == pytest.approx(expected, rel=0, abs=1e-15)


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_share_of_steps_as_warmup(kind):
    share = make_schedule(OptimConfig(schedule=kind, warmup_steps=0.29), 100)
    count = make_schedule(OptimConfig(schedule=kind, warmup_steps=29), 100)
    assert [share(step) for step in range(100)] == [count(step) for step in range(100)]
    assert share(0) == 0 < share(1) < share(27)


def test_constant_and_no_warmup():
    assert make_schedule(OptimConfig(schedule="constant", lr=0.5), 10)(0) == 0.5
    assert make_schedule(OptimConfig(schedule="constant", lr=0.5, warmup_steps=4), 10)(9) == 0.5
    assert make_schedule(OptimConfig(schedule="linear", lr=0.5), 10)(0) == 0.5
    assert make_schedule(OptimConfig(schedule="cosine", lr=0.5), 10)(0) == 0.5


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_run_shorter_than_its_warmup(kind):
    schedule = make_schedule(OptimConfig(schedule=kind, lr=1.0, warmup_steps=1000), 2)
    assert 0 == schedule(0) < schedule(1) < 0.01
