"""`vlbeit demo`: the whole chain on the built-in data, and a table of what it reached."""

from __future__ import annotations

import json
import math
import os
import shlex
import time
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from vlbeit import compose, inference, launch, table
from vlbeit.data.sources import open_records
from vlbeit.launch import say

CHAINED = "runs/vl-vqa"
SCRATCH = "runs/vl-vqa-scratch"


class Step(NamedTuple):
    """One run of the chain: the words of `vlbeit train`, and the numbers that the table shows."""

    words: tuple[str, ...]
    shown: tuple[str, ...]


CHAIN = (
    Step(("stage=tokenizer",), ("l1", "perplexity", "usage")),
    Step(("stage=mim",), ("accuracy", "elbo_kl")),
    Step(("stage=mlm",), ("accuracy",)),
    Step(("stage=vl",), ("itc_accuracy", "itm_accuracy", "mlm_accuracy")),
    Step(("stage=vl", "task=vqa"), ("overall", "yes/no", "number", "other", "blind")),
    Step(("stage=vl", "task=vqa", "init=none", "text.tokenizer=runs/mlm", f"run={SCRATCH}"), ("overall",)),
    Step(("stage=mim", "task=classification"), ("top1",)),
)


def run() -> None:
    """Train the chain, evaluate both VQA runs question by question, print the table. A finished run is not repeated."""
    rows = []
    for step in CHAIN:
        config = compose.compose(step.words).config
        say(f"\n$ vlbeit train {' '.join(step.words)}")
        started = time.perf_counter()
        launch.train(config, "vlbeit demo", step.words)
        seconds = time.perf_counter() - started
        numbers = json.loads((Path(config.run) / "evaluation.json").read_text())
        shown = ", ".join(f"{name} {numbers[name]:.4g}" for name in step.shown if name in numbers)
        rows.append((config.run, f"{seconds:.0f} s", shown))
    chained, scratch = _scores(CHAINED), _scores(SCRATCH)
    say("")
    table.show(("run", "time", "on the validation split"), rows)
    mean, half = paired_difference(chained, scratch)
    say(
        f"VQA through mim, mlm and vl less VQA from scratch: {mean:+.2f} points "
        f"(95 % interval over questions: +-{half:.2f})"
    )
    say(f"next: vlbeit predict {CHAINED} {_example()}")


def _example() -> str:
    """A picture and a question of the validation split, as words of the command line."""
    data = compose.compose(["task=vqa"]).config.data
    record = open_records(data, "vqa", data.val_split)[0]
    return shlex.join([os.path.relpath(record["image"]), record["question"]])


def _scores(path: str) -> dict[int, float]:
    """Question id -> score in percent on the validation split."""
    inference.evaluate(path, ["task.controls=false"])
    rows = json.loads((Path(path) / "vqa_details.json").read_text())
    return {row["question_id"]: 100 * row["score"] for row in rows}


def paired_difference(first: dict[int, float], second: dict[int, float]) -> tuple[float, float]:
    """Mean of first - second over the same questions, and half the width of its 95 % interval (normal)."""
    differences = [first[key] - second[key] for key in sorted(first.keys() & second.keys())]
    return fmean(differences), 1.96 * stdev(differences) / math.sqrt(len(differences))
