"""F1 of one picture, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from vlbeit.tasks.detection.agreement import picture_f1
from vlbeit.tasks.detection.evaluator import DetectionEvaluator

LEFT, RIGHT, ALL = [0, 0, 10, 10], [20, 0, 30, 10], [0, 0, 30, 10]


def found(*rows):
    """Rows of box, label, score."""
    return dict(zip(("boxes", "labels", "scores"), map(list, zip(*rows, strict=True)), strict=True)) if rows else NONE


def truth(*rows):
    """Rows of box, label, whether it is a crowd."""
    names = ("boxes", "labels", "crowd")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)) if rows else {name: [] for name in names}


NONE = {"boxes": [], "labels": [], "scores": []}
BOTH = truth((LEFT, 0, False), (RIGHT, 1, False))


@pytest.mark.parametrize(
    ("detections", "there", "expected"),
    [
        (NONE, truth(), 1),
        (NONE, BOTH, 0),
        (found((LEFT, 0, 0.9)), truth(), 0),
        (found((LEFT, 0, 0.9), (RIGHT, 1, 0.5)), BOTH, 1),
        (found((LEFT, 0, 0.9), (RIGHT, 1, 0.49)), BOTH, 2 / 3),  # too unsure to count
        (found((LEFT, 0, 0.9), (RIGHT, 0, 0.9)), BOTH, 1 / 2),  # of another class
        (found((LEFT, 0, 0.9), ([1, 0, 10, 10], 0, 0.8)), BOTH, 1 / 2),  # found twice, counted once
        (found(([0, 0, 10, 19], 0, 0.9)), truth((LEFT, 0, False)), 1),  # IoU 10/19
        (found(([0, 0, 10, 21], 0, 0.9)), truth((LEFT, 0, False)), 0),  # IoU 10/21
        (found((LEFT, 0, 0.9)), truth((ALL, 0, True)), 1),  # within a crowd: neither right nor wrong
        (found((LEFT, 0, 0.9)), truth((ALL, 1, True)), 0),  # a crowd of others
        (found((LEFT, 0, 0.9)), truth(([5.1, 0, 30, 10], 0, True)), 0),  # less than half within it
        (found((LEFT, 0, 0.9)), truth((LEFT, 0, False), (ALL, 0, True)), 1),
    ],
)
def test_counted_by_hand(detections, there, expected):
    assert picture_f1(detections, there) == pytest.approx(expected)


def test_the_surest_chooses_first_and_takes_what_it_overlaps_most():
    there = truth(([0, 0, 10, 10], 0, False), ([3, 0, 13, 10], 0, False))
    # the sure one fits the second better, and leaves the first to the other
    assert picture_f1(found(([0, 0, 10, 10], 0, 0.6), ([2, 0, 12, 10], 0, 0.9)), there) == 1
    # it takes the only box that the other could have found: the second lies just below an IoU of a half
    assert picture_f1(found(([0, 0, 10, 10], 0, 0.9), ([0, 0, 10, 9], 0, 0.6)), there) == 0.5
    assert picture_f1(found((LEFT, 0, 0.9), (LEFT, 0, 0.6)), truth((LEFT, 0, False))) == pytest.approx(2 / 3)


def test_the_evaluator_averages_over_pictures_and_names_them():
    there = {**BOTH, "areas": [100.0, 100.0]}
    evaluator = DetectionEvaluator(["a", "b"])
    hits = [found((LEFT, 0, 0.9), (RIGHT, 1, 0.9)), found((LEFT, 0, 0.9)), found((LEFT, 1, 0.9))]
    for number, each in enumerate(hits):
        evaluator.pictures[f"p{number}"] = {"truth": there, "found": each}
    numbers = evaluator.compute()
    assert numbers["f1"] == pytest.approx(100 * np.mean([1, 2 / 3, 0])) and numbers["images"] == 3
    details = evaluator.details()
    assert details["images"] == [
        {"sample_id": "p0", "score": 1.0},
        {"sample_id": "p1", "score": pytest.approx(2 / 3)},
        {"sample_id": "p2", "score": 0.0},
    ]
    assert [row["class"] for row in details["classes"]] == ["a", "b"]
    low, high = evaluator.intervals()["f1"]
    assert 0 <= low < numbers["f1"] < high <= 100
