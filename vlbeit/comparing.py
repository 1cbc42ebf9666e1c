"""Two evaluated runs, sample by sample: the paired difference of their scores and its interval. No torch.

Both saw the same samples, so that what is hard for one is mostly hard for the other; the difference on every sample
takes that out, and is far surer than the two numbers are. The interval is about other samples of the same kind; how
much another seed of training would move a run it does not know.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vlbeit import evaluation_file, table
from vlbeit.bootstrap import Interval, mean_interval, statistic_interval
from vlbeit.data.areas import Areas, set_numbers, stacked
from vlbeit.errors import DataError, UsageError, some
from vlbeit.runs import is_measured

GROUPS = ("answer_type", "direction")  # field of a row by which samples are also compared apart: the first they have


class Measured(NamedTuple):
    """A run as it was evaluated."""

    path: Path  # as it was given
    file: Path  # evaluation.json
    evaluation: dict[str, Any]
    scores: dict[Any, float]  # sample id -> score in [0, 1]
    groups: dict[Any, str]  # sample id -> its group; empty where samples have none
    areas: dict[Any, Areas]  # sample id -> pixels by class; empty but for masks


class Difference(NamedTuple):
    """B less A over some samples, in points of a percent."""

    of: str
    samples: int
    a: float  # of A, percent
    b: float
    difference: float
    interval: Interval | None  # 95 %; None for one sample
    better: int  # samples where B scores higher
    worse: int
    equal: int


class Comparison(NamedTuple):
    """What `vlbeit compare` shows."""

    a: Measured
    b: Measured
    over: str  # what the samples are
    score: str  # what their score is
    rows: list[Difference]  # over all, then by group
    notes: list[str]
    next: str

    @property
    def heading(self) -> str:
        """What is compared."""
        return f"A = {self.a.path}\nB = {self.b.path}\n{self.score}, in percent, over the {self.over} of both"

    @property
    def verdict(self) -> str:
        """Whether zero lies in the interval, and what that means."""
        whole = self.rows[0]
        if whole.interval is None:
            return f"one of {self.over} tells nothing about others"
        if whole.interval[0] <= 0 <= whole.interval[1]:
            return f"zero lies in the interval: which is better these {self.over} do not tell"
        ahead, other = ("B", "A") if whole.difference > 0 else ("A", "B")
        return f"zero lies outside the interval: {ahead} is better than {other}, not by the choice of {self.over} alone"


def compare(a: Path, b: Path) -> Comparison:
    """Compare two runs (folders, or evaluation files in them), evaluated on the same samples.

    Raises DataError where a run was not evaluated, or not since it was trained on, or its files are damaged;
    UsageError for runs of other metrics, data or splits, which cannot be paired, and those without scores by sample.
    """
    for path in (a, b):
        if path.is_dir() and not (path / "evaluation.json").exists():
            from vlbeit import going_on  # Hydra

            going_on.check_exported(path)
    if len(lacking := [path for path in (a, b) if path.is_dir() and not is_measured(str(path))]) > 1:
        both = " && ".join(f"vlbeit evaluate {shlex.quote(str(path))}" for path in lacking)
        raise DataError(f"{a} and {b} have no scores by sample yet: {both}")
    first, second = read(a), read(b)
    notes = _check(first, second)
    keys = sorted(first.scores, key=lambda key: (str(type(key)), key))
    if first.areas and second.areas:
        score, rows = "miou", [_area_difference(*([run.areas[key] for key in keys] for run in (first, second)))]
    else:
        score, rows = next(iter(first.evaluation.get("interval", {})), "score"), _differences(first, second, keys)
    over = str(first.evaluation.get("interval_over", "samples"))
    told = first.evaluation.get("compared")  # where a score is of something else than the intervals are
    if isinstance(told, dict):
        score, over = str(told.get("score", score)), str(told.get("over", over))
    return Comparison(first, second, over, score, rows, notes, _list_of(first.file))


def read(path: Path) -> Measured:
    """An evaluated run. Raises as `compare` does."""
    if not path.exists():
        raise UsageError(f"{path} does not exist: name a run folder, such as runs/vl-vqa; `vlbeit runs` lists them")
    file = path if path.is_file() else path / "evaluation.json"
    again = f"vlbeit evaluate {file.parent}"
    if not file.exists():
        raise DataError(f"{path} was not evaluated: {again}")
    evaluation = evaluation_file.read_evaluation(file)
    if "step" in evaluation:
        raise DataError(f"{file} was written in training, without scores by sample: {again}")
    suffix = file.stem.removeprefix("evaluation")
    names = evaluation.get("details", sorted(each.name for each in file.parent.glob(f"*_details{suffix}.json")))
    for name in names:
        rows = evaluation_file.scored_rows(evaluation_file.read_json(file.parent / name))
        if rows:
            return Measured(path, file, evaluation, *_columns(rows, file.parent / name))
    if not names and "data" not in evaluation:
        raise DataError(f"{path} has no scores by sample beside {file.name}: {again}")
    raise UsageError(f"{path} has no scores by sample to pair: only the evaluation of a task has such")


def as_json(found: Comparison) -> dict[str, Any]:
    """The comparison as JSON values."""
    return {
        "a": str(found.a.path),
        "b": str(found.b.path),
        "score": found.score,
        "over": found.over,
        "rows": [{**row._asdict(), "interval": row.interval and list(row.interval)} for row in found.rows],
        "zero_in_interval": found.rows[0].interval and found.rows[0].interval[0] <= 0 <= found.rows[0].interval[1],
        "notes": found.notes,
    }


def as_table(found: Comparison) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """Columns and rows for the terminal."""
    columns = ("", found.over, "A", "B", "B - A", "95 %", "B better", "B worse", "equal")
    rows = [
        (
            row.of,
            str(row.samples),
            *(f"{value:.2f}" for value in (row.a, row.b)),
            f"{row.difference:+.2f}",
            "-" if row.interval is None else table.between(row.interval, signed=True),
            *map(str, (row.better, row.worse, row.equal)),
        )
        for row in found.rows
    ]
    return columns, rows


def _list_of(file: Path) -> str:
    """The command that lists the runs beside the one that a file lies in."""
    folder = file.parent.parent
    return "vlbeit runs" if folder == Path("runs") else f"vlbeit runs {shlex.quote(str(folder))}"


def _columns(
    rows: Sequence[Mapping[str, Any]], path: Path
) -> tuple[dict[Any, float], dict[Any, str], dict[Any, Areas]]:
    """Score, group and areas by sample; those without a score are left out."""
    try:
        scored = {row.get("question_id", row.get("sample_id")): row for row in rows if row["score"] is not None}
        scores = {key: float(row["score"]) for key, row in scored.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: a row has no score ({type(error).__name__}: {error}); evaluate the run again"
        ) from error
    group, drawn = (
        next((field for field in fields if all(field in row for row in scored.values())), None)
        for fields in (GROUPS, ("areas",))
    )
    groups = {key: str(row[group]) for key, row in scored.items()} if group else {}
    return scores, groups, {key: row["areas"] for key, row in scored.items()} if drawn else {}


def _check(a: Measured, b: Measured) -> list[str]:
    """Refuse what cannot be paired; notes on what cannot be told."""
    named = [evaluation_file.main_number(run.evaluation) for run in (a, b)]
    metrics = [None if number is None else number[0] for number in named]
    if metrics[0] != metrics[1]:
        raise UsageError(f"{a.path} is measured by {metrics[0]}, {b.path} by {metrics[1]}: name two runs of one task")
    data = [run.evaluation.get("data") for run in (a, b)]
    splits = [run.evaluation.get("split") for run in (a, b)]
    if splits[0] != splits[1]:
        raise UsageError(
            f"{a.path} was evaluated on the split {splits[0]}, {b.path} on {splits[1]}: evaluate one of them with "
            f"data.val_split={splits[0]} and name the file that this writes"
        )
    prints = [each.get("fingerprint") if isinstance(each, dict) else None for each in data]
    alone = sorted(map(str, a.scores.keys() ^ b.scores.keys()))
    if alone or (None not in prints and prints[0] != prints[1]):
        shown = [
            f"{run.path}: {len(run.scores)} of {each.get('name', '?') if isinstance(each, dict) else '?'}"
            for run, each in zip((a, b), data, strict=True)
        ]
        why = f"{some(alone)} are in one of them alone" if alone else "the same ids, with other questions or labels"
        raise UsageError(f"evaluated on different data ({'; '.join(shown)}): {why}; evaluate both on the same data")
    if not a.scores:
        raise DataError(f"{a.path} and {b.path} have no sample with a score: evaluate them again")
    older = [str(run.path) for run, each in zip((a, b), prints, strict=True) if each is None]
    return [f"note: {', '.join(older)}: evaluated by an older version; only ids say that the data is the same"] * bool(
        older
    )


def _differences(a: Measured, b: Measured, keys: Sequence[Any]) -> list[Difference]:
    """Of the mean scores: over all samples, then by group, the largest first."""
    a_N, b_N = (np.array([run.scores[key] for key in keys]) for run in (a, b))
    rows = [_difference("all", a_N, b_N)]
    if a.groups:
        group_N = np.array([a.groups[key] for key in keys])
        names = [name for name, _ in Counter(group_N.tolist()).most_common()]
        rows += [_difference(name, a_N[group_N == name], b_N[group_N == name]) for name in names]
    return rows


def _difference(name: str, a_N: np.ndarray, b_N: np.ndarray) -> Difference:
    apart_N = 100 * (b_N - a_N)
    return Difference(
        name,
        len(apart_N),
        100 * float(a_N.mean()),
        100 * float(b_N.mean()),
        float(apart_N.mean()),
        mean_interval(apart_N) if len(apart_N) > 1 else None,
        int((apart_N > 0).sum()),
        int((apart_N < 0).sum()),
        int((apart_N == 0).sum()),
    )


def _area_difference(a: Sequence[Areas], b: Sequence[Areas]) -> Difference:
    """Of the mean IoU of a set, whose pictures are drawn anew, the same for both; a picture counts by its own IoU."""
    classes = 1 + max(row[0] for areas in (*a, *b) for row in areas)
    both_N2K3 = np.stack([stacked(a, classes), stacked(b, classes)], axis=1)

    def apart(sums_RF: np.ndarray) -> np.ndarray:
        return np.diff(set_numbers(sums_RF.reshape(-1, 2, classes, 3))["miou"], axis=-1)[..., 0]

    own_N = apart(both_N2K3)
    whole_2 = set_numbers(both_N2K3.sum(axis=0))["miou"]
    interval = statistic_interval(both_N2K3.reshape(len(a), -1), apart) if len(a) > 1 else None
    return Difference(
        "all",
        len(a),
        float(whole_2[0]),
        float(whole_2[1]),
        float(whole_2[1] - whole_2[0]),
        interval,
        int((own_N > 0).sum()),
        int((own_N < 0).sum()),
        int((own_N == 0).sum()),
    )
