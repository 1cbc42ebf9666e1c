"""Which answers a run of VQA chooses among, and what that choice costs its training questions."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlbeit.config import DataConfig
from vlbeit.data.answers import Coverage, build_vocabulary, counted_answers, coverage
from vlbeit.data.records import JoinedRecords
from vlbeit.data.sources import open_records
from vlbeit.data.vqa_v2_splits import without_genome
from vlbeit.errors import UsageError
from vlbeit.types import Meta, Records

from .answers import read_answers

if TYPE_CHECKING:
    from .task import VQASettings

log = logging.getLogger(__name__)


class VocabularyChoice:
    """The answers that `task.answers` asks for, and the facts of that choice that are stored with the run."""

    def __init__(self, settings: VQASettings, data: DataConfig, inherited: Sequence[str] | None) -> None:
        self.settings, self.data, self.inherited = settings, data, inherited

    def meta(self, train: Records) -> Meta:
        """`answers`, and `vocabulary`: where they come from, and their `Coverage` of the training questions.

        Raises UsageError where no answer is frequent enough.
        """
        settings = self.settings
        facts: dict[str, Any] = {"source": settings.answers, "targets": settings.targets}
        if settings.answers not in ("auto", "own"):
            answers = read_answers(Path(settings.answers).expanduser())
        elif settings.answers == "auto" and self.inherited is not None:
            answers, facts["source"] = list(self.inherited), "init"
        else:
            answers = self._own(train)
            rule = {"min_count": settings.min_count, "max_answers": settings.max_answers}
            facts |= {"source": "own", "splits": self._splits(), **rule}
        if settings.init_answers:
            _compare_order(answers, read_answers(Path(settings.init_answers).expanduser(), "task.init_answers"))
        found = coverage(train, answers)._asdict()
        return {"answers": answers, "vocabulary": {**facts, "answers": len(answers), "training": found}}

    def _own(self, train: Records) -> list[str]:
        """The answers that are frequent in the splits of the vocabulary, by the published rule."""
        settings = self.settings
        records = train if self._splits() == [self.data.train_split] else self._records()
        answers = build_vocabulary(counted_answers(records), settings.min_count, settings.max_answers)
        if not answers:
            which = "training questions" if records is train else f"questions of {', '.join(self._splits())}"
            raise UsageError(
                f"no answer stands for task.min_count={settings.min_count} of the {len(records)} {which}: "
                f"lower task.min_count"
            )
        return answers

    def _splits(self) -> list[str]:
        """The splits that are counted: those typed, else the training split without Visual Genome."""
        return list(self.settings.vocabulary_splits) or [without_genome(self.data.train_split)]

    def _records(self) -> Records:
        """All questions of the splits: a quick try with `data.limit` has the answers of the whole run."""
        whole = replace(self.data, limit=None)
        parts = [open_records(whole, "vqa", split) for split in self._splits()]
        return parts[0] if len(parts) == 1 else JoinedRecords(parts)


def coverage_lines(facts: Mapping[str, Any]) -> list[str]:
    """What the facts that `VocabularyChoice` stores say of the training questions, for people."""
    found = Coverage(**facts["training"])
    if not found.questions:
        return [f"vocabulary: {facts['answers']} answers"]
    raw, normalized = (f"{count} ({100 * count / found.questions:.2f} %)" for count in (found.raw, found.normalized))
    return [
        f"vocabulary: {facts['answers']} answers, with the majority answer of {found.majority} of {found.questions} "
        f"training questions ({100 * found.majority / found.questions:.2f} %)",
        f"task.targets={facts['targets']}: matched raw, as published, the answers of {raw} questions give a target, "
        f"normalized those of {normalized}; {found.differing} questions have other targets in the two ways",
    ]


def _compare_order(answers: Sequence[str], of_init: Sequence[str]) -> None:
    """Name a list of answers of init's classifier that has ours in another order: the one or the other is wrong."""
    if sorted(answers) == sorted(of_init) and list(answers) != list(of_init):
        place = next(row for row, (ours, theirs) in enumerate(zip(answers, of_init, strict=True)) if ours != theirs)
        log.warning(
            "task.init_answers has the answers of this run in another order, from row %d on (%r there, %r here): "
            "init's rows are taken by its list, which must be the classifier's own order; published classifiers have "
            "the order of first appearance in train and val",
            place, of_init[place], answers[place],
        )  # fmt: skip
