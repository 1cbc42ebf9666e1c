"""The blind baseline: how far one gets on VQA without looking at the picture.

For every question the most frequent training answer to the same text, else to its question type, else over all.
A model that does not beat it by far has learned the language of the questions, not the pictures (Goyal et al. 2017).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable

from vlbeit.data.answers import majority_answers
from vlbeit.types import Records


class BlindGuess:
    """Answers a question from its text and type alone."""

    def __init__(self, train: Records) -> None:
        answers = majority_answers(train)
        texts = (question_key(text) for text in train.column("question"))
        self.by_text = _most_frequent(zip(texts, answers, strict=True))
        self.by_type = _most_frequent(zip(train.column("question_type"), answers, strict=True))
        self.overall = Counter(answers).most_common(1)[0][0]

    def __call__(self, question: str, question_type: str) -> str:
        return self.by_text.get(question_key(question), self.by_type.get(question_type, self.overall))


def question_key(text: str) -> str:
    """Questions that differ in case or outer spaces only are the same."""
    return text.strip().casefold()


def _most_frequent(pairs: Iterable[tuple[Hashable, str]]) -> dict[Hashable, str]:
    """Key -> its most frequent answer, the first seen of equals."""
    counts: dict[Hashable, Counter[str]] = defaultdict(Counter)
    for key, answer in pairs:
        counts[key][answer] += 1
    return {key: counter.most_common(1)[0][0] for key, counter in counts.items()}
