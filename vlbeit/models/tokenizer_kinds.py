"""The image tokenizers that there are, built from the description in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlbeit.models.dvae import DVAE
from vlbeit.models.image_tokenizer import ImageTokenizer
from vlbeit.models.vqkd import VQKD

KINDS: dict[str, type[ImageTokenizer]] = {kind.kind: kind for kind in (DVAE, VQKD)}


def kind_of(description: Mapping[str, Any]) -> str | None:
    """The key of the tokenizer in a description of a checkpoint or of a target; None: it has none."""
    return next((kind for kind in KINDS if kind in description), None)


def build_tokenizer(description: Mapping[str, Any]) -> ImageTokenizer:
    """The tokenizer of a description, `{"dvae": ...}` or `{"vqkd": ...}`; the weights are fresh.

    Raises ValueError for a description without a tokenizer.
    """
    kind = kind_of(description)
    if kind is None:
        raise ValueError(f"no tokenizer among {', '.join(description)}: one of {', '.join(KINDS)} is needed")
    return KINDS[kind].from_description(description[kind])
