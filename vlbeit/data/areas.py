"""Pixels by class, of a picture or of a set, and the shares that are made of them.

Legend: N pictures, K classes; the last axis is right, predicted, labelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Areas = Sequence[Sequence[int]]
"""Rows of class, pixels that are right, pixels predicted, pixels labelled, of the classes that occur in a picture."""


def stacked(pictures: Sequence[Areas], classes: int) -> np.ndarray:
    """float64 [N, K, 3]: what `Areas` says, zero for the classes that do not occur."""
    areas_NK3 = np.zeros((len(pictures), classes, 3))
    for number, rows in enumerate(pictures):
        for index, *areas in rows:
            areas_NK3[number, index] = areas
    return areas_NK3


def ratios(areas_K3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """IoU and accuracy by class, [..., K], NaN where a class does not occur (for the accuracy: is not labelled)."""
    right_K, predicted_K, labelled_K = np.moveaxis(areas_K3.astype(np.float64), -1, 0)
    with np.errstate(invalid="ignore"):
        return right_K / (predicted_K + labelled_K - right_K), right_K / labelled_K


def set_numbers(areas_K3: np.ndarray) -> dict[str, Any]:
    """`miou`, `macc` and `aacc` in percent, [...], of areas summed over a set, [..., K, 3]."""
    iou_K, accuracy_K = ratios(areas_K3)
    right, labelled = areas_K3[..., 0].sum(-1), areas_K3[..., 2].sum(-1)
    return {
        "miou": 100 * np.nanmean(iou_K, axis=-1),
        "macc": 100 * np.nanmean(accuracy_K, axis=-1),
        "aacc": 100 * right / labelled,
    }
