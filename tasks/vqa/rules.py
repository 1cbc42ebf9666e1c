"""The rules of the official VQA accuracy: the ten-annotator score, percentages over all and by type.

An own port of the rules of GT-Vision-Lab/VQA `vqaEval.py` (a013f00, 2021-03-11); the normal form of answers that it
compares lies in `vlbeit.data.answers`. Goyal et al. 2017, https://visualqa.org/evaluation.html.
Plain Python: `metric` has them as a torchmetrics metric, whose import costs as much as torch's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, NamedTuple

import numpy as np

from vlbeit.data.answers import clean_answer, normalize_answer

OFFICIAL_TYPES = ("yes/no", "number", "other")  # of answers, in the order of the leaderboard


def answer_score(prediction: str, answers: Sequence[str]) -> float:
    """Score in [0, 1] of a predicted answer against the raw human answers (ten in VQA v2).

    Every human is left out in turn and the prediction scores min(1, matches among the others / 3); the result is the
    mean. Normalised only if the humans disagree: against ten equal answers the comparison is literal.
    Raises ValueError without human answers.
    """
    if not answers:
        raise ValueError("no human answers to score against")
    humans, prediction = [clean_answer(answer) for answer in answers], clean_answer(prediction)
    if any(human != humans[0] for human in humans):
        humans, prediction = [normalize_answer(human) for human in humans], normalize_answer(prediction)
    matches = humans.count(prediction)
    if matches == 0 or matches > 3:
        return float(matches > 0)
    # One human after the other, added up in this order, as the original does: a mean that lies between two second
    # digits is rounded by what floating-point addition leaves of it.
    total = 0.0
    for human in humans:
        total += min(1.0, (matches - (human == prediction)) / 3)
    return total / len(humans)


class Scores(NamedTuple):
    """What single questions scored: columns of equal length."""

    question_ids: list[int]
    values: list[float]  # in [0, 1]
    answer_types: list[str]
    question_types: list[str]

    def add(self, question_id: int, value: float, answer_type: str, question_type: str) -> None:
        """Append one question."""
        for column, item in zip(self, (question_id, value, answer_type, question_type), strict=True):
            column.append(item)  # type: ignore[attr-defined]

    def official(self) -> dict[str, Any]:
        """The result under the names of the original: `overall`, `perAnswerType`, `perQuestionType`, `perQuestion`.

        Percent, rounded to two digits. Raises ValueError without a question.
        """
        if not self.values:
            raise ValueError("no question with human answers was scored")
        return {
            "overall": percent(self.values),
            "perAnswerType": {name: percent(part) for name, part in by_type(self.answer_types, self.values).items()},
            "perQuestionType": {
                name: percent(part) for name, part in by_type(self.question_types, self.values).items()
            },
            "perQuestion": {
                str(key): two_digits(100 * value) for key, value in zip(self.question_ids, self.values, strict=True)
            },
        }


def numbers(scores: Scores) -> dict[str, float]:
    """`overall`, one number for each answer type that occurs, and `questions`, how many there are.

    Raises ValueError without a question.
    """
    if not scores.values:
        raise ValueError("no question with human answers was scored")
    kinds = {name: percent(part) for name, part in by_type(scores.answer_types, scores.values).items()}
    return {"overall": percent(scores.values), **kinds, "questions": len(scores.values)}


def by_type(types: Sequence[str], values: Sequence[float]) -> dict[str, list[float]]:
    """Type -> values of its questions: the official answer types first, the others by name."""
    parts: dict[str, list[float]] = {name: [] for name in _ordered(types)}
    for name, value in zip(types, values, strict=True):
        parts[name].append(value)
    return parts


def percent(values: Sequence[float]) -> float:
    """100 times the mean to two digits, its terms added one after the other as in the original."""
    return two_digits(100 * float(np.cumsum(np.asarray(values, dtype=np.float64))[-1]) / len(values))


def two_digits(value: float) -> float:
    """Rounded as the original's Python 2 rounds: 3.125 to 3.13, where Python 3 gives 3.12."""
    return float(Decimal(value).quantize(Decimal("0.01"), ROUND_HALF_UP))


def count_types(types: Iterable[str]) -> Mapping[str, int]:
    """How many questions are of each type, in the order of `by_type`."""
    counts = Counter(types)
    return {name: counts[name] for name in _ordered(counts)}


def _ordered(types: Iterable[str]) -> list[str]:
    present = set(types)
    return [name for name in OFFICIAL_TYPES if name in present] + sorted(present.difference(OFFICIAL_TYPES))
