"""Predictions over a split and what they score: official accuracy, the blind baseline beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from vlbeit.bootstrap import Interval, mean_interval
from vlbeit.dist import gather_objects
from vlbeit.errors import DataError
from vlbeit.types import Batch, Records

from .answering import Answering
from .answers import best_scores
from .blind import BlindGuess
from .breakdown import Table, breakdown, tables
from .rules import Scores, numbers, percent
from .scoring import schema, score_records


class AnswerCollector:
    """The likeliest answer to every question of the records; a question seen twice counts once."""

    def __init__(self, records: Records, answering: Answering) -> None:
        self.answering = answering
        self.question_ids = [int(key) for key in records.column("question_id")]
        self.question_of = dict(zip(records.column("id"), self.question_ids, strict=True))
        self.predictions: dict[int, str] = {}

    def update(self, objective: nn.Module, batch: Batch) -> None:
        """Answer the questions of one batch."""
        for sample_id, answer in zip(batch["sample_id"], self.answering.best(objective, batch), strict=True):
            self.predictions[self.question_of[sample_id]] = answer

    def compute(self) -> dict[str, float]:
        """`answers`: how many questions are answered, over all processes."""
        return {"answers": float(len(self.gather()))}

    def state_dict(self) -> dict[str, Any]:
        """The predictions so far, of this process."""
        return {"predictions": dict(self.predictions)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up predictions where `state_dict` left them; JSON's text keys are welcome."""
        self.predictions = {int(key): answer for key, answer in state["predictions"].items()}

    def gather(self) -> dict[int, str]:
        """Question id -> answer over all processes."""
        return {key: answer for part in gather_objects(self.predictions) for key, answer in part.items()}


class VQAEvaluator:
    """Official VQA accuracy in percent over all questions that have human answers.

    A question whose human answers are all outside the vocabulary stays in and usually scores 0. `blind` makes the
    blind baseline, on first use; `blind` is left out of the numbers where it gives None.
    """

    over = "questions"

    def __init__(self, records: Records, answering: Answering, blind: Callable[[], BlindGuess | None]) -> None:
        self.records = records
        self.collector = AnswerCollector(records, answering)
        self.blind = blind
        self.scores = Scores([], [], [], [])  # of the last `compute`
        self._predicted: dict[int, str] = {}

    def update(self, objective: nn.Module, batch: Batch) -> None:
        """Answer the questions of one batch."""
        self.collector.update(objective, batch)

    def compute(self) -> dict[str, float]:
        """`overall`, `yes/no`, `number`, `other` (those that occur), `blind`: percent; `questions`: their number.

        Raises DataError where no question has human answers.
        """
        self._predicted = self.collector.gather()
        self.scores = score_records(self.records, self._predicted)
        if not self.scores.values:
            raise DataError("these questions have no human answers to score against: vlbeit submit answers them")
        result, guess = numbers(self.scores), self.blind()
        return result if guess is None else result | {"blind": percent(guess.scores(self.records))}

    def details(self) -> list[dict[str, Any]]:
        """One row per scored question of the last `compute`.

        question_id, answer (null where none was given), score in [0, 1], answer_type, question_type.
        """
        rows = sorted(zip(*self.scores, strict=True))
        return [
            {
                "question_id": key,
                "answer": self._predicted.get(key),
                "score": score,
                "answer_type": answer_type,
                "question_type": question_type,
            }
            for key, score, answer_type, question_type in rows
        ]

    def intervals(self) -> dict[str, Interval]:
        """Of `overall`, in percent, over questions."""
        low, high = mean_interval(self.scores.values)
        return {"overall": (100 * low, 100 * high)}

    def report(self, controls: Mapping[str, VQAEvaluator]) -> tuple[dict[str, Any], list[Table]]:
        """What stands beside the numbers of the last `compute`, for the file and for the terminal.

        The official results by type, and the `breakdown`. `controls` have seen the same questions with other pictures.
        """
        reached = best_scores(self.records.column("answers"), self.collector.answering.answers)
        keys = map(int, self.records.column("question_id"))
        best = {key: score for key, score in zip(keys, reached, strict=True) if score is not None}
        baselines: dict[str, Sequence[float]] = {}
        guess = self.blind()
        if guess is not None:
            baselines["majority"] = guess.majority_scores(self.records)
            baselines["question_only"] = guess.scores(self.records)
        baselines |= {name: control.scores.values for name, control in controls.items()}
        found = breakdown(self.scores, best, len(self.collector.answering.answers), baselines)
        official = schema(self.scores, None if guess is None else percent(baselines["question_only"]))
        del official["perQuestion"]  # which the details have
        return {**official, "breakdown": found}, tables(found)

    def state_dict(self) -> dict[str, Any]:
        """The predictions so far, of this process."""
        return self.collector.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up predictions where `state_dict` left them; JSON's text keys are welcome."""
        self.collector.load_state_dict(state)
