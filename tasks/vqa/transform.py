"""A vqa record to a sample; runs in the loader's workers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from vlbeit.data.layout import PICTURES, Grid, NativeGrids
from vlbeit.data.recent import Recent
from vlbeit.data.records import open_image
from vlbeit.data.text import Tokenizer
from vlbeit.data.transforms import EvalImage, Size, TrainImage
from vlbeit.types import Record, Sample

from .answers import AnswerVocabulary
from .sides import speaks_of_sides, swapped


class Asked(NamedTuple):
    """What becomes of a record before it is a sample."""

    image_CHW: Tensor
    question: str
    humans: Sequence[str]


class VQATransform(ABC):
    """A sample: `image` [3, height, width], `text_ids`, `target` [V], and `sides`: the question has left or right.

    With `native` a picture gets the size of the record's `grid`, or of its own where the record has none.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary: AnswerVocabulary, native: NativeGrids | None = None) -> None:
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self.native = native

    def __call__(self, record: Record) -> Sample:
        image_CHW, question, humans = self.asked(record)
        target_V = torch.zeros(len(self.vocabulary))
        for index, score in self.vocabulary.soft_scores(humans).items():
            target_V[index] = score
        return {
            "sample_id": record["id"],
            "image": image_CHW,
            "text_ids": self.tokenizer(question),
            "target": target_V,
            "sides": speaks_of_sides(question),
        }

    @abstractmethod
    def asked(self, record: Record) -> Asked:
        """The picture as the model sees it, the question and the human answers."""

    def size(self, picture: Image.Image, grid: Grid | None) -> Size | None:
        """Height and width that the picture gets; None: those of all."""
        if self.native is None:
            return None
        return self.native.pixels(grid or self.native.grid((picture.height, picture.width)))


class VQAEvalTransform(VQATransform):
    """Nothing is random, and a picture that was asked about a moment ago is not decoded again."""

    def __init__(
        self,
        image: EvalImage,
        tokenizer: Tokenizer,
        vocabulary: AnswerVocabulary,
        native: NativeGrids | None = None,
    ) -> None:
        super().__init__(tokenizer, vocabulary, native)
        self.image = image
        self.recent: Recent[Tensor] = Recent(PICTURES)

    def asked(self, record: Record) -> Asked:
        value, grid = record["image"], record.get("grid")
        if isinstance(value, Image.Image):  # is decoded, and has no name
            return Asked(self._look(value, grid), record["question"], record["answers"])
        image_CHW = self.recent.get((value, grid), lambda: self._look(value, grid))
        return Asked(image_CHW, record["question"], record["answers"])

    def _look(self, value: str | bytes | Image.Image, grid: Grid | None) -> Tensor:
        picture = open_image(value)
        return self.image(picture, self.size(picture, grid))


class VQATrainTransform(VQATransform):
    """Pictures are augmented; a flip may change the question and its answers, or be left out.

    `sides`: keep | swap (left and right are exchanged in them; where that would take an answer out of the vocabulary,
    as "right" where only "left" is in it, nothing is flipped) | skip (what speaks of sides is not flipped).
    """

    def __init__(
        self,
        image: TrainImage,
        tokenizer: Tokenizer,
        vocabulary: AnswerVocabulary,
        native: NativeGrids | None = None,
        sides: str = "keep",
    ) -> None:
        super().__init__(tokenizer, vocabulary, native)
        self.image = image
        self.sides = sides

    def asked(self, record: Record) -> Asked:
        picture, question, humans = open_image(record["image"]), record["question"], record["answers"]
        mirrored = [swapped(answer) for answer in humans]
        may_flip = self._may_flip(question, humans, mirrored)
        image_CHW, flipped = self.image.view(picture, self.size(picture, record.get("grid")), may_flip)
        if flipped and self.sides == "swap":
            question, humans = swapped(question), mirrored
        return Asked(image_CHW, question, humans)

    def _may_flip(self, question: str, humans: Sequence[str], mirrored: list[str]) -> bool:
        if self.sides == "skip":
            return not concerns_sides(question, humans)
        known = self.vocabulary.soft_scores
        return self.sides == "keep" or list(humans) == mirrored or len(known(mirrored)) >= len(known(humans))


def concerns_sides(question: str, humans: Sequence[str]) -> bool:
    """Whether a flip of the picture would make question or answers wrong."""
    return speaks_of_sides(question) or any(speaks_of_sides(answer) for answer in humans)
