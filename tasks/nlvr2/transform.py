"""An nlvr2 record to a sample; runs in the loader's workers."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image
from torch import Tensor

from vlbeit.data.records import open_image
from vlbeit.data.text import Tokenizer
from vlbeit.types import Record, Sample


class PairSample:
    """A sample: `image_0`, `image_1` [3, height, width], each augmented by itself, `text_ids`, `label`."""

    def __init__(self, image: Callable[[Image.Image], Tensor], tokenizer: Tokenizer) -> None:
        self.image = image
        self.tokenizer = tokenizer

    def __call__(self, record: Record) -> Sample:
        return {
            "sample_id": record["id"],
            "image_0": self.image(open_image(record["image_0"])),
            "image_1": self.image(open_image(record["image_1"])),
            "text_ids": self.tokenizer(record["text"]),
            "label": record["label"],
        }
