"""From a text to token ids and the same ids with some words masked."""

from __future__ import annotations

from vlbeit.data.masking import mask_words
from vlbeit.data.randomness import drawn
from vlbeit.data.text import Tokenizer
from vlbeit.types import Sample


class MaskedText:
    """Callable: text -> `text_ids`, `mlm_ids`, `mlm_labels`, lists of T ids; draws from the seeded generators."""

    def __init__(self, tokenizer: Tokenizer, probability: float = 0.15) -> None:
        self.tokenizer, self.probability = tokenizer, probability

    def __call__(self, text: str) -> Sample:
        return self.of_ids(self.tokenizer(text))

    def of_ids(self, ids: list[int]) -> Sample:
        """The same of a text, or several in a row, that is tokenised already: no word goes on after a [CLS]."""
        mlm_ids, mlm_labels = mask_words(ids, self.tokenizer.words(ids), self.tokenizer, drawn(), self.probability)
        return {"text_ids": ids, "mlm_ids": mlm_ids, "mlm_labels": mlm_labels}
