"""What the benchmarks share: one run of `vlbeit train`, what it reached, and what a step of it costs."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from torch.utils.flop_counter import FlopCounterMode

from vlbeit import compose, inference, launch
from vlbeit.config import RunConfig
from vlbeit.data.sources import open_records


def train(words: list[str]) -> RunConfig:
    """Run `vlbeit train` with these words (a finished run is not repeated); the config with its steps settled."""
    config = compose.compose(words).config
    launch.train(config)
    return compose.from_yaml(Path(config.run) / "config.yaml")


@cache
def evaluations(run: str) -> list[dict[str, float]]:
    """The numbers of every evaluation of a finished run, in order."""
    lines = (Path(run) / "metrics.jsonl").read_text().splitlines()
    return [record["evaluation"] for record in map(json.loads, lines) if "evaluation" in record]


def flops_of_step(config: RunConfig) -> int:
    """Floating-point operations of one optimizer step: forward and backward of a global batch."""
    run = inference.Trained(config.run)
    records = open_records(config.data, run.recipe.kind, config.data.train_split)
    spec = run.recipe.data(records, run.checkpoint.meta, train=True)
    batch = spec.collate([spec.transform(spec.records[index]) for index in range(config.global_batch_size)])
    objective = run.objective.train()
    with FlopCounterMode(display=False) as counter:
        sum(objective(batch, objective.counts(batch)).losses.values()).backward()
    return counter.get_total_flops()
