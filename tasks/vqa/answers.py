"""The answer vocabulary and the soft targets of VQA v2 (Teney et al. 2018; ViLT's and VLMo's rules)."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from vlbeit.data.answers import clean_answer, known_answers, normalize_answer
from vlbeit.errors import DataError, UsageError
from vlbeit.types import Records

from .rules import answer_score, percent

log = logging.getLogger(__name__)

SOFT_SCORES = (0.0, 0.3, 0.6, 0.9, 1.0)  # target of an answer that 0, 1, 2, 3, 4 or more humans gave
_FEW = 10  # answers that may stand in alphabetical order by chance


def read_answers(path: Path, key: str = "task.answers") -> list[str]:
    """The answers of a file in the order of the classifier: a JSON list, or lines {"answer": text, "label": number}.

    The second is `answer2label.txt` of BEiT-3. Raises DataError naming file and place.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{key}={path} is not auto, own or a file that can be read ({error})") from error
    try:
        if text.lstrip().startswith("["):
            answers = json.loads(text)
        else:
            rows = sorted((json.loads(line) for line in text.split("\n") if line.strip()), key=lambda row: row["label"])
            answers = [row["answer"] for row in rows]
            if [row["label"] for row in rows] != list(range(len(rows))):
                raise ValueError("the labels are not 0, 1, 2, ... without a gap")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f'{path}: {type(error).__name__}: {error}; it must be a JSON list of answers, or lines {{"answer": text, '
            f'"label": number}}'
        ) from error
    if not answers or not all(isinstance(answer, str) for answer in answers):
        raise DataError(f"{path}: the list is empty, or not of texts; give the answers in the classifier's order")
    if len(answers) > _FEW and answers == sorted(answers):
        log.warning(
            "%s: the answers stand in alphabetical order, and published classifiers have theirs in the order of first "
            "appearance in train and val: a list in another order than the classifier's gives each row a wrong answer",
            path,
        )
    if twice := [answer for answer, count in Counter(answers).items() if count > 1]:
        raise DataError(f"{path}: {len(twice)} answers stand there twice, such as {twice[0]!r}; each has one label")
    return answers


class AnswerVocabulary:
    """Ids of the known answers, and the soft targets that go with them.

    `normalize` brings the human answers into the vocabulary's normal form before they are matched (`known_answers`).
    """

    def __init__(self, answers: Sequence[str], *, normalize: bool = False) -> None:
        self.answers = list(answers)
        self.ids = {answer: index for index, answer in enumerate(self.answers)}
        self.normalize = normalize

    def __len__(self) -> int:
        return len(self.answers)

    def soft_scores(self, humans: Sequence[str]) -> dict[int, float]:
        """Answer id -> score in {0.3, 0.6, 0.9, 1}; empty if no human answer is in the vocabulary."""
        counts = known_answers(humans, self.ids, normalize=self.normalize)
        return {self.ids[answer]: SOFT_SCORES[min(count, 4)] for answer, count in counts.items()}

    def knows(self, humans: Sequence[str]) -> bool:
        """Whether a human answer is in the vocabulary: whether the question can be trained on."""
        return bool(known_answers(humans, self.ids, normalize=self.normalize))

    def answerable(self, records: Records) -> list[int]:
        """Rows of the records that can be trained on."""
        return [row for row, humans in enumerate(records.column("answers")) if self.knows(humans)]


class Ceiling(NamedTuple):
    """What a vocabulary allows: the best official accuracy in percent, and how many questions it scores at all on."""

    percent: float
    covered: int


def ceiling(records: Records, answers: Sequence[str]) -> Ceiling:
    """The official accuracy of whoever always picks the best of `answers`, over all questions with human answers.

    Each question counts with the highest `answer_score` that any of the answers reaches; one that none of them scores
    on counts 0 and is not `covered`. Rounded to two digits, as the official accuracy is, so that the two compare.
    Raises ValueError where no question has human answers.
    """
    scores = [score for score in best_scores(records.column("answers"), answers) if score is not None]
    if not scores:
        raise ValueError("no question has human answers: there is no ceiling to their score")
    return Ceiling(percent(scores), sum(score > 0 for score in scores))


def best_scores(humans_of: Iterable[Sequence[str]], answers: Sequence[str]) -> Iterator[float | None]:
    """Of every question's human answers the highest official score that one of `answers` reaches; None without any."""
    known = _Candidates(answers)
    for humans in humans_of:
        candidate = known.best(humans) if humans else None
        yield answer_score(candidate, humans) if candidate is not None else 0.0 if humans else None


class _Candidates:
    """Which of the answers can match a question's humans: looked up, not tried one by one."""

    def __init__(self, answers: Sequence[str]) -> None:
        self._literal = {clean_answer(answer): answer for answer in answers}
        self._normal = {normalize_answer(answer): answer for answer in answers}

    def best(self, humans: Sequence[str]) -> str | None:
        """The answer that agrees with most humans, which is the one that scores highest; None where none agrees."""
        texts = [clean_answer(human) for human in humans]
        if texts.count(texts[0]) == len(texts):  # compared literally
            return self._literal.get(texts[0])
        counts = Counter(normalize_answer(text) for text in texts)
        return max(
            (self._normal[text] for text in counts if text in self._normal),
            key=lambda answer: counts[normalize_answer(answer)],
            default=None,
        )
