"""VizWiz: pictures that blind people took and what they asked about them (vizwiz.org; Gurari et al. 2018)."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from vlbeit.data.sources.question_files import QuestionFile, QuestionFiles, listed
from vlbeit.types import Record

_NUMBER = re.compile(r"(\d+)\.[^.]+$")


class VizWiz(QuestionFiles):
    """VizWiz VQA in its official files; `unanswerable` stays an answer, and an answer type. test has no answers.

    There is one question a picture: its number, the one in the picture's name, is `question_id` and `image_id`, and
    `id` is that name, by which its leaderboard asks.
    """

    layout: ClassVar[str] = (
        "vizwiz reads ROOT/Annotations/train.json (or ROOT/annotations/, ROOT/) and the pictures in ROOT/train (or "
        "data.images=DIR/train), and the same with val, test"
    )

    def file(self, split: str) -> QuestionFile:
        places = [self.root / part / f"{split}.json" for part in ("Annotations", "annotations", ".")]
        path = next((place for place in places if place.is_file()), places[0])
        return QuestionFile(path, self.picture_folder(split), listed)

    def row(self, item: Any, number: int) -> Record:
        name = str(item["image"])
        match = _NUMBER.search(name)
        if match is None:
            raise ValueError(f"{name} has no number at its end")
        answers = [str(answer["answer"]) for answer in item.get("answers") or []]
        return {
            "id": name,
            "image": name,
            "question": str(item["question"]),
            "question_id": int(match[1]),
            "image_id": int(match[1]),
            "answers": answers,
            **({"answer_type": str(item["answer_type"])} if item.get("answer_type") and answers else {}),
        }


SOURCE = VizWiz
