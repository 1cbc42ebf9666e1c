"""The official VQA accuracy: the ten-annotator score, percentages by type.

An own port of the rules of GT-Vision-Lab/VQA `vqaEval.py` (a013f00, 2021-03-11); the normal form of answers that it
compares lies in `vlbeit.data.answers`. Goyal et al. 2017, https://visualqa.org/evaluation.html.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

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
    matches, total = humans.count(prediction), len(humans)
    # Of `total` turns, `matches` leave out a human who agrees.
    return (matches * min(3, matches - 1) + (total - matches) * min(3, matches)) / (3 * total)


class VQAAccuracy:
    """Official accuracy over questions, in percent rounded to two digits, over all and by type."""

    def __init__(self) -> None:
        self.scores: list[float] = []
        self._by_answer_type: dict[str, list[float]] = defaultdict(list)
        self._by_question_type: dict[str, list[float]] = defaultdict(list)

    def add(self, score: float, answer_type: str, question_type: str) -> None:
        """Count one question; `score` as of `answer_score`."""
        self.scores.append(score)
        self._by_answer_type[answer_type].append(score)
        self._by_question_type[question_type].append(score)

    def compute(self) -> dict[str, float]:
        """`overall`, one number for each answer type seen (yes/no, number, other), and `questions`.

        Raises ValueError before the first question.
        """
        if not self.scores:
            raise ValueError("no question with human answers was scored")
        order = sorted(self._by_answer_type, key=lambda name: (*OFFICIAL_TYPES, name).index(name))
        result = {"overall": _percent(self.scores)}
        result |= {name: _percent(self._by_answer_type[name]) for name in order}
        return result | {"questions": len(self.scores)}

    def by_question_type(self) -> dict[str, float]:
        """Percentage for each question type seen, such as "how many"."""
        return {name: _percent(scores) for name, scores in sorted(self._by_question_type.items())}


def _percent(scores: Sequence[float]) -> float:
    return round(100 * math.fsum(scores) / len(scores), 2)
