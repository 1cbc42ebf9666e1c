"""The score of an answer file that anybody made, by the official rules: `vlbeit evaluate --predictions FILE ...`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vlbeit import files
from vlbeit.data.answers import majority_answer
from vlbeit.data.json_file import json_rows
from vlbeit.data.records import ListRecords
from vlbeit.errors import DataError, some
from vlbeit.tasks.vqa.blind import BlindGuess
from vlbeit.tasks.vqa.result_files import read_predictions
from vlbeit.tasks.vqa.rules import numbers
from vlbeit.tasks.vqa.scoring import Asked, schema, score_questions

_TRAINING = ("v2_OpenEnded_mscoco_train2014_questions.json", "v2_mscoco_train2014_annotations.json")


class Scored(NamedTuple):
    """What came out, where it was written, and what there is to say about the files."""

    result: dict[str, Any]
    written: Path
    notes: list[str]


def score_file(
    predictions: Path, annotations: Path, questions: Path | None, out: Path, *, only_answered: bool = False
) -> Scored:
    """Score an answer file and write the result, in the schema of a run's evaluation.json, to `out`.

    The answers must be those to all annotated questions, else DataError names the ids; `only_answered` scores those
    that have one, counts the others as `unanswered`, and gives no official number.
    """
    given = read_predictions(predictions)
    notes = [f"{predictions}: {given.format}"]
    if given.repeated:
        notes.append(f"{given.repeated} rows say the same again, counted once")
    asked = list(_asked(annotations))
    ids = [row[0] for row in asked]
    _check_ids(predictions, annotations, given.answers.keys(), ids, only_answered)
    unanswered = sum(key not in given.answers for key in ids)
    asked = [row for row in asked if row[0] in given.answers]
    scores = score_questions(asked, given.answers)
    if not scores.values:
        raise DataError(f"{annotations} has no human answers to the questions of {predictions}")
    blind = _blind(annotations, questions, asked, notes)
    result: dict[str, Any] = schema(scores, blind)
    if unanswered:
        result["unanswered"] = unanswered
        notes.append(f"{unanswered} questions have no answer: this is the score of the others, not the official one")
    return Scored(result, files.write_json(out, result, indent=2), notes)


def _check_ids(predictions: Path, annotations: Path, answered: Any, ids: list[int], only_answered: bool) -> None:
    if len(set(ids)) < len(ids):
        raise DataError(f"{annotations} annotates {len(ids) - len(set(ids))} questions twice; get the file again")
    if foreign := sorted(answered - set(ids)):
        raise DataError(
            f"{predictions}: questions that {annotations} does not have: {some(foreign)}; give the annotations of the "
            f"split that was answered"
        )
    if (missing := sorted(set(ids) - answered)) and not only_answered:
        raise DataError(
            f"{predictions}: no answer to {some(missing)} of the {len(ids)} annotated questions; complete it, or "
            f"--only-answered for the score of those that are there"
        )


def _asked(annotations: Path) -> Iterator[Asked]:
    for row in _annotated(annotations):
        humans = [human["answer"] for human in row["answers"]]
        yield row["question_id"], humans, row["answer_type"], row["question_type"]


def _annotated(annotations: Path) -> Iterator[dict[str, Any]]:
    """The annotations, each known to have what is asked of it."""
    for place, row in enumerate(_rows(annotations, "annotations")):
        try:
            texts = [human["answer"] for human in row["answers"]] + [row["answer_type"], row["question_type"]]
            if type(row["question_id"]) is not int or not all(isinstance(text, str) for text in texts):
                raise TypeError("question_id must be a number, answers and types texts")
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{annotations}: annotations[{place}] is not as in VQA v2 ({type(error).__name__}: {error})"
            ) from error
        yield row


def _rows(path: Path, key: str) -> Iterator[Any]:
    try:
        yield from json_rows(path, key)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; name the official file") from error


def _blind(annotations: Path, questions: Path | None, asked: list[Asked], notes: list[str]) -> float | None:
    """What the guess from training questions scores on these; None, with the reason, where they are not at hand."""
    if questions is None:
        notes.append("no blind baseline: --questions is not given")
        return None
    texts = _texts(questions)
    if lost := sorted({row[0] for row in asked} - texts.keys()):
        raise DataError(f"{questions} lacks annotated questions: {some(lost)}; give the questions of the same split")
    train = [questions.parent / _TRAINING[0], annotations.parent / _TRAINING[1]]
    if absent := [path for path in train if not path.exists() or path in (questions, annotations)]:
        notes.append(f"no blind baseline: it guesses from the training split, and {absent[0]} is not beside it")
        return None
    guess = BlindGuess(_training_records(*train))
    guesses = {row[0]: guess(texts[row[0]], row[3]) for row in asked}
    notes.append(f"blind: the most frequent answers of {train[0]}")
    return numbers(score_questions(asked, guesses))["overall"]


def _texts(questions: Path) -> dict[int, str]:
    try:
        return {row["question_id"]: row["question"] for row in _rows(questions, "questions")}
    except (KeyError, TypeError) as error:
        raise DataError(f"{questions}: a question is not as in VQA v2 ({type(error).__name__}: {error})") from error


def _training_records(questions: Path, annotations: Path) -> ListRecords:
    """What the blind guess reads of the training split: one answer instead of ten."""
    texts = _texts(questions)
    records = []
    for row in _annotated(annotations):
        answer = row.get("multiple_choice_answer") or majority_answer([human["answer"] for human in row["answers"]])
        if row["question_id"] in texts:
            question = {"question": texts[row["question_id"]], "question_type": row["question_type"]}
            records.append({**question, "answers": [answer], "multiple_choice_answer": answer})
    return ListRecords(records)
