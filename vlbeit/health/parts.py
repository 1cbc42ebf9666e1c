"""A split as it was found, faults included: its questions, its annotations, where its pictures lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from vlbeit.data.answers import majority_answer
from vlbeit.types import Record

from .findings import Finding

Place: TypeAlias = str | Callable[[], bytes]
"""Where a picture is: the path of its file, or what reads its encoded bytes."""


class Question(NamedTuple):
    """A row of a question file."""

    question_id: int
    image_id: int | str
    text: str  # "" also where the row has none


class Annotation(NamedTuple):
    """A row of an annotation file."""

    question_id: int
    image_id: int | str | None  # None: the row names no picture
    question_type: str
    answer_type: str
    answers: tuple[str, ...]  # raw; of what is no text its form in Python, as training has it; "" for none
    ids_differ: bool  # whether every answer has an answer_id of its own
    main_answer: str  # multiple_choice_answer, "" for none


class Texts(NamedTuple):
    """Captions of the pictures, or documents without any."""

    ids: Sequence[str]
    texts: Sequence[str]
    captions: bool


@dataclass
class Part:
    """One split. `questions` is empty for data without questions, of which only the pictures are looked at."""

    name: str
    questions: list[Question]
    annotations: list[Annotation] | None  # None: the answers are hidden
    pictures: Mapping[int | str, Place]  # by image_id: all that are there, asked about or not
    findings: list[Finding] = field(default_factory=list)  # of reading
    whole: bool = True  # False: a file is damaged, so that what does not fit together is no surprise
    ten: bool = True  # whether ten answers belong to a question
    numbered: bool = True  # whether an image_id is one picture in all splits, as in COCO
    place: str = ""  # where its pictures should lie, for messages
    texts: Texts | None = None

    def asked(self) -> list[int | str]:
        """Ids of the pictures that are used, each once: those asked about, or all where there are no questions."""
        if not self.questions:
            return list(self.pictures)
        return list(dict.fromkeys(question.image_id for question in self.questions))

    def records(self) -> ColumnRecords:
        """The questions that have an annotation, each once, as `vqa` records without pictures."""
        texts = {question.question_id: question for question in reversed(self.questions)}
        rows = {row.question_id: row for row in reversed(self.annotations or []) if row.question_id in texts}
        notes = list(reversed(rows.values()))
        return ColumnRecords(
            {
                "question_id": [row.question_id for row in notes],
                "image_id": [texts[row.question_id].image_id for row in notes],
                "question": [texts[row.question_id].text for row in notes],
                "question_type": [row.question_type for row in notes],
                "answer_type": [row.answer_type for row in notes],
                "answers": [row.answers for row in notes],
                "multiple_choice_answer": [row.main_answer or majority_answer(row.answers) for row in notes],
            }
        )


class ColumnRecords:
    """Records held by column, which costs a fraction of as many dictionaries."""

    def __init__(self, columns: Mapping[str, Sequence[Any]]) -> None:
        self._columns = columns

    def __len__(self) -> int:
        return len(next(iter(self._columns.values()), ()))

    def __getitem__(self, index: int) -> Record:
        return {name: values[index] for name, values in self._columns.items()}

    def column(self, name: str) -> Sequence[Any]:
        return self._columns[name]
