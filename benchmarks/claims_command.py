"""The command line of a benchmark of claims: every claim for every seed, reported after each."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from claims_report import Point, report

from vlbeit.data_prep.scenes import prepare

Claims = Mapping[str, Callable[[Any], Iterator[Point]]]


def claims_parser(description: str | None, out: str, claims: Claims) -> argparse.ArgumentParser:
    """Options of `run_claims`."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--seeds", type=int, default=3)
    made.add_argument("--first-seed", type=int, default=0)
    made.add_argument("--out", type=Path, default=Path(out))
    made.add_argument("--root", type=Path, default=Path("data/scenes-10k"), help="made where it is missing")
    made.add_argument("--only", nargs="+", choices=list(claims), default=list(claims))
    return made


def run_claims(options: argparse.Namespace, claims: Claims, lab: Callable[[int, Path, Path], Any]) -> None:
    """Train what each claim asks of the lab of each seed; tables and plots are written anew after each."""
    prepare(options.root, images=10000, report=print)
    points: list[Point] = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        of_seed = lab(seed, options.out, options.root)
        for name in options.only:
            points += claims[name](of_seed)
            report(points, options.out)
    print(f"wrote {options.out}: claims.json, claims.md and a plot of each claim")
