"""Intervals by the bootstrap against what is known of means."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vlbeit.bootstrap import mean_interval, statistic_interval


def by_hand(values, resamples=1000):
    """The plain way: draw samples, one set after the other."""
    generator = np.random.default_rng(7)
    means = [values[generator.integers(len(values), size=len(values))].mean() for _ in range(resamples)]
    return np.quantile(means, [0.025, 0.975])


@pytest.mark.parametrize("kind", ["few values", "all different"])
def test_interval_of_a_mean(kind):
    generator = np.random.default_rng(0)
    values = generator.choice([0, 0.3, 0.9, 1.0], 400) if kind == "few values" else generator.normal(3, 2, 400)
    low, high = mean_interval(values)
    error = values.std() / math.sqrt(len(values))
    assert low < values.mean() < high
    assert [low, high] == pytest.approx(by_hand(values).tolist(), abs=0.35 * error)  # the ends are random themselves
    assert [low, high] == pytest.approx([values.mean() - 1.96 * error, values.mean() + 1.96 * error], abs=0.35 * error)
    assert mean_interval(values) == (low, high) != mean_interval(values, seed=1)


def test_it_holds_the_true_mean_as_often_as_it_says():
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        low, high = mean_interval(generator.random(150) < 0.3, resamples=400)
        held += low <= 0.3 <= high
    assert 0.92 <= held / 400 <= 0.98


def test_order_does_not_matter_and_one_value_has_no_spread():
    assert mean_interval([1, 0, 1]) == mean_interval([0, 1, 1])
    assert mean_interval([0.5] * 10) == (0.5, 0.5)


@pytest.mark.parametrize("values", [[], [0.5, float("nan")]])
def test_what_has_no_mean(values):
    with pytest.raises(ValueError, match="at least one"):
        mean_interval(values)


def test_a_validation_set_of_vqa_takes_no_time_and_no_memory(monkeypatch):
    """214,354 questions: a thousand resamples are counts of a handful of scores, not index tables of 1.7 GB."""
    values = np.random.default_rng(0).choice([0, 0.3, 0.6, 0.9, 1.0], 214_354)
    asked = []
    draw = np.random.default_rng

    class Counting:
        def __init__(self, seed):
            self.generator = draw(seed)

        def multinomial(self, total, shares, size):
            asked.append(size * len(shares))
            return self.generator.multinomial(total, shares, size)

    monkeypatch.setattr(np.random, "default_rng", Counting)
    low, high = mean_interval(values)
    assert asked == [5000] and 0.003 < high - low < 0.004


def test_a_statistic_of_sums():
    generator = np.random.default_rng(0)
    parts = np.stack([generator.integers(0, 2, 300), np.ones(300)], axis=1).astype(float)
    low, high = statistic_interval(parts, lambda sums: sums[:, 0] / sums[:, 1])
    assert [low, high] == pytest.approx(mean_interval(parts[:, 0]), abs=0.01)
    ratio = statistic_interval(parts[:1], lambda sums: np.full(len(sums), np.nan) if len(sums) < 2 else sums[:, 1])
    assert ratio == (1, 1)
    with pytest.raises(ValueError, match="no sample"):
        statistic_interval(parts[:0], lambda sums: sums[:, 0])


def test_many_samples_are_drawn_a_few_sets_at_a_time(monkeypatch):
    values = np.random.default_rng(0).normal(size=300)
    whole = mean_interval(values)
    monkeypatch.setattr("vlbeit.bootstrap._CELLS", 1000)
    assert mean_interval(values) == pytest.approx(whole, rel=1e-12)
