"""Records, tokenizer and meta that stand in for data that need not be there: right in size, empty in content."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlbeit.config import RunConfig
from vlbeit.data.records import KINDS, ListRecords
from vlbeit.data.sources.base import DataSource
from vlbeit.data.text import ClipTokenizer, SubwordTokenizer, Tokenizer, load_tokenizer
from vlbeit.models.dvae import DVAESpec
from vlbeit.models.towers import tower_meta
from vlbeit.task import Recipe
from vlbeit.types import Meta, Record

_SIDE = (480, 640)  # rows and columns of a picture, as most of COCO's
_WORD = "a"


def source(labels: int, words: int) -> type[DataSource]:
    """A data source of every kind, with so many classes."""

    class StandIn(DataSource):
        kinds = tuple(KINDS)

        def records(self, kind: str, split: str) -> ListRecords:
            return records(kind, 1, words)

        def classes(self, kind: str = "labelled") -> list[str]:
            return class_names(labels)

    return StandIn


def class_names(labels: int) -> list[str]:
    """Of so many classes."""
    return [f"class {number}" for number in range(labels)]


def records(kind: str, count: int, words: int) -> ListRecords:
    """So many records of a kind, their texts of `words` words."""
    return ListRecords([_record(kind, number, words) for number in range(count)])


def _record(kind: str, number: int, words: int) -> Record:
    values: Record = {}
    for field in KINDS[kind]:
        values[field] = _value(field, number, words)
    return values


def _value(field: str, number: int, words: int) -> Any:
    if field in ("id", "picture", "identifier"):
        return str(number)
    if field in ("text", "question", "sentence"):
        return " ".join([_WORD] * words)
    if field == "answers":
        return [_WORD] * 10
    if field in ("question_type", "answer_type", "multiple_choice_answer"):
        return _WORD
    if field == "mask":
        return _encoded(np.zeros(_SIDE, np.uint8))
    if field.endswith("_id") or field == "label":
        return number if field.endswith("_id") else 0
    if field.startswith("image"):
        return _encoded(np.full((*_SIDE, 3), 128, np.uint8))
    one = {"boxes": [[10.0, 10.0, 50.0, 50.0]], "labels": [0], "areas": [2500.0], "crowd": [False], "outlines": [""]}
    return one.get(field)


def _encoded(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def meta(config: RunConfig, recipe: Recipe, labels: int) -> tuple[Meta, list[str]]:
    """What the run would have learnt from its records, and what was assumed for it."""
    made: Meta = {"classes": class_names(labels), "answers": [_WORD, *map(str, range(1, labels))]}
    made |= tower_meta(config, {})
    words, assumed = tokenizer(config)
    made["tokenizer"] = words.to_json()
    notes = [assumed] if assumed and {"text", "question"}.intersection(KINDS[recipe.kind]) else []
    if config.task is None and config.stage.name == "mim":
        if config.stage.target != "dvae" or Path(config.stage.tokenizer).exists():
            made |= recipe.meta(records(recipe.kind, 1, 1), {})
        else:
            dalle = {**DVAESpec(decoder=False).__dict__, "levels": []}
            made["target"] = {"target": "dvae", "dvae": dalle}
            notes.append(f"stage.tokenizer={config.stage.tokenizer} is not there: taken for DALL-E's encoder")
    return made, notes


def tokenizer(config: RunConfig) -> tuple[Tokenizer, str]:
    """The run's own where it needs no network, else one of `text.vocab_size` words; and what was assumed, or ""."""
    name, length = config.text.tokenizer, config.text.max_length
    if name == "clip":
        return ClipTokenizer({}, length), ""
    if Path(name).expanduser().is_dir():
        return load_tokenizer(name, length), ""
    size = config.text.vocab_size
    return plain_tokenizer(size, length), (
        f"text.tokenizer={name}: taken for a vocabulary of {size:,} words; text.vocab_size= or "
        f"text.tokenizer=RUN gives the real one"
    )


def plain_tokenizer(size: int, length: int) -> SubwordTokenizer:
    """A vocabulary of `size` words, "a" among them."""
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    vocabulary = {word: number for number, word in enumerate((*special, _WORD))}
    vocabulary |= {f"word{number}": number for number in range(len(vocabulary), size)}
    definition: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary,
        },
    }  # fmt: skip
    ids = {"pad_id": 0, "cls_id": 2, "sep_id": 3, "mask_id": 4}
    return SubwordTokenizer({"definition": json.loads(json.dumps(definition)), **ids, "vocab_size": size}, length)
