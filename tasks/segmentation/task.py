"""The segmentation recipe: what its objective, data, evaluator and parameter groups are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from vlbeit import dist
from vlbeit.config import OptimConfig, RunConfig, Settings, key, one_of, require
from vlbeit.data.collate import collate
from vlbeit.data.joint_transforms import Jitter, SegmentationTrain
from vlbeit.data.segments import check_pairs, open_pair
from vlbeit.data.sources import check_classes, open_source
from vlbeit.engine.device import choose_device
from vlbeit.errors import UsageError
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.groups import beit_decays, param_groups
from vlbeit.models.heads import Heads
from vlbeit.models.spec import EncoderSpec, encoder_spec
from vlbeit.nn.batch_norm import synced
from vlbeit.task import Task
from vlbeit.types import Batch, DataSpec, Evaluator, Exportable, Meta, Predictor, Record, Records, Sample

from .evaluator import SegmentationEvaluator
from .inference import Views, Windows
from .objective import ONE_PICTURE, SegmentationObjective
from .predictor import SegmentationPredictor

if TYPE_CHECKING:
    from accelerate import Accelerator

    from vlbeit.objectives.base import Objective

_LONG = 4  # the longest side of a resized picture over its shortest: 2048:512 and 2560:640 on ADE20K
_SETR_CHANNELS = 256


@dataclass
class SegmentationSettings(Settings):
    """Defaults: BEiT's recipe on ADE20K."""

    head: str = key("upernet", "upernet: four levels of features, UPerNet | setr_pup: the last layer, upsampled")
    channels: int | None = key(None, "width of the decoder; null: that of the tower (upernet), 256 (setr_pup)")
    taps: list[int] | None = key(
        None, "upernet: four blocks, counted from 0, whose outputs are decoded; null: 3,5,7,11 of 12, in proportion"
    )
    auxiliary_weight: float = key(0.4, "weight of the loss of a small head on the third tap; 0: none")
    dropout: float = key(0.1, "share of channels dropped before the classifiers of upernet and the auxiliary head")
    reduce_zero_label: bool = key(True, "label 0 of the masks is no class and not scored, 1 is the first class")
    resize: list[int] | None = key(
        None, "longest and shortest side that pictures are resized to, aspect kept; null: 4 and 1 times data.image_size"
    )
    ratio_min: float = key(0.5, "smallest random factor on `resize` in training")
    ratio_max: float = key(2.0, "largest one")
    cat_max_ratio: float = key(0.75, "largest share of one class in a training crop, if ten tries find such; 1: any")
    hflip: float = key(0.5, "probability of a horizontal flip")
    photometric: bool = key(True, "random brightness, contrast, saturation and hue")
    inference: str = key("slide", "slide: windows of data.image_size over the picture | whole: squeezed into one")
    stride: Any = key(
        None, "pixels from one window to the next, or [rows, columns]; null: two thirds of it (341 of 512, 426 of 640)"
    )
    windows: int = key(8, "windows that one forward sees at evaluation; changes no number")
    scales: list[float] = key([1.0], "factors on `resize` whose predictions are averaged; slide only")
    flip: bool = key(False, "average over the picture and its mirror image")

    def __post_init__(self) -> None:
        one_of("task.head", self.head, ("upernet", "setr_pup"))
        one_of("task.inference", self.inference, ("slide", "whole"))
        require(self.channels is None or self.channels > 0, f"task.channels={self.channels} must be positive, or null")
        require(self.auxiliary_weight >= 0, f"task.auxiliary_weight={self.auxiliary_weight} must not be negative")
        require(0 <= self.dropout < 1, f"task.dropout={self.dropout} must lie in [0, 1)")
        require(0 <= self.hflip <= 1, f"task.hflip={self.hflip} must lie in [0, 1]")
        require(0 < self.cat_max_ratio <= 1, f"task.cat_max_ratio={self.cat_max_ratio} must lie in (0, 1]")
        require(
            0 < self.ratio_min <= self.ratio_max,
            f"task.ratio_min={self.ratio_min} must be positive and not above task.ratio_max={self.ratio_max}",
        )
        require(
            self.resize is None or (len(self.resize) == 2 and self.resize[0] >= self.resize[1] > 0),
            f"task.resize={self.resize} must be the longest and the shortest side, such as [2048,512], or null",
        )
        sides = list(self.stride) if isinstance(self.stride, list | tuple) else [self.stride] * 2
        require(
            self.stride is None or (len(sides) == 2 and all(type(side) is int and side > 0 for side in sides)),
            f"task.stride={self.stride} must be a positive number of pixels, two of them such as [341,341], or null",
        )
        self.stride = None if self.stride is None else sides
        require(
            self.taps is None or (len(self.taps) == 4 and min(self.taps) >= 0 and self.head == "upernet"),
            f"task.taps={self.taps} must be four blocks, such as [3,5,7,11], with task.head=upernet, or null",
        )
        require(self.windows > 0, f"task.windows={self.windows} must be positive")
        positive = bool(self.scales) and all(scale > 0 for scale in self.scales)
        require(positive, f"task.scales={self.scales} must be positive factors, such as [0.75,1.0,1.25]")
        require(
            self.inference == "slide" or list(self.scales) == [1.0],
            f"task.scales={self.scales} needs task.inference=slide: a whole picture has one size, data.image_size",
        )


class Segmentation(Task):
    """Semantic segmentation: a class per pixel by UPerNet or SETR-PUP on the tower, BEiT's ADE20K recipe."""

    Config = SegmentationSettings
    kind = "masks"
    metric = "miou"
    stages = ("mim", "vl")  # of vl the image experts alone

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.settings: SegmentationSettings = config.task
        size, stride = config.data.size, self.settings.stride or [1, 1]
        require(
            self.settings.inference == "whole" or all(step <= side for step, side in zip(stride, size, strict=True)),
            f"task.stride={stride} is larger than data.image_size={config.data.image_size}: pixels between two windows "
            "would be seen by none; take a smaller one, or null",
        )

    def check(self) -> None:
        """Raise UsageError for a tower of ours whose blocks or patches do not suffice; of another `objective` does.

        So it does for batches too small to train on.
        """
        self._check_batch()
        if self.config.model.image_tower == "own":
            self._check_tower(encoder_spec(self.config, final_norm=False))

    def prepare(self, objective: Objective, splits: Mapping[str, Records], accelerator: Accelerator) -> None:
        """Look at some masks of each split: DataError for what `TrainingSample` would meet thousands of steps later."""
        classes = len(open_source(self.config.data).classes(self.kind))
        for split, records in splits.items():
            check_pairs(records, split, classes, self.settings.reduce_zero_label)

    def meta(self, train: Records, inherited: Meta) -> Meta:
        """`classes`: the names of the classes of a pixel, as the data source gives them."""
        return {"classes": list(open_source(self.config.data).classes(self.kind))}

    def objective(self, meta: Meta) -> SegmentationObjective:
        """Encoder with the image expert alone, and a new decoder. UsageError for taps or patches that it has not."""
        spec = encoder_spec(self.config, final_norm=False, meta=meta)
        self._check_tower(spec)
        heads = Heads(self._heads(spec.embed_dim, len(meta["classes"])))
        if dist.world_size() > 1 and choose_device(self.config.device) == "cuda":
            synced(heads)
        return SegmentationObjective(MoMEEncoder(spec), heads, self._windows(), self.settings.auxiliary_weight)

    def data(self, records: Records, meta: Meta, *, train: bool) -> DataSpec:
        """Training: `image` and `segments` of one size. Else `views`, `original_size` and `original_segments` as lists.

        Raises DataError where the data has other classes than the run.
        """
        check_classes(self.config.data, open_source(self.config.data).classes(self.kind), meta["classes"])
        classes = len(meta["classes"])
        if not train:
            reader = EvaluationSample(self.views(), classes, self.settings.reduce_zero_label)
            return DataSpec(records, reader, _listed)
        return DataSpec(
            records, TrainingSample(self._augmentation(), classes, self.settings.reduce_zero_label), collate
        )

    def evaluators(self, records: Records, meta: Meta) -> Mapping[str, Evaluator]:
        """Mean intersection over union, and accuracies, over the whole split."""
        return {"segmentation": SegmentationEvaluator(meta["classes"])}

    def param_groups(self, objective: SegmentationObjective, optim: OptimConfig) -> list[dict[str, Any]]:  # type: ignore[override]
        """BEiT's rules: `optim.layer_decay` per layer, no decay of vectors, biases and the CLS token.

        The whole decoder, with its necks and the auxiliary head, learns `optim.head_lr_scale` times as fast.
        """
        return param_groups(objective, optim, beit_decays, scaled_head=objective.heads.specs)

    def predictor(self, objective: SegmentationObjective, meta: Meta) -> Predictor:  # type: ignore[override]
        """Image in, classes with their shares of the picture out."""
        return SegmentationPredictor(objective, self.views(), meta["classes"])

    def exported(self, objective: SegmentationObjective, meta: Meta) -> Exportable:  # type: ignore[override]
        """`image` [batch, 3, height, width], one window, in; class logits [batch, classes, rows, columns] out."""
        height, width = self.config.data.size
        return Exportable(
            call=objective.logits,
            example=lambda sizes: {"image": torch.randn(sizes["batch"], 3, height, width)},
            axes={"image": {0: "batch"}},
            sizes={"batch": (1, 3)},
            output="logits",
            facts={"classes": meta["classes"]},
        )

    def _heads(self, dim: int, classes: int) -> dict[str, dict[str, Any]]:
        settings = self.settings
        size = {"dim": dim, "num_classes": classes}
        specs: dict[str, dict[str, Any]] = {}
        if settings.head == "upernet":
            specs["necks"] = {"kind": "feature_necks", "dim": dim}
            if settings.taps is not None:
                specs["necks"]["taps"] = list(settings.taps)
            specs["segmentation"] = {
                "kind": "upernet", **size, "channels": settings.channels or dim, "dropout": settings.dropout
            }  # fmt: skip
        else:
            specs["segmentation"] = {"kind": "setr_pup", **size, "channels": settings.channels or _SETR_CHANNELS}
        if settings.auxiliary_weight > 0:
            specs["auxiliary"] = {"kind": "fcn", **size, "dropout": settings.dropout}
        return specs

    def _windows(self) -> Windows:
        size, settings = self.config.data.size, self.settings
        rows, columns = settings.stride or [max(1, side * 2 // 3) for side in size]
        return Windows(size, (rows, columns), settings.flip, settings.windows)

    def _resize(self) -> tuple[int, int]:
        """Longest and shortest side of a resized picture."""
        if self.settings.resize is not None:
            long, short = self.settings.resize
            return long, short
        return _LONG * max(self.config.data.size), max(self.config.data.size)

    def views(self) -> Views:
        """How the tower is shown a picture at evaluation."""
        (mean, std), settings = self.config.normalization, self.settings
        resize = self._resize() if settings.inference == "slide" else None
        return Views(self.config.data.size, mean, std, resize, settings.scales)

    def _augmentation(self) -> SegmentationTrain:
        (mean, std), settings = self.config.normalization, self.settings
        jitter = Jitter(
            self._resize(),
            (settings.ratio_min, settings.ratio_max),
            settings.cat_max_ratio,
            settings.hflip,
            settings.photometric,
        )
        return SegmentationTrain(self.config.data.size, mean, std, jitter)

    def _check_tower(self, spec: EncoderSpec) -> None:
        """There are the blocks of `task.taps`, and patches enough for a pyramid."""
        last = max(self.settings.taps or [0])
        if last >= spec.depth:
            raise UsageError(f"task.taps={self.settings.taps}: there is no block {last} of {spec.depth}, from 0")
        assert spec.grid is not None, "the image expert is there"
        if self.settings.head == "upernet" and min(spec.grid) < 2:
            raise UsageError(
                f"data.image_size={self.config.data.image_size} is {spec.grid[0]}x{spec.grid[1]} patches, and "
                "task.head=upernet halves their number: take a larger one, or task.head=setr_pup"
            )

    def _check_batch(self) -> None:
        """What can be known of `SegmentationObjective`'s need for two pictures before any work."""
        config, processes = self.config, dist.world_size()
        largest = (
            config.global_batch_size // processes if config.micro_batch_size == "auto" else config.micro_batch_size
        )
        if self.settings.head == "upernet" and largest == 1 == processes:
            raise UsageError(ONE_PICTURE)


class TrainingSample:
    """A masks record to an augmented sample; runs in the loader's workers."""

    def __init__(self, augmentation: SegmentationTrain, num_classes: int, reduce_zero_label: bool) -> None:
        self.augmentation = augmentation
        self.num_classes = num_classes
        self.reduce_zero_label = reduce_zero_label

    def __call__(self, record: Record) -> Sample:
        image, segments_HW = open_pair(record, self.num_classes, self.reduce_zero_label)
        return {"sample_id": record["id"], **self.augmentation(image, segments_HW)}


class EvaluationSample:
    """A masks record to the views of its picture and its labels as they are; runs in the loader's workers."""

    def __init__(self, views: Views, num_classes: int, reduce_zero_label: bool) -> None:
        self.views = views
        self.num_classes = num_classes
        self.reduce_zero_label = reduce_zero_label

    def __call__(self, record: Record) -> Sample:
        image, segments_HW = open_pair(record, self.num_classes, self.reduce_zero_label)
        return {
            "sample_id": record["id"],
            "views": self.views(image),
            "original_size": (image.height, image.width),
            "original_segments": segments_HW,
        }


def _listed(samples: Sequence[Sample]) -> Batch:
    """Samples whose pictures differ in size, each field as a list."""
    return {name: [sample[name] for sample in samples] for name in samples[0]}
