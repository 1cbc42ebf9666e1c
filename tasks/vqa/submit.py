"""Answering a test: what is kept of every batch, and the file for the server that is made of it all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from vlbeit.data.answer_file import write_answers
from vlbeit.errors import DataError, some
from vlbeit.types import Batch, Records

from .answering import Answering


class AnswerSheet:
    """The questions of the records, each with its place in the answer file."""

    def __init__(self, records: Records, answering: Answering) -> None:
        """Raises DataError where a question id stands for two questions: the server takes one answer to each."""
        self.answering = answering
        ids = [int(key) for key in records.column("question_id")]
        twice = [key for key, count in Counter(ids).items() if count > 1]
        if twice:
            raise DataError(f"question ids that stand for two questions: {some(twice)}; answer their files one by one")
        self.question_of = dict(zip(records.column("id"), ids, strict=True))

    def answer(self, objective: nn.Module, batch: Batch) -> dict[str, str]:
        """Sample id -> the likeliest answer to its question."""
        return dict(zip(batch["sample_id"], self.answering.best(objective, batch), strict=True))

    def write(self, path: str | Path, answers: Mapping[str, str]) -> int:
        """Write the answer file of all questions' answers by sample id; return how many.

        Raises DataError, with nothing overwritten, unless every question has its answer.
        """
        by_question = {self.question_of[sample_id]: answer for sample_id, answer in answers.items()}
        return write_answers(path, by_question, self.question_of.values())
