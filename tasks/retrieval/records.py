"""Pairs by picture: at evaluation each picture is seen once, and each of its captions once.

Legend: P pictures, M captions, B pictures of a batch, n captions of a batch, T text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from vlbeit.data.collate import collate
from vlbeit.data.picture_names import number_of
from vlbeit.data.records import FieldColumn, open_image
from vlbeit.data.text import Tokenizer
from vlbeit.data.transforms import EvalImage, TrainImage
from vlbeit.types import Batch, Record, Records, Sample


class PictureRecords:
    """One record a picture, in the order in which their first captions come.

    Fields: `id` (what names the picture), `image`, `place` (0 to P - 1), `rows` (its captions' rows among the pairs),
    `captions` (their texts).
    """

    def __init__(self, pairs: Records) -> None:
        self.pairs = pairs
        numbers_M = np.fromiter((number_of(name) for name in pairs.column("picture")), np.int64, len(pairs))
        _, first_P, sorted_M = np.unique(numbers_M, return_index=True, return_inverse=True)
        place_P = np.empty(len(first_P), np.int64)
        place_P[np.argsort(first_P)] = np.arange(len(first_P))
        self.picture_of = place_P[sorted_M]  # caption -> place of its picture, [M]
        self._rows_M = np.argsort(self.picture_of, kind="stable")
        self._starts = np.concatenate([[0], np.bincount(self.picture_of).cumsum()])
        self._texts: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> Record:
        rows = self.rows(index)
        record = self.pairs[rows[0]]
        return {
            "id": record["picture"],
            "image": record["image"],
            "place": int(index),
            "rows": rows,
            "captions": [record["text"], *(self.text(row) for row in rows[1:])],
        }

    def column(self, name: str) -> Sequence[Any]:
        """One field of all pictures; but for `id`, each value is read when it is asked for."""
        if name != "id":
            return FieldColumn(self, name)
        names = list(self.pairs.column("picture"))
        return [names[row] for row in self._rows_M[self._starts[:-1]]]

    def rows(self, place: int) -> list[int]:
        """Rows of a picture's captions among the pairs."""
        if not 0 <= place < len(self):
            raise IndexError(f"picture {place} of {len(self)}")
        return self._rows_M[self._starts[place] : self._starts[place + 1]].tolist()

    def text(self, row: int) -> str:
        """A caption by its row among the pairs."""
        if self._texts is None:
            self._texts = self.pairs.column("text")
        return self._texts[row]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_texts": None}  # may be all texts: a worker asks for its own


class PairTransform:
    """Pair -> `image` [3, height, width], `text_ids`, `picture`; for training."""

    def __init__(self, image: TrainImage, tokenizer: Tokenizer) -> None:
        self.image, self.tokenizer = image, tokenizer

    def __call__(self, record: Record) -> Sample:
        return {
            "sample_id": record["id"],
            "image": self.image(open_image(record["image"])),
            "picture": number_of(record["picture"]),
            "text_ids": self.tokenizer(record["text"]),
        }


class PictureTransform:
    """Record of a picture -> `image` [3, height, width], its `place`, `rows` and `captions` as token ids."""

    def __init__(self, image: EvalImage, tokenizer: Tokenizer) -> None:
        self.image, self.tokenizer = image, tokenizer

    def __call__(self, record: Record) -> Sample:
        return {
            "sample_id": record["id"],
            "image": self.image(open_image(record["image"])),
            "place": record["place"],
            "rows": record["rows"],
            "captions": [self.tokenizer(text) for text in record["captions"]],
        }


class PictureAlone:
    """Record -> `image` [3, height, width]; nothing else of it is touched."""

    def __init__(self, image: EvalImage) -> None:
        self.image = image

    def __call__(self, record: Record) -> Sample:
        return {"sample_id": record["id"], "image": self.image(open_image(record["image"]))}


def collate_pictures(samples: list[Sample]) -> Batch:
    """`sample_id`, `image` and `place` [B]; `text_ids`, `text_keep` [n, T] and `rows` [n] of all their captions."""
    texts = collate([{"text_ids": ids} for sample in samples for ids in sample["captions"]])
    return {
        **collate([{name: sample[name] for name in ("sample_id", "image", "place")} for sample in samples]),
        **texts,
        "rows": torch.tensor([row for sample in samples for row in sample["rows"]]),
    }
