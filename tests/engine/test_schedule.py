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


def test_poly_falls_in_a_line_under_a_growing_factor():
    """By hand, as mmcv's poly policy with linear warmup from a millionth."""
    schedule = make_schedule(OptimConfig(schedule="poly", lr=8e-4, warmup_steps=4), 8)
    factors = [1e-6, 0.25 + 0.75e-6, 0.5 + 0.5e-6, 0.75 + 0.25e-6, 1, 1, 1, 1]
    straight = [8e-4, 7e-4, 6e-4, 5e-4, 4e-4, 3e-4, 2e-4, 1e-4]
    expected = [factor * rate for factor, rate in zip(factors, straight, strict=True)]
    assert [schedule(step) for step in range(8)] == pytest.approx(expected, rel=1e-12)
    assert schedule(8) == schedule(9) == 0


def test_poly_of_the_ade20k_recipe():
    schedule = make_schedule(OptimConfig(schedule="poly", lr=3e-5, warmup_steps=1500), 160_000)
    assert schedule(0) == pytest.approx(3e-11)
    assert schedule(750) == pytest.approx(0.5000005 * 3e-5 * (1 - 750 / 160_000))
    assert schedule(1500) == pytest.approx(3e-5 * 0.990625)
    assert schedule(80_000) == pytest.approx(1.5e-5)


def test_poly_power_and_floor():
    schedule = make_schedule(OptimConfig(schedule="poly", lr=1.0, min_lr=0.2, power=2.0), 10)
    assert [schedule(step) for step in (0, 5, 10)] == pytest.approx([1.0, 0.2 + 0.8 * 0.25, 0.2])
