"""`vlbeit compare` on files made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vlbeit.bootstrap import mean_interval
from vlbeit.cli import main
from vlbeit.comparing import compare
from vlbeit.errors import DataError, UsageError

DATA = {"name": "scenes", "split": "val", "samples": 3, "fingerprint": "abc"}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, found: object, suffix: str = "", **evaluation: object) -> Path:
    """A run folder after `vlbeit evaluate`."""
    run = Path("runs", name)
    run.mkdir(parents=True, exist_ok=True)
    values = {
        "overall": 50.0, "split": "val", "metric": "overall", "interval": {"overall": [1, 2]}, "data": DATA,
        "interval_over": "questions", "details": [f"vqa_details{suffix}.json"], **evaluation,
    }  # fmt: skip
    (run / f"evaluation{suffix}.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    (run / f"vqa_details{suffix}.json").write_text(json.dumps(found))
    return run


def rows(scores: list[float], kinds: str = "") -> list[dict[str, object]]:
    more = [{"answer_type": {"y": "yes/no", "n": "number"}[kind]} for kind in kinds] or [{} for _ in scores]
    return [
        {"question_id": 7 * i, "score": score, **extra}
        for i, (score, extra) in enumerate(zip(scores, more, strict=True))
    ]


def test_the_paired_difference() -> None:
    generator = np.random.default_rng(0)
    a = generator.choice([0, 0.3, 1.0], 200)
    b = np.where(generator.random(200) < 0.2, 1.0, a)
    shuffled = rows(b.tolist(), "yn" * 100)[::-1]  # joined by id, not by place
    found = compare(write("a", rows(a.tolist(), "yn" * 100)), write("b", {"questions": shuffled, "classes": []}))
    whole, *by_type = found.rows
    assert whole.samples == 200 and whole.difference == pytest.approx(100 * (b - a).mean())
    assert (whole.a, whole.b) == pytest.approx((100 * a.mean(), 100 * b.mean()))
    assert whole.interval == mean_interval(100 * (b - a)) and whole.interval[0] > 0
    assert (whole.better, whole.worse, whole.equal) == ((b > a).sum(), 0, (b == a).sum())
    assert {row.of: row.samples for row in by_type} == {"yes/no": 100, "number": 100}
    assert by_type[0].difference == pytest.approx(100 * (b - a)[::2].mean())
    # pairing takes out what is hard for both: far narrower than two intervals that know nothing of each other
    apart = np.hypot(np.diff(mean_interval(100 * a)), np.diff(mean_interval(100 * b)))
    assert np.diff(whole.interval) < 0.7 * apart
    assert "zero lies outside the interval: B is better than A" in found.verdict
    assert "A is better than B" in compare(Path("runs/b"), Path("runs/a")).verdict


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    write("a", rows([1.0, 0.0, 0.3, 0.3], "yyyn"))
    write("b", rows([0.0, 1.0, 0.3, 0.6], "yyyn"))
    assert main(["compare", "runs/a", "runs/b"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["A = runs/a", "B = runs/b", "overall, in percent, over the questions of both"]
    assert [line.split()[:4] for line in lines[4:7]] == [
        ["all", "4", "40.00", "47.50"],
        ["yes/no", "3", "43.33", "43.33"],
        ["number", "1", "30.00", "60.00"],
    ]
    assert lines[4].split()[-3:] == ["2", "1", "1"] and lines[6].split()[4:6] == ["+30.00", "-"]
    assert lines[7].startswith("zero lies in the interval") and lines[8] == "next: vlbeit runs"
    assert main(["compare", "runs/a", "runs/b", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["zero_in_interval"] is True and found["rows"][0]["difference"] == pytest.approx(7.5)
    assert found["rows"][2]["interval"] is None


def test_masks_are_compared_by_mean_iou() -> None:
    generator = np.random.default_rng(0)

    def pictures(share: float) -> dict[str, object]:
        found = []
        for number in range(60):
            right = [int(share * 100 + generator.integers(-20, 20)) for _ in range(2)]
            areas = [[label, right[label], 100, 100] for label in range(2)]
            found.append({"sample_id": str(number), "score": sum(right) / 200, "areas": areas})
        return {"classes": [{"class": "sky"}], "images": found}

    masks = {"interval": {"miou": [1, 2]}, "metric": "miou", "miou": 1.0, "interval_over": "pictures"}
    a, b = pictures(0.5), pictures(0.6)
    b["images"].append({"sample_id": "empty", "score": None, "areas": []})
    a["images"].append({"sample_id": "empty", "score": None, "areas": []})
    found = compare(write("a", a, **masks), write("b", b, **masks))
    (row,) = found.rows
    sums = [np.array([each["areas"] for each in run["images"][:60]])[..., 1:].sum(0) for run in (a, b)]
    mious = [100 * (s[:, 0] / (s[:, 1] + s[:, 2] - s[:, 0])).mean() for s in sums]
    assert (row.a, row.b, row.difference) == pytest.approx((*mious, mious[1] - mious[0]))
    assert found.score == "miou" and row.samples == 60 and row.interval[0] < row.difference < row.interval[1]
    assert row.interval[0] > 0 and row.better > row.worse and row.better + row.worse + row.equal == 60


@pytest.mark.parametrize(
    ("other", "error", "said"),
    [
        ({"split": "train"}, UsageError, "runs/a was evaluated on the split val, runs/b on train"),
        ({"data": {**DATA, "fingerprint": "x"}}, UsageError, "the same ids, with other questions or labels"),
        ({"metric": "top1", "top1": 3.0}, UsageError, "runs/a is measured by overall, runs/b by top1"),
        ({"step": 120}, DataError, "runs/b/evaluation.json was written in training.*: vlbeit evaluate runs/b"),
        ({"details": ["gone.json"]}, DataError, "runs/b/gone.json is missing: vlbeit evaluate runs/b"),
        ({"details": None}, DataError, "no scores"),
        ({"details": []}, UsageError, "no scores by sample to pair"),
    ],
)
def test_what_cannot_be_paired(other: dict[str, object], error: type[Exception], said: str) -> None:
    write("a", rows([1.0, 0.0]))
    run = write("b", rows([1.0, 0.0]), **other)
    if other == {"details": None}:  # of an older version, before its details were written
        (run / "vqa_details.json").unlink()
        write_old(run)
    with pytest.raises(error, match=said):
        compare(Path("runs/a"), Path("runs/b"))


def write_old(run: Path) -> None:
    (run / "evaluation.json").write_text('{"overall": 50.0, "questions": 2, "split": "val"}')


def test_other_samples_are_named() -> None:
    write("a", rows([1.0, 0.0, 1.0]))
    write("b", rows([1.0, 0.0]))
    said = r"runs/a: 3 of scenes; runs/b: 2 of scenes\): 1 \(14\) are in one of them alone"
    with pytest.raises(UsageError, match=said):
        compare(Path("runs/a"), Path("runs/b"))


def test_older_evaluations_are_read_and_said_to_be_older() -> None:
    write_old(write("a", rows([1.0, 0.0])))
    write("b", rows([1.0, 1.0]))
    found = compare(Path("runs/a"), Path("runs/b"))
    assert found.rows[0].difference == 50 and "runs/a: evaluated by an older version" in found.notes[0]


def test_an_evaluation_of_other_data_is_named_by_its_file() -> None:
    write("a", rows([0.0, 0.0]))
    write("a", rows([1.0, 0.0]), "-scenes-train", split="train")
    write("b", rows([1.0, 1.0]), split="train")
    assert compare(Path("runs/a/evaluation-scenes-train.json"), Path("runs/b")).rows[0].difference == 50


@pytest.mark.parametrize(
    ("break_it", "code", "said"),
    [
        (lambda run: (run / "vqa_details.json").write_text("["), 1, "runs/b/vqa_details.json cannot be read"),
        (lambda run: (run / "evaluation.json").write_text("3"), 1, "runs/b/evaluation.json holds no evaluation"),
        (lambda run: (run / "evaluation.json").unlink(), 1, "runs/b was not evaluated: vlbeit evaluate runs/b"),
        (lambda run: write("b", [{"question_id": 1, "score": 1}, {"question_id": 2}]), 1, "a row has no score"),
        (lambda run: run.rename("runs/c"), 2, "runs/b does not exist"),
    ],
)
def test_damage_is_one_line(break_it, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    write("a", rows([1.0, 0.0]))
    break_it(write("b", rows([1.0, 0.0])))
    assert main(["compare", "runs/a", "runs/b"]) == code
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_both_commands_where_neither_was_evaluated() -> None:
    write("a", rows([1.0]), step=3)
    Path("runs/b c").mkdir()
    with pytest.raises(DataError, match=r"yet: vlbeit evaluate runs/a && vlbeit evaluate 'runs/b c'$"):
        compare(Path("runs/a"), Path("runs/b c"))
