"""The classification recipe: what its objective, data, evaluator and parameter groups are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.data import Mixup
from torch import Tensor, nn

from vlbeit.config import OptimConfig, RunConfig, Settings, key, one_of, require
from vlbeit.data.collate import collate
from vlbeit.data.labelled import LabelledSample
from vlbeit.data.sources import check_classes, open_source
from vlbeit.data.transforms import ClassificationEval, ClassificationTrain, Erasing
from vlbeit.errors import DataError, UsageError
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.groups import beit_decays, param_groups
from vlbeit.models.heads import Heads
from vlbeit.models.spec import encoder_spec
from vlbeit.task import Task
from vlbeit.types import DataSpec, Evaluator, Exportable, Meta, Predictor, Records

from .evaluator import ClassificationEvaluator, ClassificationPredictor
from .objective import ClassificationObjective
from .subset import subset_rows, weights_classes


@dataclass
class ClassificationSettings(Settings):
    """Defaults: BEiT's fine-tuning recipe on ImageNet-1k."""

    smoothing: float = key(0.1, "label smoothing")
    mixup: float = key(0.8, "alpha of mixup; 0: off")
    cutmix: float = key(1.0, "alpha of cutmix; 0: off")
    mixup_prob: float = key(1.0, "share of micro-batches that are mixed at all")
    mixup_mode: str = key("batch", "what is drawn anew for every: batch | pair | elem")
    switch_prob: float = key(0.5, "share of cutmix among the mixed ones, where both are on")
    randaugment: str = key("rand-m9-mstd0.5-inc1", "timm's name of the augmentation policy; empty: none")
    color_jitter: float = key(0.4, "strength of colour jitter; used where randaugment is empty, as in timm")
    erasing: float = key(0.25, "share of pictures that random erasing strikes")
    erasing_mode: str = key("pixel", "what it leaves: pixel (noise) | rand (a colour) | const (zeros)")
    erasing_count: int = key(1, "largest number of patches that it erases of a picture")
    min_scale: float = key(0.08, "smallest share of the picture that a training crop keeps")
    crop_pct: float | None = key(None, "share of the picture at evaluation; null: 224/256 below 384 pixels, else 1")
    init_scale: float = key(0.001, "factor on the new classifier's initial weights")
    subset: bool = key(False, "evaluate among the classes of data.root alone, some of the run's (ImageNet-A, -R)")

    def __post_init__(self) -> None:
        for name in ("smoothing", "mixup_prob", "switch_prob", "erasing"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"task.{name}={value} must lie in [0, 1]")
        one_of("task.mixup_mode", self.mixup_mode, ("batch", "pair", "elem"))
        one_of("task.erasing_mode", self.erasing_mode, ("pixel", "rand", "const"))
        require(self.erasing_count >= 1, f"task.erasing_count={self.erasing_count} must be at least 1")
        require(self.smoothing < 1, f"task.smoothing={self.smoothing} must be below 1")
        require(self.mixup >= 0, f"task.mixup={self.mixup} must not be negative")
        require(self.cutmix >= 0, f"task.cutmix={self.cutmix} must not be negative")
        require(self.color_jitter >= 0, f"task.color_jitter={self.color_jitter} must not be negative")
        require(0 < self.min_scale <= 1, f"task.min_scale={self.min_scale} must lie in (0, 1]")
        require(
            self.crop_pct is None or 0 < self.crop_pct <= 1,
            f"task.crop_pct={self.crop_pct} must lie in (0, 1], or null",
        )


class Classification(Task):
    """Image classification: the mean of the patch tokens, one class out, BEiT's fine-tuning recipe."""

    Config = ClassificationSettings
    kind = "labelled"
    metric = "top1"
    stages = ("mim", "vl")  # of vl the image experts alone

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.settings: ClassificationSettings = config.task

    def meta(self, train: Records, inherited: Meta) -> Meta:
        """`classes`: the names of the labels, as the data source gives them; for a subset those of the weights."""
        found = self._found_classes()
        if self.settings.subset:
            return {"classes": weights_classes(inherited.get("classes", []), found)}
        if len(found) < 2:
            raise DataError(
                f"data.root={self.config.data.root} has one class, {', '.join(found)}: there is nothing to tell apart"
            )
        return {"classes": found}

    def objective(self, meta: Meta) -> ClassificationObjective:
        """Encoder with the image expert alone, and a new classifier."""
        settings, classes = self.settings, len(meta["classes"])
        spec = encoder_spec(self.config, final_norm=False, meta=meta)
        head = {
            "kind": "classification",
            "dim": spec.embed_dim,
            "num_classes": classes,
            "init_scale": settings.init_scale,
        }
        mixup = None
        if settings.mixup > 0 or settings.cutmix > 0:
            mixup = Mixup(
                mixup_alpha=settings.mixup,
                cutmix_alpha=settings.cutmix,
                prob=settings.mixup_prob,
                mode=settings.mixup_mode,
                switch_prob=settings.switch_prob,
                label_smoothing=settings.smoothing,
                num_classes=classes,
            )
        return ClassificationObjective(MoMEEncoder(spec), Heads({"classification": head}), settings.smoothing, mixup)

    def data(self, records: Records, meta: Meta, *, train: bool) -> DataSpec:
        """Samples with `image` and `label`. Raises DataError where the data has other classes than the run."""
        if self.settings.subset and train:
            raise UsageError("task.subset=true is for `vlbeit evaluate`: a run is trained on the classes of its data")
        if not self.settings.subset:
            self._check_classes(meta["classes"])
        return DataSpec(records, LabelledSample(self._image_transform(train)), collate)

    def evaluators(self, records: Records, meta: Meta) -> Mapping[str, Evaluator]:
        """Top-1 and top-5 accuracy; with `task.subset` among the classes of the data alone."""
        rows = self._subset(meta["classes"]) if self.settings.subset else None
        return {"classification": ClassificationEvaluator(len(meta["classes"]), rows)}

    def param_groups(self, objective: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
        """BEiT's rules: `optim.layer_decay` per layer, no decay of vectors, biases and the CLS token."""
        return param_groups(objective, optim, beit_decays, scaled_head="classification")

    def predictor(self, objective: nn.Module, meta: Meta) -> Predictor:
        """Image in, classes with their probabilities out."""
        return ClassificationPredictor(objective, self._image_transform(False), meta["classes"])

    def exported(self, objective: ClassificationObjective, meta: Meta) -> Exportable:  # type: ignore[override]
        """`image` in, class logits out; the metadata has `classes`."""
        height, width = self.config.data.size
        return Exportable(
            call=objective.class_logits,
            example=lambda sizes: {"image": torch.randn(sizes["batch"], 3, height, width)},
            axes={"image": {0: "batch"}},
            sizes={"batch": (1, 3)},
            output="logits",
            facts={"classes": meta["classes"]},
        )

    def _found_classes(self) -> list[str]:
        return list(open_source(self.config.data).classes())

    def _subset(self, known: list[str]) -> list[int]:
        """Rows of the classifier that the classes of the data have."""
        return subset_rows(self._found_classes(), known, f"data.root={self.config.data.root}")

    def _check_classes(self, known: list[str]) -> None:
        found = self._found_classes()
        fewer = {*found} < {*known}
        subset = ", or task.subset=true to evaluate among these alone" if fewer else ""
        check_classes(self.config.data, found, known, subset)

    def _image_transform(self, train: bool) -> Callable[[Any], Tensor]:
        (mean, std), size, settings = self.config.normalization, self.config.data.size, self.settings
        if not train:
            return ClassificationEval(size, mean, std, crop_pct=settings.crop_pct)
        try:
            return ClassificationTrain(
                size,
                mean,
                std,
                randaugment=settings.randaugment,
                erasing=Erasing(settings.erasing, settings.erasing_mode, settings.erasing_count),
                color_jitter=settings.color_jitter,
                min_scale=settings.min_scale,
            )
        except (AssertionError, ValueError, KeyError) as error:
            raise UsageError(
                f"task.randaugment={settings.randaugment} is no policy of timm.data.auto_augment ({error}): "
                f"such as {ClassificationSettings.randaugment}"
            ) from error
