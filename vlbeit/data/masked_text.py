"""From a text to token ids and the same ids with some words masked."""

from __future__ import annotations

import torch

from vlbeit.data.masking import mask_words
from vlbeit.data.randomness import drawn
from vlbeit.data.text import Tokenizer
from vlbeit.types import Sample


class MaskedText:
    """Callable: text -> `text_ids`, `text_keep`, `mlm_ids`, `mlm_labels`, each [T]; draws from the seeded generators."""

    def __init__(self, tokenizer: Tokenizer, probability: float = 0.15) -> None:
        self.tokenizer, self.probability = tokenizer, probability

    def __call__(self, text: str) -> Sample:
        ids = self.tokenizer(text)
        mlm_ids, mlm_labels = mask_words(ids, self.tokenizer.words(ids), self.tokenizer, drawn(), self.probability)
        return {
            "text_ids": torch.tensor(ids),
            "text_keep": torch.ones(len(ids), dtype=torch.bool),
            "mlm_ids": torch.tensor(mlm_ids),
            "mlm_labels": torch.tensor(mlm_labels),
        }
