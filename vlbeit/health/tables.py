"""The numbers of a report: counts, types, answers, vocabulary with its ceiling, blind baselines, sizes of pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from vlbeit.data.answers import build_vocabulary, counted_answers, coverage, fitting_min_count
from vlbeit.types import Records

from .answers import form
from .parts import Part
from .pictures import Picture
from .questions import pieces

_MOST = 10  # of the most frequent answers


def of_split(part: Part, pictures: Sequence[Picture]) -> dict[str, Any]:
    """What one split holds. Keys that do not apply are absent."""
    table: dict[str, Any] = {"pictures": len(part.asked()), "unused_pictures": len(part.pictures.keys() - part.asked())}
    if part.questions:
        lengths = np.array([pieces(question.text) for question in part.questions])
        table |= {
            "questions": len(part.questions),
            "question_words": {"mean": round(float(lengths.mean()), 2), "p99": int(np.percentile(lengths, 99)),
                               "max": int(lengths.max())},
        }  # fmt: skip
    if part.annotations is not None:
        table |= _of_answers(part)
    table["image_sizes"] = _sizes(pictures)
    return table


def of_learning(train: Part, held_out: Part | None, min_count: int) -> dict[str, Any]:
    """The vocabulary of the training split, what it allows on both, and what guessing without pictures scores.

    `overall` as the official accuracy, in percent. Raises no error over an empty vocabulary: its size is 0.
    """
    from vlbeit.tasks.vqa.answers import ceiling  # loads torch

    known, scored = train.records(), None if held_out is None else held_out.records()
    answers = build_vocabulary(counted_answers(known), min_count)
    table: dict[str, Any] = {"min_count": min_count, "answers": len(answers), "splits": {}}
    table["proposed"] = fitting_min_count(known, min_count)
    for part, records in ((train, known), (held_out, scored)):
        if part is not None and records is not None and any(records.column("answers")):
            best = ceiling(records, answers)
            facts = {"ceiling": best.percent, "covered": best.covered, **coverage(records, answers)._asdict()}
            table["splits"][part.name] = facts
    if held_out is None or scored is None or not {train.name, held_out.name} <= table["splits"].keys():
        return {"vocabulary": table}
    return {"vocabulary": table, "blind": {"train": train.name, "scored": held_out.name, **_blind(known, scored)}}


def _blind(known: Records, scored: Records) -> dict[str, Any]:
    from vlbeit.tasks.vqa.blind import BlindGuess
    from vlbeit.tasks.vqa.rules import numbers
    from vlbeit.tasks.vqa.scoring import score_records

    guess = BlindGuess(known)
    rows = zip(*(scored.column(name) for name in ("question_id", "question", "question_type")), strict=True)
    guesses = {key: guess(text, kind) for key, text, kind in rows}
    majority = dict.fromkeys(guesses, guess.overall)
    return {
        "question_only": numbers(score_records(scored, guesses)),
        "majority": {"answer": guess.overall, **numbers(score_records(scored, majority))},
    }


def _of_answers(part: Part) -> dict[str, Any]:
    notes = part.annotations or []
    texts = Counter(answer for row in notes for answer in row.answers)
    main = Counter(form(row.main_answer).normal for row in notes if row.answers)
    total = sum(texts.values())
    raw = sum(count for text, count in texts.items() if form(text).normal != text)
    return {
        "annotations": len(notes),
        "answers": total,
        "distinct_answers": len(texts),
        "not_in_normal_form": raw,
        "answers_per_question": _counted(len(row.answers) for row in notes),
        "answer_types": _counted(row.answer_type for row in notes),
        "question_types": _counted(row.question_type for row in notes),
        "main_answers": dict(main.most_common(_MOST)),
    }


def _counted(values: Iterable[Any]) -> dict[str, int]:
    """Value -> how often, the most frequent first."""
    return {str(value): count for value, count in Counter(values).most_common()}


def _sizes(pictures: Sequence[Picture]) -> dict[str, Any]:
    """Widths and heights in pixels of the pictures that can be read, bytes of all, formats."""
    sizes = np.array([picture.size for picture in pictures if picture.size is not None])
    if not len(sizes):
        return {"readable": 0}
    low, middle, high = (np.percentile(sizes, share, axis=0, method="nearest").tolist() for share in (0, 50, 100))
    aspects = sizes[:, 0] / sizes[:, 1]
    return {
        "readable": len(sizes),
        "bytes": sum(picture.bytes for picture in pictures),
        "formats": _counted(picture.format for picture in pictures if picture.size is not None),
        "width": {"min": low[0], "median": middle[0], "max": high[0]},
        "height": {"min": low[1], "median": middle[1], "max": high[1]},
        "aspect": {"min": round(float(aspects.min()), 3), "max": round(float(aspects.max()), 3)},
    }
