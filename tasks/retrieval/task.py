"""The retrieval recipe: what its objective, data, evaluator and parameter groups are made of."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from vlbeit.config import OptimConfig, RunConfig, key, require
from vlbeit.data.collate import collate
from vlbeit.data.picture_names import number_of
from vlbeit.data.records import FieldColumn, check_several_pictures
from vlbeit.data.text import Tokenizer, choose_tokenizer
from vlbeit.data.transforms import EvalImage
from vlbeit.errors import UsageError
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.groups import param_groups, vlmo_decays
from vlbeit.models.spec import encoder_spec
from vlbeit.objectives.pair_settings import PairSettings
from vlbeit.task import Task
from vlbeit.types import DataSpec, Evaluator, Meta, Records

from .evaluator import RetrievalEvaluator
from .objective import RetrievalObjective, retrieval_heads
from .predictor import RetrievalPredictor
from .records import PairTransform, PictureRecords, PictureTransform, collate_pictures
from .reranking import PairScores

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger(__name__)


@dataclass
class RetrievalSettings(PairSettings):
    """Defaults: VLMo's dual encoder."""

    section = "task"

    matching_weight: float = key(
        0.0, "weight of the matching loss beside contrast: trains what task.rerank needs; 0: contrast alone, as VLMo"
    )
    rerank: int = key(
        0,
        "so many first candidates of every query are compared anew by the fused experts, as many passes each; 0: none",
    )
    cache_gradients: bool = key(
        True, "contrast over the whole global batch also where micro_batch_size is less, for one more forward pass"
    )
    negatives: str = key("sampled", "of matching; sampled: by their likelihood | hardest: always the likeliest")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.matching_weight >= 0, f"task.matching_weight={self.matching_weight} must not be negative")
        require(self.rerank >= 0, f"task.rerank={self.rerank} must not be negative")


class Retrieval(Task):
    """Image-text retrieval: recall at 1, 5 and 10 both ways, by a dual encoder; fused re-ranking of the first."""

    Config = RetrievalSettings
    kind = "pairs"
    metric = "recall_mean"
    stages = ("vl", "mim")  # from mim the text experts are new

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.settings: RetrievalSettings = config.task
        self._pictures: PictureRecords | None = None  # of the records that were evaluated last

    @property
    def _fused(self) -> bool:
        """Whether there is a fused pass."""
        return self.settings.matching_weight > 0 or self.settings.rerank > 0

    def check(self) -> None:
        """UsageError where a single pair would be compared."""
        self.settings.check_several(self.config)

    def meta(self, train: Records, inherited: Meta) -> Meta:
        """`tokenizer`."""
        tokenizer = choose_tokenizer(self.config.text, lambda: train.column("text"), inherited.get("tokenizer"))
        return {"tokenizer": tokenizer.to_json()}

    def objective(self, meta: Meta) -> RetrievalObjective:
        """Encoder with image and text experts and the contrastive head; with a fused pass its experts and head too."""
        spec = encoder_spec(
            self.config,
            experts=("image", "text"),
            fused=self._fused,
            vocab_size=self._tokenizer(meta).vocab_size,
            meta=meta,
        )
        settings = self.settings
        heads = retrieval_heads(spec.embed_dim, settings.contrastive, self._fused)
        contrast = settings.contrast(matching=settings.matching_weight > 0)
        objective = RetrievalObjective(MoMEEncoder(spec), heads, contrast, settings.matching_weight)
        if self._fused and not settings.matching_weight:
            with torch.no_grad():  # no trained head is 0: so it is known whether one came
                objective.heads["match"].weight.zero_()
        return objective

    def prepare(  # type: ignore[override]
        self, objective: RetrievalObjective, splits: Mapping[str, Records], accelerator: Accelerator
    ) -> None:
        """Warns, as training starts, of pictures that are both trained and evaluated on.

        Raises DataError where a single picture is to be trained on, UsageError where the first candidates are to be
        re-ranked by a matching head that nobody trained.
        """
        if objective.matches and not self.settings.matching_weight and not bool(objective.heads["match"].weight.any()):
            raise UsageError(
                f"task.rerank={self.settings.rerank}: the run starts without a trained matching head (a run of "
                f"stage=vl has one); task.matching_weight=1 trains one, task.rerank=0 leaves re-ranking out"
            )
        if "train" in splits:
            if not self.settings.same_picture_negatives:
                check_several_pictures(splits["train"])
            self._warn_of_pictures(splits["train"], splits["val"])

    def without(self, names: Sequence[str]) -> str:
        """Of a run without a matching head, where it gets one."""
        if not any(name.startswith("heads.match.") for name in names):
            return super().without(names)
        return (
            "it was trained without a matching head: train with task.matching_weight=1, or with task.rerank=K from a "
            "run of stage=vl"
        )

    def data(self, records: Records, meta: Meta, *, train: bool) -> DataSpec:
        """Pairs with `image`, `text_ids`, `picture`; for evaluation pictures with all their captions."""
        tokenizer, settings = self._tokenizer(meta), self.settings
        if not train:
            return DataSpec(self._by_picture(records), PictureTransform(self._image(), tokenizer), collate_pictures)
        return DataSpec(records, PairTransform(settings.train_image(self.config), tokenizer), collate)

    def evaluators(self, records: Records, meta: Meta) -> Mapping[str, Evaluator]:
        """Recall over the split."""
        pictures, rerank, scores = self._by_picture(records), self.settings.rerank, None
        if rerank:
            scores = PairScores(pictures, self._image(), self._tokenizer(meta), self.config.data.workers)
        return {"retrieval": RetrievalEvaluator(pictures, scores, rerank)}

    def noted(self) -> dict[str, Any]:
        """`rerank`, where there is such."""
        return {"rerank": self.settings.rerank} if self.settings.rerank else {}

    def param_groups(  # type: ignore[override]
        self, objective: RetrievalObjective, optim: OptimConfig
    ) -> list[dict[str, Any]]:
        """VLMo's rules: one learning rate for all."""
        return param_groups(objective, optim, vlmo_decays)

    def predictor(self, objective: RetrievalObjective, meta: Meta) -> RetrievalPredictor:  # type: ignore[override]
        """Texts for a picture, pictures of a folder for a text."""
        return RetrievalPredictor(
            objective, self._image(), self._tokenizer(meta), self.config.data, self.settings.rerank
        )

    def _warn_of_pictures(self, train: Records, val: Records) -> None:
        names = train.column("picture")
        if isinstance(names, FieldColumn):  # would read every picture of a stream
            return
        own = {number_of(name) for name in val.column("picture")}
        if both := own.intersection(number_of(name) for name in names):
            log.warning(
                "%d of the %d pictures of data.val_split=%s are trained on too (data.train_split=%s): numbers on them "
                "say little of new pictures",
                len(both), len(own), self.config.data.val_split, self.config.data.train_split,
            )  # fmt: skip

    def _image(self) -> EvalImage:
        return EvalImage(self.config.data.size, *self.config.normalization)

    def _tokenizer(self, meta: Meta) -> Tokenizer:
        return Tokenizer.from_json(meta["tokenizer"], self.config.text.max_length)

    def _by_picture(self, records: Records) -> PictureRecords:
        """Put together once, however often a run is evaluated."""
        if self._pictures is None or self._pictures.pairs is not records:
            self._pictures = PictureRecords(records)
        return self._pictures
