"""A-OKVQA: questions on COCO's pictures that need knowledge and reasoning (allenai/aokvqa; Schwenk et al. 2022)."""

from __future__ import annotations

from typing import Any, ClassVar

from vlbeit.data.sources.question_files import QuestionFile, QuestionFiles, listed
from vlbeit.types import Record


class AOKVQA(QuestionFiles):
    """A-OKVQA in its official files, direct answers; the choices of its multiple-choice task are not read.

    Ids are texts there: `id` keeps them, `question_id` is the place in the file. Of the choices the right one is
    `multiple_choice_answer`. The test split has no answers.
    """

    layout: ClassVar[str] = (
        "aokvqa reads ROOT/aokvqa_v1p0_train.json and the pictures in ROOT/train2017 (or data.images=DIR/train2017), "
        "and the same with val, test"
    )

    def file(self, split: str) -> QuestionFile:
        return QuestionFile(self.root / f"aokvqa_v1p0_{split}.json", self.picture_folder(f"{split}2017"), listed)

    def row(self, item: Any, number: int) -> Record:
        right = item.get("correct_choice_idx")
        return {
            "id": str(item["question_id"]),
            "image": f"{int(item['image_id']):012d}.jpg",
            "question": str(item["question"]),
            "question_id": number,
            "image_id": int(item["image_id"]),
            "answers": [str(answer) for answer in item.get("direct_answers") or []],
            "multiple_choice_answer": "" if right is None else str(item["choices"][right]),
        }


SOURCE = AOKVQA
