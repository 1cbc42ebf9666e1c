"""What a run counts: everything of its progress that is neither a weight nor a moment of the optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from vlbeit.types import Batch

NAMED = 200  # ids of unreadable samples that a state keeps: the loader counts all of them, by reason


@dataclass
class TrainingState:
    """Counters after `step` optimizer steps, the same on every process; JSON values only."""

    step: int = 0
    samples: int = 0  # samples seen, over all processes
    bad: list[str] = field(default_factory=list)  # ids of the first `NAMED` that could not be read, each once, sorted
    best: float | None = None  # best value so far of the metric that picks the weights
    best_step: int | None = None
    skipped: int = 0  # steps that were not finite and changed no weight
    skipped_in_row: int = 0  # of these, the last ones
    evaluated: int = 0  # step of the last evaluation

    @property
    def owes_evaluation(self) -> bool:
        """Whether the weights of `step` are not evaluated: it was broken off, or not due."""
        return self.evaluated != self.step

    def advance(self, micro_batches: list[Batch], processes: int) -> None:
        """One step more, of these micro-batches of this process; all processes have equally many samples."""
        self.step += 1
        self.samples += sum(len(batch["sample_id"]) for batch in micro_batches) * processes
        self.bad = first_named(self.bad, [sample_id for batch in micro_batches for sample_id in batch.get("bad", ())])

    def update_best(self, value: float, *, lower: bool) -> bool:
        """Remember `value` of this step and say True if it beats the best so far; anything beats a NaN."""
        known = self.best is not None and not math.isnan(self.best)
        better = not known or (value < self.best if lower else value > self.best)
        if better:
            self.best, self.best_step = value, self.step
        return better

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingState:
        """From `to_dict`; states from before `evaluated` say whether an evaluation that was due is lacking."""
        now = dict(values)
        if "evaluated" not in now:
            now["evaluated"] = 0 if now.pop("owes_evaluation", False) else now["step"]
        return cls(**now)


def first_named(known: list[str], *found: Iterable[str]) -> list[str]:
    """Up to `NAMED` ids, those that are `known` among them, each once, sorted."""
    new = [] if len(known) >= NAMED else sorted({sample_id for ids in found for sample_id in ids} - set(known))
    return sorted([*known, *new[: NAMED - len(known)]]) if new else known
