"""From a batch of questions to the probabilities of the answers: the one way of evaluation, submission and prediction.

Legend: B batch, V answers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlbeit.types import Batch


class Answering:
    """How the questions of a batch are answered.

    The probability of an answer is the sigmoid of its logit: how far the humans are expected to agree on it, each
    answer for itself. The probabilities of a question do not sum to 1.

    Args:
        answers: texts of the objective's answers, in the order of its classifier.
    """

    def __init__(self, answers: Sequence[str]) -> None:
        self.answers = list(answers)

    @torch.no_grad()
    def __call__(self, objective: nn.Module, batch: Batch) -> Tensor:
        """`image`, `text_ids` and `text_keep` -> float32 [B, V] in [0, 1]; V as `answers`."""
        return objective.answer_logits(batch).float().sigmoid()

    def best(self, objective: nn.Module, batch: Batch) -> list[str]:
        """The likeliest answer to every question."""
        return [self.answers[index] for index in self(objective, batch).argmax(dim=-1).tolist()]
