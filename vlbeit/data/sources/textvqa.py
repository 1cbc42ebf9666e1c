"""TextVQA: questions that need the text in the picture to be read (textvqa.org, version 0.5.1; Singh et al. 2019)."""

from __future__ import annotations

from typing import Any, ClassVar

from vlbeit.data.json_file import json_rows
from vlbeit.data.sources.question_files import QuestionFile, QuestionFiles
from vlbeit.types import Record


class TextVQA(QuestionFiles):
    """TextVQA in its official files. Pictures of train and val lie in one folder; the test split has no answers.

    Its image ids are hexadecimal numbers of 16 digits: `image_id` is their value without the highest bit.
    """

    layout: ClassVar[str] = (
        "textvqa reads ROOT/TextVQA_0.5.1_train.json, _val.json, _test.json and the pictures in ROOT/train_images and "
        "ROOT/test_images (or data.images=DIR/train_images, ...)"
    )

    def file(self, split: str) -> QuestionFile:
        folder = "test_images" if split == "test" else "train_images"
        path = self.root / f"TextVQA_0.5.1_{split}.json"
        return QuestionFile(path, self.picture_folder(folder), lambda path: json_rows(path, "data"))

    def row(self, item: Any, number: int) -> Record:
        return {
            "id": str(int(item["question_id"])),
            "image": f"{item['image_id']}.jpg",
            "question": str(item["question"]),
            "question_id": int(item["question_id"]),
            "image_id": int(item["image_id"], 16) & (2**63 - 1),
            "answers": [str(answer) for answer in item.get("answers") or []],
        }


SOURCE = TextVQA
