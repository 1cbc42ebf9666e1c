"""What is wrong with an answer file, and what looks like a slip: the check before it is sent. Plain Python."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vlbeit import files
from vlbeit.data.answer_file import (
    FIRST,
    NO_VALUE,
    Finding,
    Questions,
    entry_errors,
    read_json,
    read_questions,
    rejected,
)
from vlbeit.data.answers import normalize_answer
from vlbeit.errors import DataError, some

USUAL_WORDS = 5  # 99 % of human answers have at most three (Antol et al. 2015, section 4)
ONE_ANSWER = 0.5  # share of all questions above which one answer is suspicious: "yes" is a quarter of VQA v2
FEW = 10  # answers below which no share is
SENT = "test2015"
PHASES = ("test-dev", "test-standard", "test-challenge")  # what a file of all test2015 questions may be sent to
_TEST_DEV_QUESTIONS = 107_394


class Report(NamedTuple):
    """What the check found in an answer file."""

    file: Path
    sha256: str
    answers: int  # entries
    questions: Questions
    findings: list[Finding]

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == "error"]

    @property
    def warnings(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == "warning"]

    @property
    def phases(self) -> tuple[str, ...]:
        """Phases of the VQA challenge that would take the file."""
        return PHASES if self.questions.subset == SENT and not self.errors else ()


def check_file(path: str | Path, questions: Questions) -> Report:
    """Everything in an answer file for which the server would reject it, and what is suspicious.

    Raises DataError where there is no such file; whatever is in it is a finding.
    """
    path = Path(path)
    try:
        sha256 = files.sha256(path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; `vlbeit submit RUN` writes an answer file") from error
    entries, findings = read_json(path)
    if entries is NO_VALUE:
        return Report(path, sha256, 0, questions, findings)
    if not isinstance(entries, list):
        what = "one JSON object" if isinstance(entries, dict) else json.dumps(entries)[:40]
        message = f"the file is {what}, not an array of answers"
        findings.append(rejected("not_list", [], message, "write a list of question_id and answer"))
        return Report(path, sha256, 0, questions, findings)
    faults, ids, texts = entry_errors(entries, questions.ids)
    findings += faults
    findings += _doubtful_fields(entries)
    findings += _doubtful_answers(texts)
    findings += _wrong_split(set(ids), questions)
    return Report(path, sha256, len(entries), questions, findings)


def _doubtful_fields(entries: list[Any]) -> Iterator[Finding]:
    more = [entry for entry in entries if isinstance(entry, dict) and entry.keys() - {"question_id", "answer"}]
    if more:
        names = sorted({name for entry in more for name in entry.keys() - {"question_id", "answer"}})
        message = f"entries with other fields, which nobody reads: {some(names)}"
        yield _warning("other_fields", [entry.get("question_id") for entry in more], message, "leave them out")


def _doubtful_answers(texts: Mapping[int, str]) -> Iterator[Finding]:
    """Slips in the answers themselves. A distinct answer is looked at once."""
    counts = Counter(texts.values())
    tests: tuple[tuple[str, Callable[[str], bool], str, str], ...] = (
        ("empty", lambda text: not text.strip(), "empty answers, which hardly ever score", "give a guess"),
        (
            "upper_case",
            lambda text: text != text.lower(),
            "answers with capitals: where all ten humans agree, they are compared letter by letter",
            "write them in lower case",
        ),
        (
            "not_normal",
            lambda text: bool(text.strip()) and normalize_answer(text) != text.lower(),
            "answers not in the official normal form (articles, number words, punctuation)",
            "write `2`, not `two` or `a dog.`; vlbeit.data.answers.normalize_answer does it",
        ),
        (
            "long",
            lambda text: len(text.split()) > USUAL_WORDS,
            f"answers of more than {USUAL_WORDS} words: people give one to three",
            "give the answer alone, no sentence",
        ),
        (
            "not_unicode",
            lambda text: any("\ud800" <= letter <= "\udfff" for letter in text),
            "answers with half a character (a lone surrogate), which cannot be written as UTF-8",
            "write them again from the text they stand for",
        ),
    )
    for code, is_doubtful, message, remedy in tests:
        doubtful = {text for text in counts if is_doubtful(text)}
        if doubtful:
            frequent = [repr(text[:40]) for text, _ in counts.most_common() if text.strip() and text in doubtful]
            examples = f": {', '.join(frequent[:3])}" if frequent else ""
            at = [key for key, text in texts.items() if text in doubtful]
            yield _warning(code, at, message + examples, remedy)
    answer, count = counts.most_common(1)[0] if counts else ("", 0)
    if len(texts) >= FEW and count > ONE_ANSWER * len(texts):
        share = f"{answer!r} is the answer to {100 * count / len(texts):.0f} % of the questions"
        at = [key for key, text in texts.items() if text == answer]
        yield _warning("one_answer", at, share, "was the model trained, and did it see pictures and questions?")


def _wrong_split(answered: set[int], questions: Questions) -> Iterator[Finding]:
    """Answers to the questions of another file than is asked for, or of a split that no phase of the server takes."""
    asked = set(questions.ids)
    wanted = f"every phase, test-dev too, wants all questions of {SENT}"
    remedy = f"`vlbeit submit RUN --split {SENT}` answers them"
    if answered == asked:
        if questions.subset.startswith("test") and questions.subset != SENT:
            message = f"these are the questions of {questions.subset}: {wanted}"
            yield rejected("wrong_split", sorted(answered), message, remedy)
        return
    for other in _beside(questions.path):
        if answered == set(other.ids):
            message = f"the answers are to the questions of {other.path}"
            if answered < asked:
                message += f", a part of those that are asked: {wanted}"
            else:
                remedy = f"check them with --questions {other.path}, or answer those of {questions.path.name}"
            yield rejected("wrong_split", sorted(answered), message, remedy)
            return
    if answered < asked and len(answered) == _TEST_DEV_QUESTIONS:
        message = f"as many answers as test-dev has questions: {wanted}"
        yield rejected("wrong_split", sorted(answered), message, remedy)


def _beside(path: Path) -> Iterator[Questions]:
    """The other question files of the folder, those that cannot be read left out."""
    for other in sorted(path.absolute().parent.glob("*questions*.json")):
        if other.name != path.name:
            try:
                yield read_questions(other)
            except DataError:
                continue


def _warning(code: str, at: list[Any], message: str, remedy: str) -> Finding:
    return Finding(code, "warning", len(at), at[:FIRST], message, remedy)
