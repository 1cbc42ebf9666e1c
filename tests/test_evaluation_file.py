"""What evaluators say beside their numbers, and how evaluation.json keeps it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from vlbeit.data.records import ListRecords
from vlbeit.errors import DataError
from vlbeit.evaluation_file import collect, fingerprint, main_number, read_evaluation, scored_rows, write


class Plain:
    """An evaluator of a plug-in: numbers alone."""


class Full:
    over = "pictures"

    def __init__(self, score):
        self.score = score

    def details(self):
        return {"images": [{"sample_id": "a", "score": self.score}], "classes": [{"class": "sky", "iou": None}]}

    def intervals(self):
        return {"iou": (1.23456, 2.0)}

    def report(self, controls):
        beside = {name: fellow.score for name, fellow in controls.items()}
        return {"beside": beside}, [[{"control": name, "score": score} for name, score in beside.items()]]


def test_what_is_written_and_read(tmp_path):
    evaluators = {"plain": Plain(), "full": Full(0.5)}
    found = collect(evaluators, {"blank": {"plain": Plain(), "full": Full(0.25)}})
    assert found.tables == [[{"control": "blank", "score": 0.25}], [{"class": "sky", "iou": None}]]
    paths = write(tmp_path, "-x", {"iou": 1.5, "worst": float("nan"), "metric": "iou"}, found)
    assert [path.name for path in paths] == ["evaluation-x.json", "full_details-x.json"]
    assert read_evaluation(paths[0]) == {
        "iou": 1.5, "worst": None, "metric": "iou", "details": ["full_details-x.json"],
        "interval": {"iou": [1.2346, 2.0]}, "interval_over": "pictures", "beside": {"blank": 0.25},
    }  # fmt: skip
    assert scored_rows(json.loads(paths[1].read_text())) == [{"sample_id": "a", "score": 0.5}]


def test_numbers_alone_make_a_plain_file(tmp_path):
    (path,) = write(tmp_path, "", {"mim": 1.5}, collect({"plain": Plain()}, {}))
    assert read_evaluation(path) == {"mim": 1.5}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"linear_layer_1": 3.0, "linear": 4.0, "metric": "linear"}, ("linear", 4.0)),
        ({"split": "val", "overall": 3, "blind": 4.0}, ("overall", 3)),  # of an older version: the first
        ({"step": 120, "mim": 2.0}, ("mim", 2.0)),
        ({"metric": "map", "map": None}, None),
        ({"interval": {"x": [1, 2]}, "ok": True}, None),
    ],
)
def test_the_number_that_a_run_is_known_by(values, expected):
    assert main_number(values) == expected


@pytest.mark.parametrize("text", [None, "[", "[]"])
def test_damage_is_named(tmp_path, text):
    path = tmp_path / "evaluation.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=rf"evaluation\.json .*vlbeit evaluate {tmp_path}"):
        read_evaluation(path)


def test_a_fingerprint_tells_samples_and_labels_apart():
    rows = [{"id": "a", "image": b"1", "label": 0}, {"id": "b", "image": b"2", "label": 1}]
    known = fingerprint(ListRecords(rows), "labelled")
    assert known == fingerprint(ListRecords([{**row, "image": b"moved"} for row in rows]), "labelled")
    others = [rows[:1], rows[::-1], [rows[0], {**rows[1], "label": 0}], [rows[0], {**rows[1], "id": "c"}]]
    assert known not in {fingerprint(ListRecords(each), "labelled") for each in others}


def test_reading_runs_and_comparing_needs_no_torch():
    code = "import sys, vlbeit.runs, vlbeit.comparing; print(*{'torch', 'hydra', 'datasets'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
