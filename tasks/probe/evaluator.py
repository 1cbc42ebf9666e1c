"""The numbers of a probe: every layer's classifier, k-NN, zero-shot, and what the commonest class alone would score.

Legend: B batch, V classes, E width that pictures and texts share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vlbeit.bootstrap import Interval, mean_interval
from vlbeit.dist import gather_objects
from vlbeit.types import Batch

from .objective import EMBEDDING
from .zero_shot import zero_shot_logits


class Rivals(NamedTuple):
    """What stands beside the linear classifiers; None: not to be had."""

    neighbours: Callable[[], dict[str, int]] | None = None  # sample id -> the class that k-NN votes for; collective
    class_VE: Tensor | None = None  # zero-shot classifier
    commonest: int | None = None  # label of most training pictures


class ProbeEvaluator:
    """Share of pictures, in percent, that each classifier gets right. A sample that is seen twice counts once."""

    over = "pictures"

    def __init__(self, rivals: Rivals) -> None:
        self.rivals = rivals
        self.labels: dict[str, int] = {}
        self.hits: dict[str, dict[str, bool]] = {}  # sample id -> name of the classifier -> whether it was right
        self._objective: Any = None
        self._rows: list[dict[str, Any]] = []

    @torch.no_grad()
    def update(self, objective: nn.Module, batch: Batch) -> None:
        """Let every classifier guess the labels of one batch of features."""
        self._objective = objective
        features_BF, label_B = batch["features"], batch["label"]
        guesses = {
            f"linear_{name}": logits_BV.argmax(1)
            for name, logits_BV in zip(self._objective.probed, self._objective.logits(features_BF), strict=True)
        }
        if self.rivals.class_VE is not None:
            image_BE = features_BF[:, -self.rivals.class_VE.shape[1] :]
            assert self._objective.columns[-1] == (EMBEDDING, image_BE.shape[1])
            guesses["zero_shot"] = zero_shot_logits(image_BE, self.rivals.class_VE.to(image_BE.device), 1.0).argmax(1)
        right = {name: (guess_B == label_B).tolist() for name, guess_B in guesses.items()}
        for i, (sample_id, label) in enumerate(zip(batch["sample_id"], label_B.tolist(), strict=True)):
            self.labels[sample_id] = label
            self.hits[sample_id] = {name: values[i] for name, values in right.items()}

    def compute(self) -> dict[str, float]:
        """`linear_layer_N` each, `linear` the best of them, `zero_shot`, `knn`, `majority`, `images`: all processes'.

        The best layer becomes the one that the objective predicts with.
        """
        merged: dict[str, tuple[int, dict[str, bool]]] = {}
        for labels, hits in gather_objects((self.labels, self.hits)):
            merged |= {sample_id: (labels[sample_id], hits[sample_id]) for sample_id in labels}
        if not merged:
            raise ValueError("no picture was evaluated")
        names = list(next(iter(merged.values()))[1])
        numbers = {name: _percent([hits[name] for _, hits in merged.values()]) for name in names}
        linear = [name for name in names if name.startswith("linear_")]
        best = max(linear, key=lambda name: numbers[name])
        if self._objective is not None:  # a process that saw no batch has none
            self._objective.best.fill_(linear.index(best))
        result = {name: numbers[name] for name in linear} | {"linear": numbers[best]}
        if "zero_shot" in numbers:
            result["zero_shot"] = numbers["zero_shot"]
        votes = self.rivals.neighbours() if self.rivals.neighbours is not None else {}
        if votes:
            result["knn"] = _percent([votes[sample_id] == label for sample_id, (label, _) in merged.items()])
        if self.rivals.commonest is not None:
            result["majority"] = _percent([label == self.rivals.commonest for label, _ in merged.values()])
        self._rows = [_row(sample_id, *merged[sample_id], best, votes) for sample_id in sorted(merged)]
        return result | {"images": len(merged)}

    def details(self) -> list[dict[str, Any]]:
        """One row per picture of the last `compute`: sample_id, and 1 where the best layer (`score`) and each rival
        (`knn`, `zero_shot`) was right, else 0."""
        return self._rows

    def intervals(self) -> dict[str, Interval]:
        """Of `linear`, `knn` and `zero_shot`, as far as they are there: percent, over pictures.

        `linear` is the best layer on these very pictures, and its interval knows nothing of that choice.
        """
        columns = {"linear": "score", "knn": "knn", "zero_shot": "zero_shot"}
        return {
            name: mean_interval([100 * row[column] for row in self._rows])
            for name, column in columns.items()
            if self._rows and column in self._rows[0]
        }

    def state_dict(self) -> dict[str, Any]:
        """The guesses so far, of this process."""
        return {"labels": dict(self.labels), "hits": dict(self.hits)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` left off."""
        self.labels, self.hits = dict(state["labels"]), dict(state["hits"])


def _row(sample_id: str, label: int, hits: Mapping[str, bool], best: str, votes: Mapping[str, int]) -> dict[str, Any]:
    row: dict[str, Any] = {"sample_id": sample_id, "score": float(hits[best])}
    if votes:
        row["knn"] = float(votes[sample_id] == label)
    if "zero_shot" in hits:
        row["zero_shot"] = float(hits["zero_shot"])
    return row


def _percent(right: list[bool]) -> float:
    return 100 * sum(right) / len(right)
