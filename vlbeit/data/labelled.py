"""Labelled records to samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from vlbeit.data.records import open_image
from vlbeit.types import Record, Sample


class LabelledSample:
    """The picture of a labelled record as the tower sees it, and its label; runs in the loader's workers."""

    def __init__(self, image: Callable[[Any], Tensor]) -> None:
        self.image = image

    def __call__(self, record: Record) -> Sample:
        return {
            "sample_id": record["id"],
            "image": self.image(open_image(record["image"])),
            "label": int(record["label"]),
        }
