"""COCO's mean average precision over a split, by torchmetrics on faster-coco-eval.

Legend: n boxes, H W height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vlbeit.bootstrap import Interval, mean_interval
from vlbeit.data.outlines import Runs, outline_masks, to_runs
from vlbeit.dist import broadcast_object, gather_objects, is_main
from vlbeit.errors import UsageError
from vlbeit.types import Batch

from .agreement import picture_f1

Rows = dict[str, Any]  # of one picture: lists of plain values
_NUMBERS = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large", "mar_100")


def require_backend() -> None:
    """Raise UsageError, naming the remedy, unless the library behind COCO's numbers and masks is installed."""
    if find_spec("faster_coco_eval") is None:
        raise UsageError("task=detection needs faster-coco-eval: pip install 'vlbeit[detection]'")


class DetectionEvaluator:
    """COCO's average precision in percent, boxes in pixels of the original pictures, crowds as COCO treats them.

    A picture that is seen twice counts once, so that padding by a sampler cannot move the numbers.

    Args:
        classes: names of the labels.
        masks: also measure masks: `segm_map` and the like.
    """

    over = "pictures"

    def __init__(self, classes: Sequence[str], masks: bool = False) -> None:
        self.classes = list(classes)
        self.masks = masks
        self.pictures: dict[str, Rows] = {}  # sample id -> what was found there and what is there
        self._per_class: dict[str, list[float | None]] = {}
        self._scores: dict[str, float] = {}  # sample id -> F1

    @torch.no_grad()
    def update(self, objective: nn.Module, batch: Batch) -> None:
        """Detect in the pictures of one batch."""
        found = objective.predict(batch)
        sizes, truths = batch["original_size"], batch["truth"]
        for sample_id, detections, truth, size in zip(batch["sample_id"], found, truths, sizes, strict=True):
            if self.masks:
                unreadable = sample_id in batch.get("bad", ())
                truth = {**truth, "masks": _true_runs(truth["outlines"], size, sample_id, unreadable)}
                del truth["outlines"]
            self.pictures[sample_id] = {"truth": truth, "found": self._plain(detections)}

    def compute(self) -> dict[str, float]:
        """`map` (IoU 0.50 to 0.95), `map_50`, `map_75`, `map_small`, `map_medium`, `map_large`, `mar_100`, `images`.

        Percent, over all processes. What no box is there for, such as large ones, is left out; with masks the same
        again as `segm_map` and so on. Also `f1`, of boxes: the mean over pictures of `agreement.picture_f1`. The main
        process computes, the others wait. Raises ValueError where nothing was evaluated.
        """
        pictures = {key: rows for part in gather_objects(self.pictures) for key, rows in part.items()}
        if not pictures:
            raise ValueError("no picture was evaluated")
        found = (*self._numbers(pictures), _scores(pictures)) if is_main() else ({}, {}, {})
        result, self._per_class, self._scores = broadcast_object(found)
        f1 = 100 * sum(self._scores.values()) / len(pictures)
        return result | {"f1": f1, "images": len(pictures)}

    def _numbers(self, pictures: Mapping[str, Rows]) -> tuple[dict[str, float], dict[str, list[float | None]]]:
        """The numbers over all pictures, and those of every class."""
        found = self._measured(pictures)
        prefixes = {"": "bbox_", "segm_": "segm_"} if self.masks else {"": ""}
        present = found["classes"].reshape(-1).tolist()
        result: dict[str, float] = {}
        per_class: dict[str, list[float | None]] = {}
        for ours, theirs in prefixes.items():
            named = {f"{ours}{name}": float(found[f"{theirs}{name}"]) for name in _NUMBERS}
            result |= {name: 100 * value for name, value in named.items() if value >= 0}
            by_class = dict(zip(present, found[f"{theirs}map_per_class"].reshape(-1).tolist(), strict=True))
            values = (by_class.get(label, -1) for label in range(len(self.classes)))
            per_class[f"{ours}map"] = [100 * value if value >= 0 else None for value in values]
        return result, per_class

    def details(self) -> dict[str, list[dict[str, Any]]]:
        """Of the last `compute`: `classes`, a row for each (class, map, segm_map), and `images`, a row for each.

        map and segm_map are null where the split has none of the class. sample_id, score: F1 in [0, 1].
        """
        classes = [
            {"class": name, **{number: values[label] for number, values in self._per_class.items()}}
            for label, name in enumerate(self.classes)
        ]
        images = [{"sample_id": key, "score": score} for key, score in sorted(self._scores.items())]
        return {"classes": classes, "images": images}

    def intervals(self) -> dict[str, Interval]:
        """Of `f1`, in percent, over pictures; average precision is no mean over them."""
        low, high = mean_interval(list(self._scores.values()))
        return {"f1": (100 * low, 100 * high)}

    def state_dict(self) -> dict[str, Any]:
        """The detections so far, of this process."""
        return {"pictures": dict(self.pictures)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` left off."""
        self.pictures = dict(state["pictures"])

    def _plain(self, found: Mapping[str, Any]) -> Rows:
        """Detections of a picture as lists."""
        rows: Rows = {name: found[name].cpu().tolist() for name in ("boxes", "scores", "labels")}
        if self.masks:
            rows["masks"] = found["masks"]
        return rows

    def _measured(self, pictures: Mapping[str, Rows]) -> dict[str, Tensor]:
        """torchmetrics over all pictures, in the order of their ids, so that ties fall the same everywhere."""
        from torchmetrics.detection import MeanAveragePrecision

        metric: Any = MeanAveragePrecision(  # whose states hold masks as runs, though they say Tensor
            iou_type=("bbox", "segm") if self.masks else "bbox",
            # COCO's in double precision: torchmetrics' own are rounded to single, and miss a recall of exactly 0.3
            iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
            rec_thresholds=np.linspace(0.0, 1.0, 101).tolist(),
            class_metrics=True,
            backend="faster_coco_eval",
            sync_on_compute=False,  # this process has all pictures already
        )
        ordered = [pictures[key] for key in sorted(pictures)]
        for rows in ordered:
            metric.update([self._predicted(rows["found"])], [self._true(rows["truth"])])
        if self.masks:  # as the metric keeps them; given as pixels, each would be decoded here and encoded there
            metric.detection_mask = [_kept(rows["found"]["masks"]) for rows in ordered]
            metric.groundtruth_mask = [_kept(rows["truth"]["masks"]) for rows in ordered]
        return metric.compute()

    def _predicted(self, found: Rows) -> dict[str, Tensor]:
        result = {
            "boxes": torch.tensor(found["boxes"]).reshape(-1, 4),
            "scores": torch.tensor(found["scores"], dtype=torch.float32),
            "labels": torch.tensor(found["labels"], dtype=torch.int64),
        }
        return result | self._places(len(found["labels"]))

    def _true(self, truth: Rows) -> dict[str, Tensor]:
        result = {
            "boxes": torch.tensor(truth["boxes"], dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor(truth["labels"], dtype=torch.int64),
            "area": torch.tensor(truth["areas"], dtype=torch.float32),
            "iscrowd": torch.tensor(truth["crowd"], dtype=torch.int64),
        }
        return result | self._places(len(truth["labels"]))

    def _places(self, count: int) -> dict[str, Tensor]:
        """What stands for masks until they are put in."""
        return {"masks": torch.zeros(count, 1, 1, dtype=torch.bool)} if self.masks else {}


def _scores(pictures: Mapping[str, Rows]) -> dict[str, float]:
    """F1 by sample id."""
    return {key: picture_f1(rows["found"], rows["truth"]) for key, rows in pictures.items()}


def _true_runs(outlines: Sequence[str], size: tuple[int, int], name: str, unreadable: bool) -> list[Runs]:
    """The masks to be found. A grey picture of any size stands for an unreadable one: nothing can be found there."""
    if unreadable:
        return to_runs(torch.zeros(len(outlines), *size, dtype=torch.bool))
    return to_runs(outline_masks(outlines, *size, name))


def _kept(masks: Sequence[Runs]) -> tuple[tuple[tuple[int, int], bytes], ...]:
    """The masks of a picture as the states of torchmetrics' MeanAveragePrecision hold them."""
    return tuple(((runs["size"][0], runs["size"][1]), runs["counts"].encode()) for runs in masks)
