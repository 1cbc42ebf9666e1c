"""The look at an answer file before it costs one of the day's submissions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vlbeit.data.answer_check import SENT, check_file
from vlbeit.data.answer_file import Questions, read_json, read_questions
from vlbeit.errors import DataError
from vlbeit.leaderboard import CHALLENGE
from vlbeit.ledger import Submission

QUESTIONS = 447_793  # of test2015, which every phase of the VQA challenge wants


def check_before(
    submission: Submission, challenge: int, questions: Path | None, report: Callable[[str], object]
) -> None:
    """Raise DataError for what the server would reject; report what is suspicious.

    Against `questions`, else the question file that the ledger names, if it is still there; without either the answers
    can only be counted, which is said.
    """
    path = questions or _known(submission)
    asked = _own_questions(submission.file) if path is None else read_questions(path)
    found = check_file(submission.file, asked)
    wrong = [each for each in found.findings if each.severity == "error" or each.code == "wrong_split"]
    if wrong:
        first, more = wrong[0], len(wrong) - 1
        raise DataError(
            f"{submission.file}: {first.message}: {first.shown()}{f', and {more} more errors' if more else ''}: the "
            f"server would reject it; {first.remedy} (`vlbeit submit check` names all)"
        )
    if challenge == CHALLENGE and asked.subset and not found.phases:
        raise DataError(
            f"{submission.file} answers the questions of {asked.subset} ({asked.path}): the server would reject it; "
            f"every phase wants all of {SENT}, which `vlbeit submit RUN --split {SENT}` answers"
        )
    if path is None:
        if challenge == CHALLENGE and len(asked.ids) != (all_of_them := _number(submission)):
            raise DataError(
                f"{submission.file} answers {len(asked.ids)} questions, and every phase wants the {all_of_them} of "
                f"{SENT}: the server would reject it; --questions FILE checks it against another question file"
            )
        report("the question file is not known: the answers were counted, their ids are not checked; name --questions")
    for warning in found.warnings:
        report(f"warning: {warning.message}: {warning.shown()}; {warning.remedy}")


def _number(submission: Submission) -> int:
    """Questions of test2015: those of the file that the ledger tells of, else those that the server has."""
    told = submission.facts.get("questions") or {}
    return int(told["of"]) if told.get("subset") == SENT and "of" in told else QUESTIONS


def _known(submission: Submission) -> Path | None:
    named = (submission.facts.get("questions") or {}).get("file")
    return Path(named) if named and Path(named).is_file() else None


def _own_questions(file: Path) -> Questions:
    """The questions that a file answers, in the place of those that it should answer."""
    entries, _ = read_json(file)
    rows = entries if isinstance(entries, list) else []
    ids = [row.get("question_id") for row in rows if isinstance(row, dict)]
    return Questions(file, list(dict.fromkeys(key for key in ids if type(key) is int)), "")
