"""The detection recipe: what its objective, data, evaluator and parameter groups are made of."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vlbeit.config import OptimConfig, RunConfig, Settings, key, require
from vlbeit.data.box_transforms import BoxEval, BoxTrain, collate_boxes, corners
from vlbeit.data.outlines import check_outlines, outline_masks
from vlbeit.data.records import ChosenRecords, open_stored
from vlbeit.data.sources import check_classes, open_source
from vlbeit.errors import DataError, UsageError
from vlbeit.models.detector import LEVELS
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.groups import beit_decays, param_groups
from vlbeit.models.heads import Heads
from vlbeit.models.spec import EncoderSpec, encoder_spec
from vlbeit.task import Task
from vlbeit.types import DataSpec, Evaluator, Meta, Predictor, Record, Records, Sample

from .evaluator import DetectionEvaluator, require_backend
from .objective import DetectionObjective
from .predictor import DetectionPredictor

if TYPE_CHECKING:
    from accelerate import Accelerator

    from vlbeit.objectives.base import Objective

log = logging.getLogger(__name__)


@dataclass
class DetectionSettings(Settings):
    """Defaults: ViTDet's recipe on COCO."""

    masks: bool = key(False, "also a mask for every box: Mask R-CNN instead of Faster R-CNN")
    anchors: list[float] = key(
        [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2],
        "sides of the anchors, finest level first, over the longer side of data.image_size (32..512 of 1024 in ViTDet)",
    )
    channels: int = key(256, "width of the feature pyramid")
    hidden: int = key(1024, "width of the layer before classes and boxes")
    proposals: int = key(1000, "boxes of a picture that the proposal network hands on")
    min_scale: float = key(0.1, "large-scale jitter: smallest size over the one that fits the canvas")
    max_scale: float = key(2.0, "large-scale jitter: largest size; both 1: no jitter")
    hflip: float = key(0.5, "probability of a horizontal flip")
    keep_empty: bool = key(False, "train on pictures without a box too; false as torchvision's and detectron2's")
    least_score: float = key(0.05, "detections below it are dropped")
    draw_score: float = key(0.5, "detections of at least this score are drawn by `vlbeit predict --out`")

    def __post_init__(self) -> None:
        require(
            len(self.anchors) == LEVELS and all(0 < side <= 1 for side in self.anchors),
            f"task.anchors={self.anchors} must be {LEVELS} numbers in (0, 1]",
        )
        for name in ("channels", "hidden", "proposals"):
            require(getattr(self, name) > 0, f"task.{name}={getattr(self, name)} must be positive")
        require(
            0 < self.min_scale <= self.max_scale <= 10,
            f"task.min_scale={self.min_scale}, task.max_scale={self.max_scale} must lie in (0, 10], the least first",
        )
        require(0 <= self.hflip <= 1, f"task.hflip={self.hflip} must lie in [0, 1]")
        for name in ("least_score", "draw_score"):
            require(0 <= getattr(self, name) < 1, f"task.{name}={getattr(self, name)} must lie in [0, 1)")


class Detection(Task):
    """Object detection: boxes (and masks) by Faster or Mask R-CNN on a pyramid of the tower's last map, COCO mAP."""

    Config = DetectionSettings
    kind = "boxes"
    metric = "map"
    stages = ("mim", "vl")  # of vl the image experts alone

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.settings: DetectionSettings = config.task

    def check(self) -> None:
        """Raise UsageError unless faster-coco-eval is installed."""
        require_backend()

    def prepare(self, objective: Objective, splits: Mapping[str, Records], accelerator: Accelerator) -> None:
        """With masks, DataError for boxes without one: the loader, or the evaluator, would meet them much later."""
        for split, records in splits.items():
            if self.settings.masks:
                check_outlines(records, split, crowds=split != "train")

    def meta(self, train: Records, inherited: Meta) -> Meta:
        """`classes`: the names of the labels, as the data source gives them."""
        return {"classes": list(open_source(self.config.data).classes("boxes"))}

    def objective(self, meta: Meta) -> DetectionObjective:
        """Encoder with the image expert alone, and a new detector. UsageError for patches of an odd size."""
        settings, (height, width) = self.settings, self.config.data.size
        encoder = MoMEEncoder(encoder_spec(self.config, final_norm=False, meta=meta))
        _check_stride(encoder.spec, (height, width))
        head = {
            "kind": "detector",
            "dim": encoder.spec.embed_dim,
            "num_classes": len(meta["classes"]),
            "anchors": [side * max(height, width) for side in settings.anchors],
            "channels": settings.channels,
            "hidden": settings.hidden,
            "proposals": settings.proposals,
            "masks": settings.masks,
        }
        objective = DetectionObjective(encoder, Heads({"detector": head}))
        objective.detector.regions.score_thresh = settings.least_score
        return objective

    def data(self, records: Records, meta: Meta, *, train: bool) -> DataSpec:
        """Samples with `image`, `inner_size`, and `boxes` for training, `original_size` and `truth` for evaluation.

        Raises DataError where the data has other classes than the run.
        """
        check_classes(self.config.data, open_source(self.config.data).classes(self.kind), meta["classes"])
        mean, std = self.config.normalization
        size, settings = self.config.data.size, self.settings
        if not train:
            return DataSpec(records, _Evaluated(BoxEval(size, mean, std), settings.masks), collate_boxes)
        jitter = BoxTrain(size, mean, std, (settings.min_scale, settings.max_scale), settings.hflip)
        return DataSpec(self._trained_on(records), _Trained(jitter, settings.masks), collate_boxes)

    def evaluators(self, records: Records, meta: Meta) -> Mapping[str, Evaluator]:
        """COCO's average precision.

        Raises UsageError unless faster-coco-eval is installed, DataError for records without a single box.
        """
        require_backend()
        if all(all(crowd) for crowd in records.column("crowd")):
            data = self.config.data
            raise DataError(
                f"none of the {len(records)} pictures of the split {data.val_split!r} of {data.root} has a box (crowds "
                "do not count): nothing can be measured on them; set data.val_split= to another split, or data.limit= "
                "higher"
            )
        return {"detection": DetectionEvaluator(meta["classes"], self.settings.masks)}

    def param_groups(self, objective: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
        """BEiT's rules: `optim.layer_decay` per layer, no decay of vectors, biases and the CLS token."""
        return param_groups(objective, optim, beit_decays, scaled_head="detector")

    def predictor(self, objective: nn.Module, meta: Meta) -> Predictor:
        """Image in, things with scores and boxes out. With masks UsageError unless faster-coco-eval is installed."""
        if self.settings.masks:
            require_backend()
        mean, std = self.config.normalization
        image = BoxEval(self.config.data.size, mean, std)
        return DetectionPredictor(objective, image, meta["classes"], self.settings.draw_score)

    def _trained_on(self, records: Records) -> Records:
        """Without the pictures that have no box, or crowds alone, and says how many."""
        if self.settings.keep_empty:
            return records
        rows = [row for row, crowd in enumerate(records.column("crowd")) if not all(crowd)]
        if not rows:
            raise DataError(f"none of the {len(records)} training pictures has a box: nothing can be learned from them")
        if len(rows) < len(records):
            left = len(records) - len(rows)
            log.info(
                "%d of %d training pictures have no box, or crowds alone, and are left out (task.keep_empty=true)",
                left, len(records),
            )  # fmt: skip
            records = ChosenRecords(records, rows)
        return records


class _Trained:
    """A record to a sample of training; crowds are no boxes to learn from. Runs in the loader's workers."""

    def __init__(self, jitter: BoxTrain, masks: bool) -> None:
        self.jitter, self.masks = jitter, masks

    def __call__(self, record: Record) -> Sample:
        image = open_stored(record["image"])
        single = [index for index, crowd in enumerate(record["crowd"]) if not crowd]
        masks_nHW = None
        if self.masks:
            outlines = [record["outlines"][index] for index in single]
            masks_nHW = outline_masks(outlines, image.height, image.width, record["id"])
        boxes_n4 = corners([record["boxes"][index] for index in single])
        labels_n = torch.tensor([record["labels"][index] for index in single], dtype=torch.int64)
        return {"sample_id": record["id"], **self.jitter(image, boxes_n4, labels_n, masks_nHW)}


class _Evaluated:
    """A record to a sample of evaluation: what is to be found stays in pixels of the original."""

    def __init__(self, image: BoxEval, masks: bool) -> None:
        self.image, self.masks = image, masks

    def __call__(self, record: Record) -> Sample:
        truth = {name: record[name] for name in ("labels", "areas", "crowd")}
        truth["boxes"] = corners(record["boxes"]).tolist()
        if self.masks:
            truth["outlines"] = record["outlines"]
        return {"sample_id": record["id"], **self.image(open_stored(record["image"])), "truth": truth}


def _check_stride(spec: EncoderSpec, size: tuple[int, int]) -> None:
    """The pyramid halves and doubles twice, and pooling of regions counts in powers of two."""
    assert spec.grid is not None, "the image expert is there"
    strides = {side / patches for side, patches in zip(size, spec.grid, strict=True)}
    if len(strides) != 1 or not strides <= {8, 16, 32}:
        raise UsageError(
            f"task=detection needs square patches of 8, 16 or 32 pixels; this tower has {spec.grid[0]}x{spec.grid[1]} "
            f"of them on {size[0]}x{size[1]}: set model.patch_size=16, or take another model.image_tower="
        )
