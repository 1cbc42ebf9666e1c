"""The retrieval recipe: what its objective, data, evaluator and parameter groups are made of."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from vlbeit.config import OptimConfig, RunConfig, Settings, key, one_of, require
from vlbeit.data.collate import collate
from vlbeit.data.picture_names import number_of
from vlbeit.data.text import Tokenizer, choose_tokenizer
from vlbeit.data.transforms import EvalImage, TrainImage
from vlbeit.errors import UsageError
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.groups import param_groups, vlmo_decays
from vlbeit.models.spec import encoder_spec
from vlbeit.objectives.contrastive import GATHERS, LOSSES, ContrastRule
from vlbeit.objectives.global_contrast import GlobalContrast
from vlbeit.objectives.matching import DRAWS
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
class RetrievalSettings(Settings):
    """Defaults: VLMo's dual encoder."""

    matching_weight: float = key(
        0.0, "weight of the matching loss beside contrast: trains what task.rerank needs; 0: contrast alone, as VLMo"
    )
    rerank: int = key(
        0,
        "so many first candidates of every query are compared anew by the fused experts, as many passes each; 0: none",
    )
    contrastive: str = key(
        "softmax", "softmax: each text among all pictures, as VLMo | sigmoid: pair by pair, as SigLIP"
    )
    gather: str = key(
        "gradient", "gradient: as one process with the whole batch | published: none through the gather, as VLMo"
    )
    same_picture_negatives: bool = key(
        False, "whether other captions of a picture count as wrong ones in contrast and matching; VLMo: true"
    )
    cache_gradients: bool = key(
        True, "contrast over the whole global batch also where micro_batch_size is less, for one more forward pass"
    )
    negatives: str = key("sampled", "of matching; sampled: by their likelihood | hardest: always the likeliest")
    min_scale: float = key(0.5, "smallest random crop as a share of the picture")
    hflip: float = key(0.0, "probability of a horizontal flip; differs from VLMo (0.5): it turns left into right")
    randaugment: bool = key(True, "RandAugment (2 operations, magnitude 7), as VLMo")

    def __post_init__(self) -> None:
        one_of("task.contrastive", self.contrastive, tuple(LOSSES))
        one_of("task.gather", self.gather, GATHERS)
        one_of("task.negatives", self.negatives, tuple(DRAWS))
        require(self.matching_weight >= 0, f"task.matching_weight={self.matching_weight} must not be negative")
        require(self.rerank >= 0, f"task.rerank={self.rerank} must not be negative")
        require(0 < self.min_scale <= 1, f"task.min_scale={self.min_scale} must lie in (0, 1]")
        require(0 <= self.hflip <= 1, f"task.hflip={self.hflip} must lie in [0, 1]")


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
        rule = ContrastRule(settings.contrastive, settings.gather, settings.same_picture_negatives)
        draw = DRAWS[settings.negatives] if settings.matching_weight else None
        heads = retrieval_heads(spec.embed_dim, settings.contrastive, self._fused)
        contrast = GlobalContrast(rule, draw, settings.cache_gradients)
        objective = RetrievalObjective(MoMEEncoder(spec), heads, contrast, settings.matching_weight)
        if self._fused and not settings.matching_weight:
            with torch.no_grad():  # no trained head is 0: so it is known whether one came
                objective.heads["match"].weight.zero_()
        return objective

    def prepare(  # type: ignore[override]
        self, objective: RetrievalObjective, splits: Mapping[str, Records], accelerator: Accelerator
    ) -> None:
        """Warns, as training starts, of pictures that are both trained and evaluated on.

        Raises UsageError where the first candidates are to be re-ranked by a matching head that nobody trained.
        """
        if objective.matches and not self.settings.matching_weight and not bool(objective.heads["match"].weight.any()):
            raise UsageError(
                f"task.rerank={self.settings.rerank}: the run starts without a trained matching head (a run of "
                f"stage=vl has one); task.matching_weight=1 trains one, task.rerank=0 leaves re-ranking out"
            )
        if "train" not in splits:
            return
        own = {number_of(name) for name in splits["val"].column("picture")}
        both = own.intersection(number_of(name) for name in splits["train"].column("picture"))
        if both:
            log.warning(
                "%d of the %d pictures of data.val_split=%s are trained on too (data.train_split=%s): numbers on them "
                "say little of new pictures",
                len(both), len(own), self.config.data.val_split, self.config.data.train_split,
            )  # fmt: skip

    def data(self, records: Records, meta: Meta, *, train: bool) -> DataSpec:
        """Pairs with `image`, `text_ids`, `picture`; for evaluation pictures with all their captions."""
        tokenizer, settings = self._tokenizer(meta), self.settings
        if not train:
            return DataSpec(self._by_picture(records), PictureTransform(self._image(), tokenizer), collate_pictures)
        mean, std = self.config.normalization
        image = TrainImage(
            self.config.data.size,
            mean,
            std,
            min_scale=settings.min_scale,
            hflip=settings.hflip,
            randaugment=settings.randaugment,
        )
        return DataSpec(records, PairTransform(image, tokenizer), collate)

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

    def _image(self) -> EvalImage:
        return EvalImage(self.config.data.size, *self.config.normalization)

    def _tokenizer(self, meta: Meta) -> Tokenizer:
        return Tokenizer.from_json(meta["tokenizer"], self.config.text.max_length)

    def _by_picture(self, records: Records) -> PictureRecords:
        """Put together once, however often a run is evaluated."""
        if self._pictures is None or self._pictures.pairs is not records:
            self._pictures = PictureRecords(records)
        return self._pictures
