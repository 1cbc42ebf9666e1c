"""Findings: what is wrong, how bad it is, which ids it concerns, what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

SHOWN = 20  # ids that a finding keeps; `count` says how many there are

SEVERITIES = ("error", "warning", "note")
"""error: training stops, loses samples that were meant to be there, or its score means nothing · warning: training goes
well, and somebody should look · note: good to know."""


class Kind(NamedTuple):
    """What findings of one code have in common."""

    severity: str
    remedy: str


KINDS: dict[str, Kind] = {
    # files
    "missing-file": Kind("error", "complete the folder: both files and the pictures of a split belong together"),
    "damaged-file": Kind("error", "get the file again; what stands behind the damage was not looked at"),
    "malformed-row": Kind("error", "correct the rows, or get the file again"),
    "wrong-split-file": Kind("error", "the file was renamed or mixed up: give it back its name, or get it again"),
    "refused": Kind("error", "follow the message: vlbeit train would stop with it"),
    "empty-split": Kind("error", "take a file with questions, or leave the split out"),
    # ids
    "duplicate-question-id": Kind("error", "remove the copies, or give each question an id of its own"),
    "duplicate-annotation": Kind("error", "remove the copies: which answers hold cannot be known"),
    "question-without-annotation": Kind("error", "take both files from one release, or remove the questions"),
    "annotation-without-question": Kind("error", "take both files from one release, or remove the annotations"),
    "image-id-mismatch": Kind("error", "take both files from one release; one of the two ids is wrong"),
    "dangling-image-id": Kind("error", "correct the image_id, or remove the questions"),
    "question-id-in-two-splits": Kind("warning", "give them ids of their own, or the splits cannot be joined"),
    # pictures
    "missing-image": Kind("error", "complete the folder of pictures, or remove what belongs to them"),
    "broken-image": Kind("error", "get the pictures again, or remove what belongs to them"),
    "odd-image": Kind("note", "look at them: a thumbnail, a strip or a giant is seldom what was meant"),
    # leakage
    "image-in-two-splits": Kind("error", "split by picture: remove the questions of one side"),
    "same-picture-in-two-splits": Kind("error", "split by picture: remove the copies on one side"),
    "near-copy-in-two-splits": Kind("warning", "look at the pairs; remove those that show the same"),
    "crowded-look": Kind("note", "look at some of them; byte for byte they were compared with all"),
    "same-picture-in-one-split": Kind("note", "nothing is wrong if that is known; its questions could share one file"),
    # questions
    "empty-question": Kind("warning", "write the question, or remove it: it can only be guessed"),
    "long-question": Kind("warning", "raise text.max_length (and text.positions), or the end is cut off"),
    "near-duplicate-question": Kind("warning", "keep one of each, or they count twice in training and in the score"),
    # captions and documents
    "no-text": Kind("error", "write the caption or remove the sample; training replaces up to data.max_bad_fraction="),
    "empty-text": Kind("warning", "write the text, or remove it: there is nothing to read"),
    "long-caption": Kind("note", "raise text.max_length (and text.positions), or the end is cut off"),
    "mostly-one-text": Kind("warning", "remove it: a text of many pictures, such as a notice, tells nothing of any"),
    "same-text-in-two-splits": Kind("warning", "remove them from one side: what was read in training is scored"),
    "failed-downloads": Kind("note", "vlbeit prepare with --again asks once more for those that may come now"),
    # answers
    "no-answers": Kind("error", "take the annotations from the release: these questions train and score nothing"),
    "empty-answer": Kind("warning", "remove the empty answers or the question: an empty prediction would match them"),
    "not-ten-answers": Kind("warning", "the official accuracy is made for ten; scores do not compare with others'"),
    "duplicate-answer-id": Kind("warning", "count them 1, 2, ...: the original scoring code tells answers by their id"),
    "literal-answers": Kind("warning", "write the answers in the normal form, or no model with a vocabulary gets them"),
    "upper-case-answer": Kind("warning", "write answers in lower case: equal ones are compared literally"),
    "answer-type-contradiction": Kind("warning", "correct answer_type, or the score by type means little"),
    "unknown-answer-type": Kind("note", "yes/no, number and other are the official ones; these are scored beside them"),
    "foreign-main-answer": Kind("warning", "correct multiple_choice_answer: the vocabulary is counted from it"),
    "one-answer-everywhere": Kind("error", "there is nothing to learn: take data whose answers differ"),
    "mostly-one-answer": Kind("warning", "compare with the majority baseline: accuracy alone will look fine"),
    "empty-vocabulary": Kind("error", "lower task.min_count (--min-count here), or take more data"),
    "low-ceiling": Kind("warning", "lower task.min_count (--min-count here), or clean the answers"),
}
"""Every code that a report can hold. A code is stable: programs may rely on it."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with one split, or between two."""

    code: str
    split: str  # such as train2014, or train2014, val2014
    count: int
    ids: list[int | str]  # the first ones: of questions, of pictures (of pairs both), or names of files and rows
    message: str
    mild: bool = False  # an error in so small a measure, or in such data, that it is a warning

    @property
    def severity(self) -> str:
        """One of `SEVERITIES`."""
        return "warning" if self.mild else KINDS[self.code].severity

    def to_json(self) -> dict[str, Any]:
        """The keys of `--json`."""
        remedy = KINDS[self.code].remedy
        return {"code": self.code, "severity": self.severity, "split": self.split, "count": self.count,
                "ids": self.ids, "message": self.message, "remedy": remedy}  # fmt: skip


def found(code: str, split: str, ids: Sequence[int | str], message: str, *, mild: bool = False) -> list[Finding]:
    """A finding about these ids, or none where there is no id."""
    return [Finding(code, split, len(ids), list(ids[:SHOWN]), message, mild)] if ids else []


def ordered(findings: Sequence[Finding]) -> list[Finding]:
    """Errors first, then warnings, then notes; those of a severity as they were found."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
