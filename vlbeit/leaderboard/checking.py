"""The look at an answer file before it costs one of the day's submissions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vlbeit.data.answer_check import check_file
from vlbeit.data.answer_file import Questions, read_json, read_questions
from vlbeit.errors import DataError
from vlbeit.ledger import Submission


def check_before(submission: Submission, questions: Path | None, report: Callable[[str], object]) -> None:
    """Raise DataError for what the server would reject; report what is suspicious.

    Against `questions`, else the question file that the ledger names, if it is still there; without either the ids
    cannot be checked, which is said.
    """
    path = questions or _known(submission)
    if path is None:
        report("the question file is not known: whether all questions are answered is not checked; name --questions")
    asked = _own_questions(submission.file) if path is None else read_questions(path)
    found = check_file(submission.file, asked)
    wrong = [each for each in found.findings if each.severity == "error" or each.code == "wrong_split"]
    if wrong:
        first, more = wrong[0], len(wrong) - 1
        raise DataError(
            f"{submission.file}: {first.message}: {first.shown()}{f', and {more} more errors' if more else ''}: the "
            f"server would reject it; {first.remedy} (`vlbeit submit check` names all)"
        )
    for warning in found.warnings:
        report(f"warning: {warning.message}: {warning.shown()}; {warning.remedy}")


def _known(submission: Submission) -> Path | None:
    named = (submission.facts.get("questions") or {}).get("file")
    return Path(named) if named and Path(named).is_file() else None


def _own_questions(file: Path) -> Questions:
    """The questions that a file answers, in the place of those that it should answer."""
    entries, _ = read_json(file)
    rows = entries if isinstance(entries, list) else []
    ids = [row.get("question_id") for row in rows if isinstance(row, dict)]
    return Questions(file, list(dict.fromkeys(key for key in ids if type(key) is int)), "")
