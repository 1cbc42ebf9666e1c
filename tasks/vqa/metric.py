"""The official VQA accuracy as a torchmetrics metric."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from .rules import Scores, answer_score, numbers

NO_ID = -(1 << 63)  # of a question that was given without one; other ids may be negative


class VQAAccuracy(Metric):
    """Official accuracy as a torchmetrics metric: `update` with predicted strings, merged over processes.

    A question that two processes were given, such as a sampler's padding, counts once where it comes with its id.
    Questions without human answers, as those of a test split, do not count.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    rows: list[Tensor]
    names: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        # Texts cross processes as tensors: codes of the type names, and beside them the names as lines of UTF-8.
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self.add_state("names", default=[], dist_reduce_fx="cat")
        self._begin()

    def _begin(self) -> None:
        """States of no question, which a process that is given none can send to the others."""
        self.rows = [torch.empty(0, dtype=torch.int64, device=self.device)]
        self.names = [torch.empty(0, dtype=torch.uint8, device=self.device)]
        self._named: set[str] = set()

    def update(
        self,
        predictions: Sequence[str],
        answers: Sequence[Sequence[str]],
        answer_types: Sequence[str],
        question_types: Sequence[str],
        question_ids: Sequence[int] | None = None,
    ) -> None:
        """Count questions: predicted answer, raw human answers, types; `question_ids` are whole numbers of 64 bits.

        Raises ValueError where the lengths differ.
        """
        keys = [NO_ID] * len(predictions) if question_ids is None else question_ids
        rows = [
            (key, _bits(answer_score(prediction, humans)), _code(answer_type), _code(question_type))
            for key, prediction, humans, answer_type, question_type in zip(
                keys, predictions, answers, answer_types, question_types, strict=True
            )
            if humans
        ]
        self.rows.append(torch.tensor(rows, dtype=torch.int64, device=self.device).flatten())
        if new := {_line(name) for name in (*answer_types, *question_types)} - self._named:
            self._named |= new
            text = "".join(f"{name}\n" for name in sorted(new)).encode()
            self.names.append(torch.tensor(list(text), dtype=torch.uint8, device=self.device))

    def scores(self) -> Scores:
        """Score and types of every question, in the order of the updates; a repeated id at its first place."""
        names = {_code(line): line for line in bytes(dim_zero_cat(self.names).tolist()).decode().split("\n")}
        found = Scores([], [], [], [])
        seen: set[int] = set()
        for key, bits, answer_type, question_type in dim_zero_cat(self.rows).reshape(-1, 4).tolist():
            if key == NO_ID or key not in seen:
                seen.add(key)
                found.add(key, _value(bits), names[answer_type], names[question_type])
        return found

    def compute(self) -> dict[str, float]:
        """`overall`, one number for each answer type seen (yes/no, number, other), and `questions`.

        Percent, rounded to two digits. Without a question, as a batch of a test split has none, `questions` alone.
        """
        scores = self.scores()
        return numbers(scores) if scores.values else {"questions": 0}

    def official(self) -> dict[str, Any]:
        """`Scores.official` of all questions of this process; after `sync` of all processes."""
        return self.scores().official()

    def reset(self) -> None:
        """Forget every question."""
        super().reset()
        self._begin()


def _line(name: str) -> str:
    return name.replace("\n", " ")


@lru_cache(maxsize=1 << 12)
def _code(name: str) -> int:
    """A number of 63 bits that stands for a type's name in every process."""
    return int.from_bytes(hashlib.blake2b(_line(name).encode(), digest_size=8).digest()) >> 1


def _bits(value: float) -> int:
    """A float64 as an integer: not every device has tensors of float64."""
    return int(np.float64(value).view(np.int64))


def _value(bits: int) -> float:
    return float(np.int64(bits).view(np.float64))
