"""One schema of results, for a run of ours and for anybody's answer file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vlbeit.types import Records

from .rules import Scores, answer_score, numbers

Asked = tuple[int, Sequence[str], str, str]
"""A question as scoring sees it: id, human answers, answer type, question type."""


def score_records(records: Records, predictions: Mapping[int, str]) -> Scores:
    """`score_questions` of the questions of a table, in its order; no image is touched."""
    names = ("question_id", "answers", "answer_type", "question_type")
    return score_questions(zip(*(records.column(name) for name in names), strict=True), predictions)


def score_questions(questions: Iterable[Asked], predictions: Mapping[int, str]) -> Scores:
    """What question id -> answer scores on those that have human answers.

    A question without a prediction scores 0; one that comes twice counts once.
    """
    found = Scores([], [], [], [])
    seen: set[int] = set()
    for key, humans, answer_type, question_type in questions:
        if humans and key not in seen:
            seen.add(key)
            score = answer_score(predictions[key], humans) if key in predictions else 0.0
            found.add(key, score, answer_type, question_type)
    return found


def schema(scores: Scores, blind: float | None) -> dict[str, Any]:
    """What evaluation.json of a run and the result of an answer file have in common.

    Flat: `overall`, `yes/no`, `number`, `other` (those that occur), `questions`, and `blind`, what guessing from the
    question alone scores, None where no training questions were at hand. Then the original's `perAnswerType`,
    `perQuestionType` and `perQuestion` (question id -> percent). Raises ValueError without a scored question.
    """
    official = scores.official()
    del official["overall"]
    return {**numbers(scores), "blind": blind, **official}
