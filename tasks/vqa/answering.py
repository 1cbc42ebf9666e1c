"""From a batch of questions to the probabilities of the answers: the one way of evaluation, submission and prediction.

Legend: B batch, V answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlbeit.types import Batch

from .sides import mirrored


class Member(NamedTuple):
    """A further model that answers, and the texts of its answers in the order of its classifier."""

    objective: Any  # a module with `answer_logits`
    answers: list[str]


class _Mirror(NamedTuple):
    """Places of answers of the flipped picture, and of what they say about the picture as it is."""

    there: list[int]
    here: list[int]

    @classmethod
    def of(cls, answers: Sequence[str]) -> _Mirror:
        pairs = [(there, here) for here, there in enumerate(mirrored(answers)) if there is not None]
        return cls([there for there, _ in pairs], [here for _, here in pairs])


class Answering:
    """How the questions of a batch are answered.

    The probability of an answer is the sigmoid of its logit: how far the humans are expected to agree on it, each
    answer for itself. The probabilities of a question do not sum to 1.

    With `flip` it is the mean of that for the picture and for the picture flipped, where left and right answers have
    changed places. An answer whose other side is no answer keeps what it has for the picture, and a question that
    speaks of left or right (`sides` [B] of the batch) is asked about the picture alone.
    With `members` it is the mean over all models, 0 for the answers that a model does not know.

    Args:
        answers: texts of the objective's answers, in the order of its classifier.
        flip: look at the flipped picture too.
        members: models beside the objective, which see the same batches.
    """

    def __init__(self, answers: Sequence[str], *, flip: bool = False, members: Sequence[Member] = ()) -> None:
        self.own = list(answers)
        self.flip = flip
        self.members = list(members)
        known = dict.fromkeys([*self.own, *(answer for member in self.members for answer in member.answers)])
        self.answers = list(known)  # the objective's, then those that only members know
        self._place = {answer: index for index, answer in enumerate(self.answers)}
        lists = [self.own, *(member.answers for member in self.members)] if flip else []
        self._mirrors = [_Mirror.of(answers) for answers in lists]  # of each model

    @torch.no_grad()
    def __call__(self, objective: Any, batch: Batch) -> Tensor:
        """`image`, `text_ids`, `text_keep`, and with `flip` `sides` -> float32 [B, V] in [0, 1]; V as `answers`."""
        if bool(batch["text_keep"].all()):
            batch = {**batch, "text_keep": None}  # a mask that masks nothing costs memory of [B, L, L] in every layer
        own_BV = self._look(0, objective, batch)
        if not self.members:
            return own_BV
        mean_BV = own_BV.new_zeros(len(own_BV), len(self.answers))
        mean_BV[:, : own_BV.shape[1]] = own_BV
        for number, (member, answers) in enumerate(self.members, 1):
            places_V = torch.tensor([self._place[answer] for answer in answers], device=own_BV.device)
            mean_BV[:, places_V] += self._look(number, member.to(next(objective.parameters())), batch)
        return mean_BV / (1 + len(self.members))

    def best(self, objective: Any, batch: Batch) -> list[str]:
        """The likeliest answer to every question."""
        return [self.answers[index] for index in self(objective, batch).argmax(dim=-1).tolist()]

    def _look(self, number: int, objective: Any, batch: Batch) -> Tensor:
        """Probabilities of the `number`th model, [B, its V]."""
        seen_BV = objective.answer_logits(batch).float().sigmoid()
        if not self.flip or not bool((rows_B := ~batch["sides"]).any()):
            return seen_BV
        keep = batch["text_keep"]
        mirror = {
            "image": batch["image"][rows_B].flip(-1),
            "text_ids": batch["text_ids"][rows_B],
            "text_keep": None if keep is None else keep[rows_B],
        }
        there, here = self._mirrors[number]
        own_BV, other_BV = seen_BV[rows_B], objective.answer_logits(mirror).float().sigmoid()
        own_BV[:, here] = (own_BV[:, here] + other_BV[:, there]) / 2
        seen_BV[rows_B] = own_BV
        return seen_BV
