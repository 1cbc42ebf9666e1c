"""The NLVR2 recipe: what its objective, data, evaluator and parameter groups are made of."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from vlbeit.config import OptimConfig, RunConfig, Settings, key, require
from vlbeit.data.collate import collate
from vlbeit.data.records import ChosenRecords
from vlbeit.data.text import Tokenizer, choose_tokenizer
from vlbeit.data.transforms import EvalImage, TrainImage
from vlbeit.errors import DataError
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.groups import param_groups, vlmo_decays
from vlbeit.models.heads import Heads
from vlbeit.models.spec import encoder_spec
from vlbeit.task import Task
from vlbeit.types import Batch, DataSpec, Evaluator, Exportable, Layout, Meta, Predictor, Records

from .evaluator import NLVR2Evaluator
from .objective import TOKEN_TYPES, UNKNOWN, NLVR2Objective, pair_heads
from .predictor import NLVR2Predictor
from .transform import PairSample

log = logging.getLogger(__name__)


@dataclass
class NLVR2Settings(Settings):
    """Defaults: VLMo's recipe, but for the flip."""

    min_scale: float = key(0.5, "smallest random crop as a share of the picture")
    hflip: float = key(0.0, "probability that a picture is mirrored; differs from VLMo (0.5): left becomes right")
    randaugment: bool = key(True, "RandAugment (2 operations, magnitude 7), as VLMo")

    def __post_init__(self) -> None:
        require(0 < self.min_scale <= 1, f"task.min_scale={self.min_scale} must lie in (0, 1]")
        require(0 <= self.hflip <= 1, f"task.hflip={self.hflip} must lie in [0, 1]")


class NLVR2(Task):
    """NLVR2: whether a statement is true of two pictures; accuracy and consistency."""

    Config = NLVR2Settings
    kind = "nlvr2"
    metric = "accuracy"
    stages = ("vl", "mim")  # from mim the text and fused experts are new
    built_in_start = "vl-vqa"  # what matching teaches on the built-in data is not enough to compare two pictures
    pictures = 2

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.settings: NLVR2Settings = config.task

    def meta(self, train: Records, inherited: Meta) -> Meta:
        """`tokenizer`, and `classes`, the two labels in the order of the head."""
        tokenizer = choose_tokenizer(self.config.text, lambda: train.column("text"), inherited.get("tokenizer"))
        return {"tokenizer": tokenizer.to_json(), "classes": ["false", "true"]}

    def objective(self, meta: Meta) -> NLVR2Objective:
        """Encoder with image, text and fused experts and a third token type, pooler and pair head, all new.

        The third type begins as the second one when the weights of `init` are loaded (`vlbeit.models.transfer`).
        """
        spec = encoder_spec(
            self.config,
            experts=("image", "text"),
            fused=True,
            vocab_size=self._tokenizer(meta).vocab_size,
            meta=meta,
        )
        spec = replace(spec, token_types=TOKEN_TYPES)
        return NLVR2Objective(MoMEEncoder(spec), Heads(pair_heads(spec.embed_dim)))

    def data(self, records: Records, meta: Meta, *, train: bool) -> DataSpec:
        """Samples with `image_0`, `image_1`, `text_ids`, `text_keep`, `label`.

        Training leaves out statements without a label. Raises DataError where that leaves nothing.
        """
        tokenizer, size = self._tokenizer(meta), self.config.data.size
        if not train:
            lengths = [min(length, tokenizer.max_length) for length in tokenizer.lengths(records.column("text"))]
            transform = PairSample(EvalImage(size, *self.config.normalization), tokenizer)
            return DataSpec(records, transform, collate, layout=Layout(lengths=lengths))
        image = TrainImage(
            size,
            *self.config.normalization,
            min_scale=self.settings.min_scale,
            hflip=self.settings.hflip,
            randaugment=self.settings.randaugment,
        )
        records = self._labelled(records)
        cut = sum(length > tokenizer.max_length for length in tokenizer.lengths(records.column("text")))
        if cut:
            most = tokenizer.max_length
            log.warning("%d of %d statements are cut to text.max_length=%d tokens", cut, len(records), most)
        return DataSpec(records, PairSample(image, tokenizer), collate)

    def evaluators(self, records: Records, meta: Meta) -> Mapping[str, Evaluator]:
        """Accuracy and consistency. Raises DataError where no statement has a label."""
        evaluator = NLVR2Evaluator(records)
        if not evaluator.known:
            raise DataError(f"no statement of the split {self.config.data.val_split!r} has a label to score against")
        return {"nlvr2": evaluator}

    def param_groups(self, objective: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
        """VLMo's rules; the pair head learns `optim.head_lr_scale` times as fast."""
        return param_groups(objective, optim, vlmo_decays, scaled_head="pair")

    def predictor(self, objective: nn.Module, meta: Meta) -> Predictor:
        """Two pictures and a statement in, true and false with their probabilities out."""
        image = EvalImage(self.config.data.size, *self.config.normalization)
        return NLVR2Predictor(objective, PairSample(image, self._tokenizer(meta)))

    def exported(self, objective: NLVR2Objective, meta: Meta) -> Exportable:  # type: ignore[override]
        """`image_0`, `image_1`, `text_ids` and `text_keep` in, logits of false and true out."""
        words, (height, width) = self._tokenizer(meta), self.config.data.size

        def example(sizes: Mapping[str, int]) -> Batch:
            batch, length = sizes["batch"], sizes["text"]
            lengths_B1 = torch.randint(1, length + 1, (batch, 1))
            pictures = {f"image_{side}": torch.randn(batch, 3, height, width) for side in (0, 1)}
            return {
                **pictures,
                "text_ids": torch.randint(words.vocab_size, (batch, length)),
                "text_keep": torch.arange(length) < lengths_B1,
            }

        picture, text = {0: "batch"}, {0: "batch", 1: "text"}
        return Exportable(
            call=objective.pair_logits,
            example=example,
            axes={"image_0": picture, "image_1": picture, "text_ids": text, "text_keep": text},
            sizes={"batch": (1, 3), "text": (2, words.max_length)},
            output="logits",
            facts={"classes": meta["classes"], "tokenizer": meta["tokenizer"], "text_length": words.max_length},
            limited=("text",),
        )

    def _tokenizer(self, meta: Meta) -> Tokenizer:
        return Tokenizer.from_json(meta["tokenizer"], self.config.text.max_length)

    def _labelled(self, records: Records) -> Records:
        rows = [row for row, label in enumerate(records.column("label")[:]) if label != UNKNOWN]
        if not rows:
            raise DataError(f"no statement of the split {self.config.data.train_split!r} has a label to train on")
        if len(rows) == len(records):
            return records
        log.info("%d of %d statements have no label and are left out", len(records) - len(rows), len(records))
        return ChosenRecords(records, rows)
