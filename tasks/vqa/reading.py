"""How pictures and questions are read, as the config says: sizes, batches, how long a question may be."""

from __future__ import annotations

import hashlib
import json
import logging
from typing import Any, Protocol

from vlbeit.config import RunConfig
from vlbeit.data.layout import Grid, NativeGrids
from vlbeit.data.text import Tokenizer
from vlbeit.data.transforms import EvalImage, TrainImage
from vlbeit.types import Layout, Meta, Records

from .answers import AnswerVocabulary
from .transform import VQAEvalTransform, VQATrainTransform, concerns_sides

log = logging.getLogger(__name__)

_WITH_SIDES = {
    "keep": "stay as they are when the picture is flipped, as published",
    "swap": "have the two exchanged when the picture is flipped, unless an answer would leave the vocabulary",
    "skip": "are never flipped",
}


class Augmentation(Protocol):
    """The settings of the task that say how training pictures are changed."""

    min_scale: float
    hflip: float
    hflip_sides: str
    randaugment: bool


class Reading:
    """Transforms of samples, and what is put together to batches."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self._evaluated: tuple[Records, Layout] | None = None  # of the last evaluation: a run asks again and again

    @property
    def native(self) -> NativeGrids | None:
        """The sizes of pictures where these are native; None where all have one."""
        patch, (height, width) = self.config.model.patch_size, self.config.data.size
        return NativeGrids(patch, (height // patch, width // patch)) if self.config.data.resize == "native" else None

    def tokenizer(self, meta: Meta) -> Tokenizer:
        """The run's, for questions as long as the model takes."""
        return Tokenizer.from_json(meta["tokenizer"], longest_text(self.config))

    def for_evaluation(self, meta: Meta, vocabulary: AnswerVocabulary) -> VQAEvalTransform:
        """The transform of plain samples."""
        data = self.config.data
        image = EvalImage(data.size, *self.config.normalization, pad=data.resize == "pad")
        return VQAEvalTransform(image, self.tokenizer(meta), vocabulary, self.native)

    def for_training(self, meta: Meta, vocabulary: AnswerVocabulary, settings: Augmentation) -> VQATrainTransform:
        """The transform of augmented samples."""
        image = TrainImage(
            self.config.data.size,
            *self.config.normalization,
            min_scale=settings.min_scale,
            hflip=settings.hflip,
            randaugment=settings.randaugment,
            pad=self.config.data.resize == "pad",
        )
        return VQATrainTransform(image, self.tokenizer(meta), vocabulary, self.native, settings.hflip_sides)

    def training_layout(self, records: Records, meta: Meta, transform: VQATrainTransform) -> Layout:
        """Micro-batches of one grid where pictures are native. Logs what flips concern, and long questions."""
        if transform.image.hflip > 0:
            _count_sides(records, transform.sides)
        self._lengths(records, meta, "training")
        return Layout(grids=self._grids(records))

    def evaluation_layout(self, records: Records, meta: Meta) -> Layout:
        """Batches of one grid, of questions of about one length, those of one picture one after the other."""
        if self._evaluated is None or self._evaluated[0] is not records:
            layout = Layout(
                grids=self._grids(records),
                lengths=self._lengths(records, meta, "evaluated"),
                pictures=list(records.column("image_id")),
            )
            self._evaluated = records, layout
        return self._evaluated[1]

    def _grids(self, records: Records) -> list[Grid] | None:
        return None if self.native is None else self.native.of(records, self.config.data.cache)

    def must_equal(self, meta: Meta, config: RunConfig, theirs: Meta) -> list[tuple[str, Any, Any]]:
        """What runs that see the same batches must have in common: its name, ours, that of `config` and `theirs`."""
        ours, other = self.config, config
        patch = ours.model.patch_size, other.model.patch_size
        return [
            ("data.image_size", ours.data.size, other.data.size),
            ("data.normalize", ours.data.normalize, other.data.normalize),
            ("data.resize", ours.data.resize, other.data.resize),
            *([("model.patch_size", *patch)] if self.native else []),
            ("longest question in tokens", longest_text(ours), longest_text(other)),
            ("tokenizer", _digest(meta["tokenizer"]), _digest(theirs["tokenizer"])),
        ]

    def _lengths(self, records: Records, meta: Meta, what: str) -> list[int]:
        """Tokens that are read of every question. The log counts those beyond `text.max_length`, and those cut."""
        words, usual = self.tokenizer(meta), self.config.text.max_length
        lengths, most = words.lengths(records.column("question")), words.max_length
        if cut := [row for row, length in enumerate(lengths) if length > most]:
            key = "text.max_length" if most == usual else "text.positions, for which the position table is built"
            log.warning(
                "%d of %d %s questions are cut to %d tokens (%s), such as question %s of %d tokens",
                len(cut), len(lengths), what, most, key, records[cut[0]]["id"], lengths[cut[0]],
            )  # fmt: skip
        elif longer := sum(length > usual for length in lengths):
            log.info(
                "%d of %d %s questions have more than text.max_length=%d tokens (at most %d) and are read whole: "
                "relative positions reach up to text.positions=%d",
                longer, len(lengths), what, usual, max(lengths), most,
            )  # fmt: skip
        return [min(length, most) for length in lengths]


def longest_text(config: RunConfig) -> int:
    """Tokens of a question that the model takes: of relative positions of our own as many as their tables are for."""
    whole = config.model.positions == "relative" and config.model.text_tower == "own"
    return config.text.positions if whole else config.text.max_length


def _count_sides(records: Records, sides: str) -> None:
    """Say how many questions flips concern, and what becomes of them."""
    asked = zip(records.column("question"), records.column("answers"), strict=True)
    concerned = sum(concerns_sides(question, humans) for question, humans in asked)
    log.info(
        "%d of %d training questions or their answers speak of left or right: they %s (task.hflip_sides=%s)",
        concerned, len(records), _WITH_SIDES[sides], sides,
    )  # fmt: skip


def _digest(value: Any) -> str:
    """A short name of JSON values that are too long to show."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
