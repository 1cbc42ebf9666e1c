"""One schema of results, for a run of ours and for anybody's answer file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlbeit.types import Records

from .metric import Scores, answer_score, numbers


def score_records(records: Records, predictions: Mapping[int, str]) -> Scores:
    """What question id -> answer scores on the questions that have human answers, in the order of the records.

    A question without a prediction scores 0; one that stands in the records twice counts once.
    """
    names = ("question_id", "answers", "answer_type", "question_type")
    rows: dict[int, tuple[float, str, str]] = {}
    for key, humans, answer_type, question_type in zip(*(records.column(name) for name in names), strict=True):
        key = int(key)
        if humans and key not in rows:
            score = answer_score(predictions[key], humans) if key in predictions else 0.0
            rows[key] = (score, answer_type, question_type)
    return (
        Scores(list(rows), *(list(column) for column in zip(*rows.values(), strict=True)))
        if rows
        else Scores(*[[]] * 4)
    )


def schema(scores: Scores, blind: float | None) -> dict[str, Any]:
    """What evaluation.json of a run and the result of an answer file have in common.

    Flat: `overall`, `yes/no`, `number`, `other` (those that occur), `questions`, and `blind`, what guessing from the
    question alone scores, None where no training questions were at hand. Then the original's `perAnswerType`,
    `perQuestionType` and `perQuestion` (question id -> percent). Raises ValueError without a scored question.
    """
    official = scores.official()
    del official["overall"]
    return {**numbers(scores), "blind": blind, **official}
