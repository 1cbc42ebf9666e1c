"""Confidence intervals by the bootstrap: samples are drawn anew, with replacement, and the spread is looked at.

The percentile method (Efron 1979): of `RESAMPLES` sets of N samples, each drawn from the N that there are, the middle
95 %. Samples count as independent of each other; several questions about one picture are not quite, so that an
interval over questions is a little narrow. Seeded: the same scores always give the same interval.

Legend: N samples, V distinct values, F parts of a sample that add up over a set, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95
_CELLS = 1 << 21  # counts that are held at a time: 16 MiB

Interval = tuple[float, float]


def mean_interval(values: Sequence[float] | np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """95 % interval of the mean of N values, in their unit.

    Which sample a value belongs to does not matter to the mean: drawn are the counts of the V distinct values, all at
    once, so that a million scores of which a handful differ take no longer than a hundred. Raises ValueError without a
    value, and for one that is not finite.
    """
    values_N = np.asarray(values, dtype=np.float64)
    if not values_N.size or not np.isfinite(values_N).all():
        raise ValueError(f"the mean of {values_N.size} values has no interval: give finite ones, at least one")
    values_V, counts_V = np.unique(values_N, return_counts=True)
    drawn = _counts(counts_V, resamples, seed)
    return _middle(np.concatenate([counts_RV @ values_V for counts_RV in drawn]) / values_N.size)


def statistic_interval(
    parts_NF: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """95 % interval of a number that hangs on sums over the samples, such as a mean IoU on the summed areas.

    `statistic` takes sums [R, F] and gives [R]; NaN, where a set of samples has no such number, is left out. Raises
    ValueError without a sample.
    """
    if not len(parts_NF):
        raise ValueError("no sample to draw from")
    ones_N = np.ones(len(parts_NF), dtype=np.int64)
    drawn = _counts(ones_N, resamples, seed)
    return _middle(np.concatenate([statistic(counts_RN @ parts_NF) for counts_RN in drawn]))


def _counts(counts_V: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of V kinds of samples was drawn, int64 [R, V], a few sets at a time."""
    generator, total = np.random.default_rng(seed), int(counts_V.sum())
    rows = max(1, _CELLS // len(counts_V))
    for start in range(0, resamples, rows):
        yield generator.multinomial(total, counts_V / total, size=min(rows, resamples - start))


def _middle(numbers_R: np.ndarray) -> Interval:
    low, high = np.nanquantile(numbers_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
