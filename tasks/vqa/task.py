"""The VQA recipe: what its objective, data, evaluator and parameter groups are made of."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vlbeit.config import OptimConfig, RunConfig, Settings, key, one_of, require
from vlbeit.data.collate import collate
from vlbeit.data.overlap import shared_images
from vlbeit.data.records import ChosenRecords
from vlbeit.data.sources import open_records
from vlbeit.data.text import choose_tokenizer
from vlbeit.errors import DataError, UsageError
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.groups import param_groups, vlmo_decays
from vlbeit.models.heads import Heads
from vlbeit.models.spec import encoder_spec
from vlbeit.task import Task
from vlbeit.types import Batch, DataSpec, Evaluator, Exportable, Meta, Predictor, Records

from .answering import Answering, Member
from .answers import AnswerVocabulary, read_answers
from .blind import BlankPictures, BlindGuess, ShuffledPictures
from .evaluator import VQAEvaluator
from .objective import VQAObjective, answer_heads
from .predictor import VQAPredictor
from .reading import Reading
from .submit import AnswerSheet
from .vocabulary import VocabularyChoice, coverage_lines

if TYPE_CHECKING:
    from accelerate import Accelerator

    from vlbeit.objectives.base import Objective

log = logging.getLogger(__name__)

_LEFT_OUT = "; data.train_split=train+trainable_val data.val_split=rest_val leaves out those that it evaluates on"


@dataclass
class VQASettings(Settings):
    """Defaults: VLMo's recipe, but for the flip."""

    min_count: int = key(9, "questions that an answer must stand for to be in the vocabulary")
    answers: str = key(
        "auto",
        "auto: the vocabulary of init's run where it has one, else as own | own: from this data | a file: a JSON list, "
        "or the lines of answer2label.txt",
    )
    init_answers: str = key(
        "", "the same file format: the answers of init's classifier, where init does not carry them"
    )
    max_answers: int | None = key(None, "most answers in the vocabulary: the most frequent ones; null: no limit")
    vocabulary_splits: list[str] = key(
        [], "splits that its answers are counted in, as published [train,val]; empty: the training split"
    )
    targets: str = key(
        "raw", "how human answers are matched to the vocabulary: raw: as written, as published | normalized"
    )
    min_scale: float = key(0.5, "smallest random crop as a share of the picture")
    hflip: float = key(0.0, "probability of a horizontal flip; differs from VLMo (0.5): it turns left into right")
    hflip_sides: str = key(
        "keep",
        "what a flip does to questions and answers that speak of left or right: keep: nothing, as published | swap: "
        "exchanges the two words, and flips nothing where an answer would leave the vocabulary | skip: such a picture "
        "is not flipped",
    )
    test_flip: bool = key(
        False,
        "evaluation takes the mean with the flipped picture, but not where the question speaks of left or right",
    )
    randaugment: bool = key(True, "RandAugment (2 operations, magnitude 7), as VLMo")
    controls: bool = key(True, "`vlbeit evaluate` asks again about blank and about shuffled pictures: thrice the time")

    def __post_init__(self) -> None:
        require(0 < self.min_scale <= 1, f"task.min_scale={self.min_scale} must lie in (0, 1]")
        require(0 <= self.hflip <= 1, f"task.hflip={self.hflip} must lie in [0, 1]")
        one_of("task.hflip_sides", self.hflip_sides, ("keep", "swap", "skip"))
        require(self.min_count > 0, f"task.min_count={self.min_count} must be positive")
        require(
            self.max_answers is None or self.max_answers > 0, f"task.max_answers={self.max_answers} must be positive"
        )
        one_of("task.targets", self.targets, ("raw", "normalized"))

    @classmethod
    def upgraded(cls, stored: dict[str, Any]) -> dict[str, Any]:
        """Release 0.1 had `normalize_targets`."""
        normalize = stored.pop("normalize_targets", None)
        return stored if normalize is None else {**stored, "targets": "normalized" if normalize else "raw"}


class VQA(Task):
    """Visual question answering: an answer out of a fixed vocabulary, scored by the official VQA v2 accuracy."""

    Config = VQASettings
    kind = "vqa"
    metric = "overall"
    stages = ("vl", "mim")  # from mim the text and fused experts are new
    resizes = ("square", "pad", "native")

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.settings: VQASettings = config.task
        self._news: list[str] = []  # about the vocabulary
        self.members: dict[str, Member] = {}  # by the path of their runs
        self.reading = Reading(config)

    def check(self) -> None:
        """Raises UsageError for native pictures and a tower that takes one size only."""
        tower = self.config.model.image_tower
        require(
            self.config.data.resize != "native" or tower == "own",
            f"data.resize=native gives pictures of many sizes, model.image_tower={tower} takes one: use square or pad",
        )

    def prepare(self, objective: Objective, splits: Mapping[str, Records], accelerator: Accelerator) -> None:
        """Warns, as training starts, of images that are both trained and evaluated on."""
        if "train" not in splits:
            return
        val = splits["val"]
        if shared := shared_images(splits["train"], val):
            log.warning(
                "%d of the %d images of data.val_split=%s are trained on too (data.train_split=%s): numbers on them "
                "say little of new pictures%s",
                shared, len(set(val.column("image_id")[:])), self.config.data.val_split, self.config.data.train_split,
                _LEFT_OUT if self.config.data.name == "vqa_v2" else "",
            )  # fmt: skip

    def meta(self, train: Records, inherited: Meta) -> Meta:
        """`tokenizer`, `answers` and `vocabulary`, where they come from and what they cover of the training questions.

        Raises UsageError where no answer is frequent enough.
        """
        tokenizer = choose_tokenizer(self.config.text, lambda: train.column("question"), inherited.get("tokenizer"))
        choice = VocabularyChoice(self.settings, self.config.data, inherited.get("answers"))
        made = choice.meta(train)
        self._news = coverage_lines(made["vocabulary"])
        return {"tokenizer": tokenizer.to_json(), **made}

    def labels_of_init(self) -> Meta:
        """`answers` of `task.init_answers`."""
        path = self.settings.init_answers
        return {"answers": read_answers(Path(path).expanduser(), "task.init_answers")} if path else {}

    def objective(self, meta: Meta) -> VQAObjective:
        """Encoder with image, text and fused experts, pooler and answer head, all new."""
        spec = encoder_spec(
            self.config,
            experts=("image", "text"),
            fused=True,
            vocab_size=self.reading.tokenizer(meta).vocab_size,
            meta=meta,
        )
        return VQAObjective(MoMEEncoder(spec), Heads(answer_heads(spec.embed_dim, len(meta["answers"]))))

    def data(self, records: Records, meta: Meta, *, train: bool) -> DataSpec:
        """Samples with `image`, `text_ids`, `text_keep`, `target`, `sides`.

        Training leaves out the questions that have no human answer in the vocabulary, and says how many.
        Raises DataError where that leaves nothing.
        """
        vocabulary = AnswerVocabulary(meta["answers"], normalize=self.settings.targets == "normalized")
        if train:
            records = self._answerable(records, vocabulary)
            transform = self.reading.for_training(meta, vocabulary, self.settings)
            return DataSpec(records, transform, collate, layout=self.reading.training_layout(records, meta, transform))
        plain = self.reading.for_evaluation(meta, vocabulary)
        return DataSpec(records, plain, collate, layout=self.reading.evaluation_layout(records, meta))

    def evaluators(self, records: Records, meta: Meta) -> Mapping[str, Evaluator]:
        """Official accuracy with the blind baseline of the training split beside it.

        Raises DataError where no question has human answers.
        """
        if not any(records.column("answers")):
            raise DataError(
                f"the questions of the split {self.config.data.val_split!r} have no human answers to score against: "
                f"vlbeit submit answers them"
            )
        self._tell()
        return {"vqa": VQAEvaluator(records, self._answering(meta), lambda: self._blind_guess)}

    def controls(self, records: Records, meta: Meta) -> Mapping[str, DataSpec]:
        """`blank`: every picture mid-grey; `shuffled`: pictures of other questions. Of one picture alone no other."""
        if not self.settings.controls:
            return {}
        others: dict[str, Records] = {"blank": BlankPictures(records)}
        if len(set(records.column("image_id"))) > 1:
            others["shuffled"] = ShuffledPictures(records)
        return {name: self.data(each, meta, train=False) for name, each in others.items()}

    def param_groups(self, objective: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
        """VLMo's rules; the answer head learns `optim.head_lr_scale` times as fast."""
        return param_groups(objective, optim, vlmo_decays, scaled_head="answer")

    def predictor(self, objective: nn.Module, meta: Meta) -> Predictor:
        """Image and question in, answers with their probabilities out."""
        transform = self.reading.for_evaluation(meta, AnswerVocabulary(meta["answers"]))
        return VQAPredictor(objective, transform, self._answering(meta))

    def join(self, meta: Meta, others: Mapping[str, tuple[RunConfig, Meta, nn.Module]]) -> None:  # type: ignore[override]
        """The answers are from now on those with the highest mean of the probabilities of all runs.

        Raises UsageError for a run that sees pictures or questions in another way, or answers no questions.
        """
        for path, (config, theirs, objective) in others.items():
            if not isinstance(objective, VQAObjective):
                raise UsageError(f"--with {path}: it is a run of {config.title}, not one that answers questions")
            for name, own, other in self.reading.must_equal(meta, config, theirs):
                require(own == other, f"--with {path}: its {name} is {other}, here {own}: they cannot be averaged")
            self.members[path] = Member(objective, theirs["answers"])

    def noted(self) -> dict[str, Any]:
        """`test_flip` and `ensemble`, where there are such."""
        flip = {"test_flip": True} if self.settings.test_flip else {}
        return flip | ({"ensemble": list(self.members)} if self.members else {})

    def exported(self, objective: VQAObjective, meta: Meta) -> Exportable:  # type: ignore[override]
        """`image`, `text_ids` and `text_keep` in, answer logits out; the metadata has `answers` and `tokenizer`."""
        if self.config.data.resize == "native":
            raise UsageError("a run with data.resize=native cannot be exported: its pictures have no one size")
        words, (height, width) = self.reading.tokenizer(meta), self.config.data.size

        def example(sizes: Mapping[str, int]) -> Batch:
            batch, length = sizes["batch"], sizes["text"]
            lengths_B1 = torch.randint(1, length + 1, (batch, 1))
            return {
                "image": torch.randn(batch, 3, height, width),
                "text_ids": torch.randint(words.vocab_size, (batch, length)),
                "text_keep": torch.arange(length) < lengths_B1,
            }

        text = {0: "batch", 1: "text"}
        return Exportable(
            call=objective.answer_logits,
            example=example,
            axes={"image": {0: "batch"}, "text_ids": text, "text_keep": text},
            sizes={"batch": (1, 3), "text": (2, words.max_length)},
            output="logits",
            facts={"answers": meta["answers"], "tokenizer": meta["tokenizer"], "text_length": words.max_length}
            | ({} if self.config.data.resize == "square" else {"resize": self.config.data.resize}),
            limited=("text",),
        )

    def submission(self, records: Records, meta: Meta) -> AnswerSheet:
        """What `vlbeit submit` asks for the answers to every batch, and then to write all of them."""
        return AnswerSheet(records, self._answering(meta))

    def _answering(self, meta: Meta) -> Answering:
        return Answering(meta["answers"], flip=self.settings.test_flip, members=list(self.members.values()))

    def _answerable(self, records: Records, vocabulary: AnswerVocabulary) -> Records:
        rows = vocabulary.answerable(records)
        if not rows:
            raise DataError(
                f"none of the {len(records)} training questions has a human answer among the {len(vocabulary)} known "
                f"ones: train with task.answers=own, or with annotations"
            )
        if len(rows) < len(records):
            share = 100 * (1 - len(rows) / len(records))
            log.info(
                "%d of %d training questions (%.1f %%) have no human answer in the vocabulary of %d and are left out",
                len(records) - len(rows), len(records), share, len(vocabulary),
            )  # fmt: skip
            records = ChosenRecords(records, rows)
        return records

    def _tell(self) -> None:
        """Log once what a new vocabulary covers: not in `meta`, since a run may yet be refused, in one line."""
        for line in self._news:
            log.info(line)
        self._news = []

    @cached_property
    def _blind_guess(self) -> BlindGuess | None:
        """Made once, however often a run is evaluated; None, and said, where the training split is not at hand."""
        data = self.config.data
        try:
            return BlindGuess(open_records(data, self.kind, data.train_split))
        except DataError as error:
            log.warning("no blind baseline: %s", error)
            return None
