"""An objective's own numbers over a whole split: the means of its logs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from vlbeit import dist
from vlbeit.types import Batch


class MeanLogs:
    """Evaluator: every log of the objective, sum over count, over the split and all processes.

    `left_out`: names of logs that are no measurement, such as learned constants.

    `weights` of several logs add their weighted sum as `total`: the loss that training minimises.
    """

    def __init__(self, weights: Mapping[str, float] | None = None, left_out: Collection[str] = ()) -> None:
        self.weights, self.left_out = weights or {}, left_out
        self.sums: dict[str, float] = {}
        self.counts: dict[str, float] = {}

    @torch.no_grad()
    def update(self, objective: nn.Module, batch: Batch) -> None:
        """Run the objective on one batch and add its logs. Nothing is gathered: processes may have unequal batches."""
        with dist.alone():
            logs = objective(batch, objective.counts(batch)).logs
        for name, (total, count) in logs.items():
            if name in self.left_out:
                continue
            self.sums[name] = self.sums.get(name, 0.0) + float(total)
            self.counts[name] = self.counts.get(name, 0.0) + float(count)

    def compute(self) -> dict[str, float]:
        """Name of the log -> mean."""
        totals: dict[str, list[float]] = {}
        for sums, counts in dist.gather_objects((self.sums, self.counts)):
            for name, value in sums.items():
                entry = totals.setdefault(name, [0.0, 0.0])
                entry[0] += value
                entry[1] += counts[name]
        means = {name: total / max(count, 1.0) for name, (total, count) in totals.items()}
        if self.weights:
            means["total"] = sum(weight * means[name] for name, weight in self.weights.items())
        return means

    def state_dict(self) -> dict[str, Any]:
        return {"sums": dict(self.sums), "counts": dict(self.counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.sums, self.counts = dict(state["sums"]), dict(state["counts"])
