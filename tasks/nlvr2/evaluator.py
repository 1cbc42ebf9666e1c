"""Judgements over a split: accuracy and consistency, as the official metrics.py of NLVR2 counts them.

Legend: B batch, S sentences, F numbers that add up over sentences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vlbeit.bootstrap import Interval, statistic_interval
from vlbeit.dist import gather_objects
from vlbeit.errors import DataError
from vlbeit.types import Batch, Records

from .objective import UNKNOWN

WORDS = ("False", "True")  # of the official files
_NUMBERS = ("accuracy", "consistency")


@torch.no_grad()
def truth(objective: Any, batch: Batch) -> Tensor:
    """The probability that each statement of a batch is true, float32 [B]."""
    if bool(batch["text_keep"].all()):
        batch = {**batch, "text_keep": None}  # a mask that masks nothing costs memory in every layer
    return objective.pair_logits(batch).float().softmax(dim=-1)[:, 1]


class Labelled(NamedTuple):
    """What is right of a statement about a pair, and which sentence it is."""

    label: int
    sentence: str


class NLVR2Evaluator:
    """Accuracy over statements about pairs and consistency over sentences, in percent.

    A sentence is consistent where it is judged rightly of every pair of the split that it is about. A statement without
    a label counts nowhere, one that was not seen counts as wrong.
    """

    over = "sentences"  # pairs of one sentence are not independent of each other

    def __init__(self, records: Records) -> None:
        columns = (records.column(name)[:] for name in ("id", "label", "sentence"))
        rows = {key: Labelled(label, sentence) for key, label, sentence in zip(*columns, strict=True)}
        self.known = {key: row for key, row in rows.items() if row.label != UNKNOWN}
        self.seen: dict[str, float] = {}  # id -> probability of true, of this process
        self._seen: dict[str, float] = {}  # of all, at the last `compute`

    def update(self, objective: Any, batch: Batch) -> None:
        """Judge the statements of one batch."""
        self.seen.update(zip(batch["sample_id"], truth(objective, batch).tolist(), strict=True))

    def compute(self) -> dict[str, float]:
        """`accuracy`, `consistency`, `majority` (of always saying the more frequent label), `judged_true` (0 or 100 for
        always the same answer), in percent; how many statements and sentences.

        Of several splits at once (dev+test1) `accuracy_dev`, `consistency_dev` and so on too.
        Raises DataError where no statement has a label.
        """
        if not self.known:
            raise DataError("no statement of the split has a label to score against")
        self._seen = {key: value for part in gather_objects(self.seen) for key, value in part.items()}
        numbers = self._numbers(self.known)
        parts = self._parts()
        for part, keys in parts.items() if len(parts) > 1 else ():
            found = self._numbers(keys)
            numbers |= {f"{name}_{part}": found[name] for name in _NUMBERS}
        return numbers

    def details(self) -> list[dict[str, Any]]:
        """One row per statement of the last `compute`: sample_id, prediction, probability of true, label, score."""
        return [
            {
                "sample_id": key,
                "sentence": row.sentence,
                "prediction": None if key not in self._seen else WORDS[self._judged(key)],
                "probability": self._seen.get(key),
                "label": WORDS[row.label],
                "score": float(self._is_right(key)),
            }
            for key, row in sorted(self.known.items())
        ]

    def intervals(self) -> dict[str, Interval]:
        """Of `accuracy` and `consistency`, in percent: sentences are drawn, each with all its pairs."""
        parts_SF = self._by_sentence(self.known)
        return {
            "accuracy": statistic_interval(parts_SF, lambda sums: 100 * sums[:, 0] / sums[:, 1]),
            "consistency": statistic_interval(parts_SF, lambda sums: 100 * sums[:, 2] / sums[:, 3]),
        }

    def state_dict(self) -> dict[str, Any]:
        """The judgements so far, of this process."""
        return {"seen": dict(self.seen)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up judgements where `state_dict` left them."""
        self.seen = dict(state["seen"])

    def _numbers(self, keys: Mapping[str, Labelled] | Sequence[str]) -> dict[str, float]:
        right, statements, consistent, sentences = self._by_sentence(keys).sum(axis=0).tolist()
        most = max(Counter(self.known[key].label for key in keys).values())
        return {
            "accuracy": 100 * right / statements,
            "consistency": 100 * consistent / sentences,
            "majority": 100 * most / statements,
            "judged_true": 100 * sum(self._judged(key) for key in keys if key in self._seen) / statements,
            "statements": statements,
            "sentences": sentences,
        }

    def _by_sentence(self, keys: Mapping[str, Labelled] | Sequence[str]) -> np.ndarray:
        """[S, 4]: statements that are judged rightly, statements, whether that is all of them, 1."""
        found: dict[str, list[bool]] = {}
        for key in keys:
            found.setdefault(self.known[key].sentence, []).append(self._is_right(key))
        return np.array([[sum(right), len(right), all(right), 1] for right in found.values()], dtype=np.float64)

    def _parts(self) -> dict[str, list[str]]:
        """Statements by split, which their identifiers begin with."""
        parts: dict[str, list[str]] = {}
        for key in self.known:
            parts.setdefault(key.partition("-")[0], []).append(key)
        return parts

    def _judged(self, key: str) -> int:
        return int(self._seen[key] > 0.5)

    def _is_right(self, key: str) -> bool:
        return key in self._seen and self._judged(key) == self.known[key].label
