"""The texts of questions: empty, too long for the model, asked twice about one picture."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from vlbeit.errors import some

from .findings import Finding, found
from .parts import Part

_PIECE = re.compile(r"\w+|[^\w\s]")  # what a WordPiece tokenizer keeps apart: it makes as many tokens or more
_MARK = re.compile(r"[\W_]+")


def check_questions(part: Part, max_length: int) -> Iterator[Finding]:
    """Findings on the texts of a split; `max_length` is `text.max_length`, [CLS] and [SEP] included."""
    empty = [question.question_id for question in part.questions if not bare(question.text)]
    yield from found("empty-question", part.name, empty, f"questions without a word: {some(empty)}")
    yield from _long(part, max_length)
    yield from _near_duplicates(part)


def pieces(text: str) -> int:
    """Words and marks: the fewest tokens that the text can have."""
    return len(_PIECE.findall(text))


@lru_cache(maxsize=1 << 18)
def bare(text: str) -> str:
    """The words alone: without case, marks and spaces that say nothing."""
    return _MARK.sub(" ", text.casefold()).strip()


def _long(part: Part, max_length: int) -> Iterator[Finding]:
    """A question has fewer pieces than letters, so that few need to be taken apart."""
    room = max_length - 2
    long = {row.question_id: pieces(row.text) for row in part.questions if len(row.text) > room}
    long = {number: count for number, count in long.items() if count > room}
    lengths = [f"{number}: {count}" for number, count in long.items()]
    text = (
        f"questions of more than text.max_length={max_length} tokens, [CLS] and [SEP] included: {some(lengths)} words"
    )
    yield from found("long-question", part.name, list(long), f"{text} and marks")


def _near_duplicates(part: Part) -> Iterator[Finding]:
    first: dict[tuple[int | str, str], int] = {}
    pairs: dict[int, int] = {}
    for question in part.questions:
        if not (words := bare(question.text)):
            continue
        number = first.setdefault((question.image_id, words), question.question_id)
        if number != question.question_id:  # the same id twice is another finding
            pairs[question.question_id] = number
    shown = [f"{number} as {earlier}" for number, earlier in pairs.items()]
    text = f"questions that ask the same of the same picture, but for case and marks: {some(shown)}"
    yield from found("near-duplicate-question", part.name, list(pairs), text)
