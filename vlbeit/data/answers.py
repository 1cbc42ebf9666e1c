"""Answers as texts: the official normal form, the one answer of a question, the vocabulary of a data set.

The normal form is an own port of the rules of GT-Vision-Lab/VQA `vqaEval.py` (a013f00, 2021-03-11), its oddities
included, because a number is comparable only if every quirk is the same: Goyal et al. 2017,
https://visualqa.org/evaluation.html. Plain Python, which data preparation shares with the task.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'  # everything else stays: ' : $ % & # * and all non-ASCII marks
ARTICLES = frozenset(("a", "an", "the"))
NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
MIN_COUNT = 9  # the default of task.min_count: the published rule of VQA v2
_COVERED = 0.9  # share of the training questions that a proposed vocabulary has an answer to
MOST_PERIODS = 32  # the original passes re.UNICODE (32) where `count` belongs: later periods stay

_DIGIT_COMMA_DIGIT = re.compile("[0-9],[0-9]")
_LOOSE_PERIOD = re.compile(r"\.(?![0-9])")  # the original's look-behind is misspelt and always true

# Words whose spelling with exactly one apostrophe left out is repaired. Absent, and so left alone, are among others
# "shes", "ive", "im" and "lets" (the original lists them under spellings that its lower-cased text cannot have).
_REPAIRED = """
    ain't aren't can't couldn't didn't doesn't don't hadn't hasn't haven't isn't mightn't mustn't needn't oughtn't
    shan't shouldn't wasn't weren't won't wouldn't
    couldn't've hadn't've mightn't've shouldn't've wouldn't've
    could've might've must've not've should've they've we've what've where've who've would've you've
    he'd how'd it'd someone'd something'd there'd they'd where'd who'd you'd
    he'd've it'd've she'd've somebody'd've someone'd've something'd've there'd've they'd've we'd've who'd've you'd've
    how'll it'll somebody'll someone'll something'll they'll what'll who'll why'll you'll
    there're they're what're why're you're
    he's how's somebody's someone's that's there's what's when's where's who's why's
    ma'am o'clock 'twas 'ow's'at y'all y'all'll y'all'd've
"""


def _misspellings(word: str) -> list[str]:
    """The word without its first, without its second, ... apostrophe."""
    return [word[:place] + word[place + 1 :] for place, letter in enumerate(word) if letter == "'"]


CONTRACTIONS = {wrong: word for word in _REPAIRED.split() for wrong in _misspellings(word)}
CONTRACTIONS["somebody'd"] = "somebodyd"  # the original has this one the wrong way round


class Columns(Protocol):
    """A table that gives all values of a field, as records do."""

    def column(self, name: str) -> Sequence[Any]: ...


def clean_answer(text: str) -> str:
    """What is always done to an answer: line ends and tabs become spaces, the ends are stripped."""
    return text.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=1 << 17)
def normalize_answer(text: str) -> str:
    """The official normal form: punctuation, then lower case, number words, articles and contractions."""
    words = _lower(_without_punctuation(clean_answer(text))).split()
    numbers = (NUMBERS.get(word, word) for word in words)
    return " ".join(CONTRACTIONS.get(word, word) for word in numbers if word not in ARTICLES)


def _without_punctuation(text: str) -> str:
    # One "1,000" anywhere makes every mark vanish instead of turning into a space.
    vanish = _DIGIT_COMMA_DIGIT.search(text) is not None
    marks = {ord(mark): "" if vanish or f"{mark} " in text or f" {mark}" in text else " " for mark in PUNCTUATION}
    return _LOOSE_PERIOD.sub("", text.translate(marks), count=MOST_PERIODS)


def _lower(text: str) -> str:
    # Letter by letter, as Python 2 did: one letter never becomes two, and there is no final sigma.
    return text.lower() if text.isascii() else "".join(letter.lower()[0] for letter in text)


def majority_answer(answers: Sequence[str]) -> str:
    """The most frequent raw answer, the first of equals; "" if there is none."""
    return Counter(answers).most_common(1)[0][0] if answers else ""


def build_vocabulary(majority: Iterable[str], min_count: int, max_answers: int | None = None) -> list[str]:
    """Normalised answers that stand for at least `min_count` questions, in order of first appearance.

    Of more than `max_answers` of them the most frequent, in the same order; of equally frequent ones the first.
    """
    counts = Counter(normalize_answer(answer) for answer in majority)
    chosen = {answer for answer, count in counts.most_common(max_answers) if count >= min_count}
    return [answer for answer in counts if answer in chosen]


def majority_answers(records: Columns) -> list[str]:
    """The one answer that stands for each question: `multiple_choice_answer` where the data has it, else the majority.

    Read as columns, no image is touched.
    """
    columns = records.column("multiple_choice_answer"), records.column("answers")
    return [given or majority_answer(humans) for given, humans in zip(*columns, strict=True)]


def counted_answers(records: Columns) -> list[str]:
    """What a vocabulary is counted in: `majority_answers` of the questions that have human answers."""
    pairs = zip(majority_answers(records), records.column("answers"), strict=True)
    return [answer for answer, humans in pairs if humans]


def known_answers(humans: Sequence[str], known: Container[str], *, normalize: bool) -> Counter[str]:
    """How many humans gave each of the known answers: as they are written, or `normalize`d.

    The published rule takes them as written, so that "t-shirt" is no match although "t shirt" is known.
    """
    texts = map(normalize_answer, humans) if normalize else humans
    return Counter([text for text in texts if text in known])


def fitting_min_count(train: Columns, most: int = MIN_COUNT) -> int:
    """The task.min_count to propose: the largest up to `most` whose answers cover most training questions."""
    majority = counted_answers(train)
    for min_count in range(most, 1, -1):
        found = coverage(train, build_vocabulary(majority, min_count))
        if found.questions and found.raw >= _COVERED * found.questions:
            return min_count
    return 1


class Coverage(NamedTuple):
    """Of how many `questions` with human answers a vocabulary holds something."""

    questions: int
    majority: int  # the normal form of the majority answer
    raw: int  # an answer as a human wrote it: what training by the published rule can use
    normalized: int  # the normal form of a human's answer
    differing: int  # something else by the one rule than by the other: other soft targets


def coverage(records: Columns, answers: Iterable[str]) -> Coverage:
    """What a vocabulary covers of the questions. Read as columns, no image is touched."""
    known = frozenset(answers)
    total = dict.fromkeys(Coverage._fields, 0)
    for humans, majority in zip(records.column("answers"), majority_answers(records), strict=True):
        if not humans:
            continue
        raw = normalized = _targets(humans, known, normalize=False)
        if any(normalize_answer(text) != text for text in {*humans}):
            normalized = _targets(humans, known, normalize=True)
        total["questions"] += 1
        total["majority"] += normalize_answer(majority) in known
        total["raw"] += bool(raw)
        total["normalized"] += bool(normalized)
        total["differing"] += raw != normalized
    return Coverage(**total)


def _targets(humans: Sequence[str], known: Container[str], *, normalize: bool) -> dict[str, int]:
    """Known answer -> how many humans gave it, of whom the fifth adds nothing to its target."""
    return {answer: min(count, 4) for answer, count in known_answers(humans, known, normalize=normalize).items()}
