"""What an accuracy is made of: by type of answer and question, what the vocabulary allows, what blind guesses reach."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from vlbeit.bootstrap import mean_interval
from vlbeit.table import between

from .rules import Scores, by_type, percent

SHOWN = 10  # question types on the terminal, the most frequent; the file has all
_SAID = {  # baseline -> what it is, on the terminal
    "majority": "always the commonest training answer",
    "question_only": "guessed from the question alone",
    "blank": "this model, blank pictures",
    "shuffled": "this model, shuffled pictures",
}

Table = list[dict[str, Any]]


def breakdown(
    scores: Scores, best: Mapping[int, float], answers: int, baselines: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """The `breakdown` of evaluation.json; every entry has `questions`, `accuracy` in percent and its 95 % `interval`.

    `answer_type` and `question_type`: by name, the most frequent question type first. `vocabulary`: how many `answers`
    it has, the accuracy on the questions that one of them can score on (`reachable`), and the `ceiling`, what one
    scores who always picks the best of them. `baselines`: as given, with the `questions` they were tried on.

    Args:
        scores: of the questions.
        best: question id -> the highest score in [0, 1] that an answer of the vocabulary has there.
        answers: size of the vocabulary.
        baselines: name -> scores in [0, 1] of those questions.
    """
    frequent = [name for name, _ in Counter(scores.question_types).most_common()]
    by_question = by_type(scores.question_types, scores.values)
    reachable = [value for key, value in zip(scores.question_ids, scores.values, strict=True) if best[key] > 0]
    return {
        "answer_type": {name: entry(part) for name, part in by_type(scores.answer_types, scores.values).items()},
        "question_type": {name: entry(by_question[name]) for name in frequent},
        "vocabulary": {
            "answers": answers,
            "reachable": entry(reachable),
            "ceiling": percent([best[key] for key in scores.question_ids]),
        },
        "baselines": {name: entry(values) for name, values in baselines.items()},
    }


def entry(values: Sequence[float]) -> dict[str, Any]:
    """Number of questions, accuracy, interval of scores in [0, 1]; one question has no interval, none no accuracy."""
    interval = [round(100 * end, 2) for end in mean_interval(values)] if len(values) > 1 else None
    return {"questions": len(values), "accuracy": percent(values) if values else None, "interval": interval}


def tables(found: Mapping[str, Any]) -> list[Table]:
    """A `breakdown` as people read it: three short tables."""
    kinds = list(found["question_type"].items())
    types = "question type" if len(kinds) <= SHOWN else f"question type ({SHOWN} of {len(kinds)})"
    vocabulary, beside = found["vocabulary"], "to compare with"
    questions = sum(values["questions"] for values in found["answer_type"].values())
    ceiling = {"questions": questions, "accuracy": vocabulary["ceiling"]}
    limits = [
        _row(beside, f"this model, where one of {vocabulary['answers']} answers can score", vocabulary["reachable"]),
        _row(beside, "ceiling: always the best of these answers", ceiling),
        *(_row(beside, _SAID.get(name, name), values) for name, values in found["baselines"].items()),
    ]
    return [
        [_row("answer type", name, values) for name, values in found["answer_type"].items()],
        [_row(types, name, values) for name, values in kinds[:SHOWN]],
        limits,
    ]


def _row(column: str, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    accuracy, interval = values["accuracy"], values.get("interval")
    return {
        column: name,
        "questions": values["questions"],
        "accuracy": None if accuracy is None else f"{accuracy:.2f}",
        "95 %": None if interval is None else between(interval),
    }
