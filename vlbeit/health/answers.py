"""The human answers: missing, empty, in a form that no prediction meets, of another type than stated."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import lru_cache
from reprlib import repr as short
from typing import NamedTuple

from vlbeit.data.answers import clean_answer, majority_answer, normalize_answer
from vlbeit.errors import some

from .findings import Finding, found
from .parts import Annotation, Part

TYPES = ("yes/no", "number", "other")
_FEW = 10  # questions below which one answer for all of them is no surprise
_MOSTLY = 0.9

_TEXTS = {
    "no-answers": "annotations without a human answer",
    "empty-answer": "questions with empty human answers",
    "not-ten-answers": "questions that have not ten human answers",
    "duplicate-answer-id": "questions whose answers do not have an answer_id each",
    "literal-answers": "questions whose answers agree and are not in the normal form, so that only the very same text "
    "scores",
    "upper-case-answer": "questions with answers in upper case",
    "answer-type-contradiction": "questions whose answer_type contradicts their answers",
    "unknown-answer-type": "questions of an answer_type that is none of yes/no, number, other",
    "foreign-main-answer": "questions whose multiple_choice_answer no human gave",
}


class Form(NamedTuple):
    """What one answer text is like."""

    normal: str
    empty: bool
    upper: bool  # has capital letters
    digits: bool


@lru_cache(maxsize=1 << 18)
def form(answer: str) -> Form:
    """The form of a raw answer."""
    normal = normalize_answer(answer)
    return Form(normal, not clean_answer(answer), answer != answer.lower(), any(map(str.isdigit, normal)))


def check_answers(part: Part) -> Iterator[Finding]:
    """Findings on the answers of a split, none where they are hidden."""
    if part.annotations is None:
        return
    ids: dict[str, dict[int, None]] = defaultdict(dict)
    examples: dict[str, str] = {}
    for row in part.annotations:
        for code, example in _faults(row, part.ten):
            ids[code][row.question_id] = None
            examples.setdefault(code, example)
    for code, text in _TEXTS.items():
        numbers = list(ids[code])
        example = f" ({examples[code]})" if examples.get(code) else ""
        mild = code == "no-answers" and not part.ten  # people may leave questions of their own open
        yield from found(code, part.name, numbers, f"{text}: {some(numbers)}{example}", mild=mild)
    yield from _one_answer(part)


def main_answer(row: Annotation) -> str:
    """The normal form of the answer that stands for a question."""
    return form(row.main_answer or majority_answer(row.answers)).normal


def _faults(row: Annotation, ten: bool) -> Iterator[tuple[str, str]]:
    """Code and example of everything that is wrong with the answers of one question."""
    if not row.answers:
        yield "no-answers", ""
        return
    texts = set(row.answers)
    forms = {text: form(text) for text in texts}
    if ten and len(row.answers) != 10:
        yield "not-ten-answers", f"{row.question_id} has {len(row.answers)}"
    if not row.ids_differ:
        yield "duplicate-answer-id", ""
    if any(each.empty for each in forms.values()):
        yield "empty-answer", ""
    if len(texts) == 1 and (text := row.answers[0]) and forms[text].normal != clean_answer(text):
        yield "literal-answers", f"{row.question_id}: {short(text)}, in the normal form {short(forms[text].normal)}"
    if capital := [text for text, each in forms.items() if each.upper]:
        yield "upper-case-answer", f"{row.question_id}: {short(capital[0])}"
    if row.main_answer and form(row.main_answer).normal not in {each.normal for each in forms.values()}:
        yield "foreign-main-answer", f"{row.question_id}: {short(row.main_answer)}"
    yield from _type_faults(row, forms)


def _type_faults(row: Annotation, forms: dict[str, Form]) -> Iterator[tuple[str, str]]:
    if row.answer_type not in TYPES:
        yield "unknown-answer-type", f"{row.question_id}: {short(row.answer_type)}"
        return
    # what humans said most decides, not multiple_choice_answer, which may be wrong itself
    said = max(Counter(row.answers).items(), key=lambda item: item[1])[0] if len(forms) > 1 else row.answers[0]
    boolean = forms[said].normal in ("yes", "no")
    if row.answer_type == "number":
        wrong = not any(each.digits for each in forms.values())
    else:
        wrong = boolean != (row.answer_type == "yes/no")
    if wrong:
        yield "answer-type-contradiction", f"{row.question_id}: {row.answer_type}, and most humans said {short(said)}"


def _one_answer(part: Part) -> Iterator[Finding]:
    """One answer for every question, or for nearly all."""
    counts = Counter(main_answer(row) for row in part.annotations or [] if row.answers)
    total = sum(counts.values())
    if total < _FEW:
        return
    answer, count = counts.most_common(1)[0]
    if count >= _MOSTLY * total:
        code = "one-answer-everywhere" if count == total else "mostly-one-answer"
        text = f"{short(answer)} stands for {count:,} of {total:,} questions"
        yield Finding(code, part.name, count, [answer], text)
