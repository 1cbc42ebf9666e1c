"""Blind baselines: how far one gets on VQA without looking at the picture, or at a wrong one.

A model that does not beat them by far has learned the language of the questions, not the pictures (Goyal et al. 2017).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from vlbeit.data.answers import majority_answers
from vlbeit.data.prepared import ORIGIN
from vlbeit.data.records import FieldColumn
from vlbeit.data.stand_in import stand_in
from vlbeit.errors import DataError
from vlbeit.types import Record, Records

from .scoring import score_records


class BlindGuess:
    """Answers a question from its text and type alone.

    The most frequent training answer to the same text, else to the question type, else `overall`.
    """

    def __init__(self, train: Records) -> None:
        """Counts the questions that have human answers. Raises DataError where there is none."""
        columns = (train.column(name) for name in ("answers", "question", "question_type"))
        rows = zip(majority_answers(train), *columns, strict=True)
        seen = [(answer, question_key(text), kind) for answer, humans, text, kind in rows if humans]
        if not seen:
            raise DataError("the training questions have no human answers")
        self.by_text = _most_frequent((text, answer) for answer, text, _ in seen)
        self.by_type = _most_frequent((kind, answer) for answer, _, kind in seen)
        self.overall = Counter(answer for answer, _, _ in seen).most_common(1)[0][0]
        self._scored: tuple[Records, Sequence[float]] | None = None

    def __call__(self, question: str, question_type: str) -> str:
        return self.by_text.get(question_key(question), self.by_type.get(question_type, self.overall))

    def scores(self, records: Records) -> Sequence[float]:
        """What it scores on each question that has human answers; found once, however often a run is evaluated."""
        if self._scored is None or self._scored[0] is not records:
            columns = (records.column(name) for name in ("question_id", "question", "question_type"))
            guesses = {int(key): self(text, kind) for key, text, kind in zip(*columns, strict=True)}
            self._scored = records, score_records(records, guesses).values
        return self._scored[1]

    def majority_scores(self, records: Records) -> Sequence[float]:
        """What `overall`, whatever is asked, scores on each question that has human answers."""
        guesses = dict.fromkeys(map(int, records.column("question_id")), self.overall)
        return score_records(records, guesses).values


def question_key(text: str) -> str:
    """Questions that differ in case or outer spaces only are the same."""
    return text.strip().casefold()


def _most_frequent(pairs: Iterable[tuple[Hashable, str]]) -> dict[Hashable, str]:
    """Key -> its most frequent answer, the first seen of equals."""
    counts: dict[Hashable, Counter[str]] = defaultdict(Counter)
    for key, answer in pairs:
        counts[key][answer] += 1
    return {key: counter.most_common(1)[0][0] for key, counter in counts.items()}


class BlankPictures:
    """The same questions, each about a mid-grey picture."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        return stand_in(self._records[index])

    def column(self, name: str) -> Sequence[Any]:
        if name == "image":
            return [stand_in({})["image"]] * len(self)
        return self._records.column(name)


class ShuffledPictures:
    """The same questions, each about the picture of others: the pictures are permuted, and none keeps its place.

    All questions about one picture get the same other one, so that every picture is asked about as often as some
    picture was. Raises ValueError where there is one picture alone.
    """

    def __init__(self, records: Records, seed: int = 0) -> None:
        self._records = records
        images = list(records.column("image_id"))
        first_row = {image: row for row, image in reversed(list(enumerate(images)))}
        distinct = sorted(first_row)
        if len(distinct) < 2:
            raise ValueError(f"{len(distinct)} picture cannot be shuffled: there must be two")
        order = np.random.default_rng(seed).permutation(len(distinct)).tolist()
        after = dict(zip(order, [*order[1:], order[0]], strict=True))  # one cycle through all of them
        other = {image: first_row[distinct[after[place]]] for place, image in enumerate(distinct)}
        self._rows = [other[image] for image in images]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        other = self._records[self._rows[index]]
        return {**self._records[index], "image": other["image"], "image_id": other["image_id"]}

    def column(self, name: str) -> Sequence[Any]:
        own = self._records.column(name)
        if name not in ("image", "image_id", ORIGIN):
            return own
        if isinstance(own, FieldColumn):
            return FieldColumn(self, name)
        whole = list(own)
        return [whole[row] for row in self._rows]
