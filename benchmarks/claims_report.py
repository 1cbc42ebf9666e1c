"""Points of a benchmark to tables and plots: means and 95 % t intervals over seeds, differences seed by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from matplotlib.figure import Figure
from scipy.stats import t as student

from vlbeit.files import write_json, write_text

SCRATCH, SCRATCH_EQUAL = "from scratch", "from scratch, equal compute"
TOP1, VQA, RECALL = "top-1 in percent", "VQA accuracy in percent", "mean recall@1 in percent"


class Shown(NamedTuple):
    """How the points of a claim are shown."""

    axis: str  # what x is; empty: the arms stand side by side
    metric: str = TOP1
    logarithmic: bool = False


SHOWN = {
    "convergence": Shown("epochs of fine-tuning"),
    "labels": Shown("labels in percent", logarithmic=True),
    "sizes": Shown("width"),
    "length": Shown("steps of pre-training", logarithmic=True),
    "masks": Shown(""),
    "targets": Shown(""),
    "pairs_vqa": Shown("pairs in percent", VQA, logarithmic=True),
    "pairs_recall": Shown("pairs in percent", RECALL, logarithmic=True),
    "experts_vqa": Shown("", VQA),
    "experts_recall": Shown("", RECALL),
    "staged": Shown("steps on pairs", RECALL),
}


class Point(NamedTuple):
    """One trained run."""

    claim: str
    arm: str  # which side of the comparison
    x: float
    seed: int
    value: float  # percent
    steps: int  # of fine-tuning


def report(points: Sequence[Point], out: Path) -> None:
    """Write claims.json, claims.md and CLAIM.png of every claim that has points."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "claims.json", [point._asdict() for point in points], indent=1)
    claims = list(dict.fromkeys(point.claim for point in points))
    tables = [table([point for point in points if point.claim == claim]) for claim in claims]
    write_text(out / "claims.md", "\n\n".join(tables) + "\n")
    for claim in claims:
        plot([point for point in points if point.claim == claim], out / f"{claim}.png")


def table(points: Sequence[Point]) -> str:
    """Markdown: a row for each x, a column for each arm, and what the first arm has more than each other one."""
    first, *others = arms = list(dict.fromkeys(point.arm for point in points))
    seeds = sorted({point.seed for point in points})
    axis, metric, _ = SHOWN[points[0].claim]
    header = [axis or points[0].claim, *arms, *(f"{first} less {other}" for other in others)]
    lines = [f"## {points[0].claim} ({metric}, seeds {', '.join(map(str, seeds))})", ""]
    lines += [_row(header), _row(["---"] * len(header))]
    for x in sorted({point.x for point in points}):
        at = {arm: {p.seed: p.value for p in points if p.arm == arm and p.x == x} for arm in arms}
        cells = [f"{x:g}" if axis else ""] + [_cell(list(at[arm].values())) for arm in arms]
        for other in others:
            both = sorted(at[first].keys() & at[other].keys())
            cells.append(_cell([at[first][seed] - at[other][seed] for seed in both], sign="+"))
        lines.append(_row(cells))
    return "\n".join(lines)


def interval(values: Sequence[float]) -> float:
    """Half the width of the 95 % t interval of the mean; NaN for fewer than two values."""
    if len(values) < 2:
        return math.nan
    return float(student.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))


def plot(points: Sequence[Point], file: Path) -> None:
    """Mean and interval of each arm, over x or, where there is none, side by side."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    claim = points[0].claim
    axis, metric, logarithmic = SHOWN[claim]
    for number, arm in enumerate(dict.fromkeys(point.arm for point in points)):
        xs = sorted({point.x for point in points if point.arm == arm})
        values = [[p.value for p in points if p.arm == arm and p.x == x] for x in xs]
        places = xs if axis else [number]
        axes.errorbar(
            places,
            [fmean(v) for v in values],
            yerr=[0 if math.isnan(interval(v)) else interval(v) for v in values],
            label=arm,
            marker="o",
            capsize=3,
        )
    if logarithmic:
        axes.set_xscale("log")
    axes.set(title=f"{claim}, built-in data; 95 % interval over seeds", xlabel=axis, ylabel=metric)
    if not axis:
        axes.set_xticks([])
    figure.legend(loc="outside lower center", ncols=3)  # within the axes it would cover an interval
    figure.savefig(file, dpi=110)


def _cell(values: Sequence[float], sign: str = "") -> str:
    if not values:
        return ""
    half = interval(values)
    return f"{fmean(values):{sign}.2f}" + ("" if math.isnan(half) else f" +-{half:.2f}")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
