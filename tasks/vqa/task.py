"""The VQA recipe: what its objective, data, evaluator and parameter groups are made of."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlbeit.config import OptimConfig, RunConfig, Settings, key, require
from vlbeit.data.answers import build_vocabulary, majority_answers
from vlbeit.data.collate import collate
from vlbeit.data.records import ChosenRecords, open_image
from vlbeit.data.sources import open_records
from vlbeit.data.text import Tokenizer, choose_tokenizer
from vlbeit.data.transforms import EvalImage, TrainImage
from vlbeit.errors import DataError, UsageError
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.groups import param_groups, vlmo_decays
from vlbeit.models.heads import Heads
from vlbeit.models.spec import encoder_spec
from vlbeit.task import Task
from vlbeit.types import Batch, DataSpec, Evaluator, Exportable, Meta, Predictor, Record, Records, Sample

from .answers import AnswerVocabulary, read_answers
from .blind import BlankPictures, BlindGuess, ShuffledPictures
from .evaluator import AnswerCollector, VQAEvaluator
from .objective import VQAObjective, answer_heads
from .predictor import VQAPredictor

log = logging.getLogger(__name__)


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
    normalize_targets: bool = key(
        False, "match human answers to the vocabulary in normal form; false: as written, as published"
    )
    min_scale: float = key(0.5, "smallest random crop as a share of the picture")
    hflip: float = key(0.0, "probability of a horizontal flip; differs from VLMo (0.5): it turns left into right")
    randaugment: bool = key(True, "RandAugment (2 operations, magnitude 7), as VLMo")
    controls: bool = key(True, "`vlbeit evaluate` asks again about blank and about shuffled pictures: thrice the time")

    def __post_init__(self) -> None:
        require(0 < self.min_scale <= 1, f"task.min_scale={self.min_scale} must lie in (0, 1]")
        require(0 <= self.hflip <= 1, f"task.hflip={self.hflip} must lie in [0, 1]")
        require(self.min_count > 0, f"task.min_count={self.min_count} must be positive")


class VQA(Task):
    """Visual question answering: an answer out of a fixed vocabulary, scored by the official VQA v2 accuracy."""

    Config = VQASettings
    kind = "vqa"
    metric = "overall"
    stages = ("vl", "mim")  # from mim the text and fused experts are new

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.settings: VQASettings = config.task

    def meta(self, train: Records, inherited: Meta) -> Meta:
        """`tokenizer` and `answers`. Raises UsageError where no answer is frequent enough."""
        tokenizer = choose_tokenizer(self.config.text, lambda: train.column("question"), inherited.get("tokenizer"))
        return {"tokenizer": tokenizer.to_json(), "answers": self._answers(train, inherited.get("answers"))}

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
            vocab_size=self._tokenizer(meta).vocab_size,
            meta=meta,
        )
        return VQAObjective(MoMEEncoder(spec), Heads(answer_heads(spec.embed_dim, len(meta["answers"]))))

    def data(self, records: Records, meta: Meta, *, train: bool) -> DataSpec:
        """Samples with `image`, `text_ids`, `text_keep`, `target`.

        Training leaves out the questions that have no human answer in the vocabulary, and says how many.
        Raises DataError where that leaves nothing.
        """
        vocabulary = AnswerVocabulary(meta["answers"], normalize=self.settings.normalize_targets)
        if train:
            records = self._answerable(records, vocabulary)
        transform = VQATransform(self._image_transform(train), self._tokenizer(meta), vocabulary)
        return DataSpec(records, transform, collate)

    def evaluators(self, records: Records, meta: Meta) -> Mapping[str, Evaluator]:
        """Official accuracy with the blind baseline of the training split beside it.

        Raises DataError where no question has human answers.
        """
        if not any(records.column("answers")):
            raise DataError(
                f"the questions of the split {self.config.data.val_split!r} have no human answers to score against: "
                f"vlbeit submit answers them"
            )
        return {"vqa": VQAEvaluator(records, meta["answers"], lambda: self._blind_guess)}

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
        return VQAPredictor(objective, self._image_transform(False), self._tokenizer(meta), meta["answers"])

    def exported(self, objective: VQAObjective, meta: Meta) -> Exportable:  # type: ignore[override]
        """`image`, `text_ids` and `text_keep` in, answer logits out; the metadata has `answers` and `tokenizer`."""
        words, (height, width) = self._tokenizer(meta), self.config.data.size

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
            facts={"answers": meta["answers"], "tokenizer": meta["tokenizer"], "text_length": words.max_length},
            limited=("text",),
        )

    def submission(self, records: Records, meta: Meta) -> AnswerCollector:
        """What `vlbeit submit` feeds with batches and then asks to `write(path)`."""
        return AnswerCollector(records, meta["answers"])

    def _answers(self, train: Records, inherited: list[str] | None) -> list[str]:
        """The vocabulary that `task.answers` asks for."""
        settings = self.settings
        if settings.answers not in ("auto", "own"):
            return read_answers(Path(settings.answers).expanduser())
        if settings.answers == "auto" and inherited is not None:
            return list(inherited)
        answers = build_vocabulary(majority_answers(train), settings.min_count)
        if not answers:
            raise UsageError(
                f"no answer stands for task.min_count={settings.min_count} of the {len(train)} training questions: "
                f"lower task.min_count"
            )
        return answers

    def _tokenizer(self, meta: Meta) -> Tokenizer:
        return Tokenizer.from_json(meta["tokenizer"], self.config.text.max_length)

    def _image_transform(self, train: bool) -> TrainImage | EvalImage:
        mean, std = self.config.normalization
        if not train:
            return EvalImage(self.config.data.size, mean, std)
        settings = self.settings
        return TrainImage(
            self.config.data.size,
            mean,
            std,
            min_scale=settings.min_scale,
            hflip=settings.hflip,
            randaugment=settings.randaugment,
        )

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

    @cached_property
    def _blind_guess(self) -> BlindGuess | None:
        """Made once, however often a run is evaluated; None, and said, where the training split is not at hand."""
        data = self.config.data
        try:
            return BlindGuess(open_records(data, self.kind, data.train_split))
        except DataError as error:
            log.warning("no blind baseline: %s", error)
            return None


class VQATransform:
    """A vqa record to a sample; runs in the loader's workers."""

    def __init__(self, image: TrainImage | EvalImage, tokenizer: Tokenizer, vocabulary: AnswerVocabulary) -> None:
        self.image = image
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary

    def __call__(self, record: Record) -> Sample:
        target_V = torch.zeros(len(self.vocabulary))
        for index, score in self.vocabulary.soft_scores(record["answers"]).items():
            target_V[index] = score
        return {
            "sample_id": record["id"],
            "image": self.image(open_image(record["image"])),
            "text_ids": self.tokenizer(record["question"]),
            "target": target_V,
        }
