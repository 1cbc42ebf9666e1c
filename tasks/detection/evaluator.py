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

from vlbeit.data.outlines import from_runs, outline_masks, to_runs
from vlbeit.dist import gather_objects
from vlbeit.errors import UsageError
from vlbeit.types import Batch

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

    def __init__(self, classes: Sequence[str], masks: bool = False) -> None:
        self.classes = list(classes)
        self.masks = masks
        self.pictures: dict[str, Rows] = {}  # sample id -> what was found there and what is there
        self._per_class: dict[str, list[float | None]] = {}

    @torch.no_grad()
    def update(self, objective: nn.Module, batch: Batch) -> None:
        """Detect in the pictures of one batch."""
        found = objective.predict(batch)
        sizes, truths = batch["original_size"], batch["truth"]
        for sample_id, detections, truth, size in zip(batch["sample_id"], found, truths, sizes, strict=True):
            if sample_id in batch.get("bad", ()) and self.masks:  # a grey picture of any size stands for it
                truth = {**truth, "outlines": None}
            self.pictures[sample_id] = {"size": list(size), "truth": truth, "found": self._plain(detections)}

    def compute(self) -> dict[str, float]:
        """`map` (IoU 0.50 to 0.95), `map_50`, `map_75`, `map_small`, `map_medium`, `map_large`, `mar_100`, `images`.

        Percent, over all processes. What no box is there for, such as large ones, is left out; with masks the same
        again as `segm_map` and so on. Raises ValueError where nothing was evaluated.
        """
        pictures = {key: rows for part in gather_objects(self.pictures) for key, rows in part.items()}
        if not pictures:
            raise ValueError("no picture was evaluated")
        found = self._measured(pictures)
        prefixes = {"": "bbox_", "segm_": "segm_"} if self.masks else {"": ""}
        present = found["classes"].reshape(-1).tolist()
        result: dict[str, float] = {}
        for ours, theirs in prefixes.items():
            named = {f"{ours}{name}": float(found[f"{theirs}{name}"]) for name in _NUMBERS}
            result |= {name: 100 * value for name, value in named.items() if value >= 0 or name == f"{ours}map"}
            by_class = dict(zip(present, found[f"{theirs}map_per_class"].reshape(-1).tolist(), strict=True))
            values = (by_class.get(label, -1) for label in range(len(self.classes)))
            self._per_class[f"{ours}map"] = [100 * value if value >= 0 else None for value in values]
        return result | {"images": len(pictures)}

    def details(self) -> list[dict[str, Any]]:
        """One row per class of the last `compute`: class, map and segm_map; null where the split has none of it."""
        return [
            {"class": name, **{number: values[label] for number, values in self._per_class.items()}}
            for label, name in enumerate(self.classes)
        ]

    def state_dict(self) -> dict[str, Any]:
        """The detections so far, of this process."""
        return {"pictures": dict(self.pictures)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` left off."""
        self.pictures = dict(state["pictures"])

    def _plain(self, found: Mapping[str, Tensor]) -> Rows:
        """Detections of a picture as lists, masks as runs."""
        rows: Rows = {name: found[name].cpu().tolist() for name in ("boxes", "scores", "labels")}
        if self.masks:
            rows["masks"] = [{**runs, "counts": _text(runs["counts"])} for runs in to_runs(found["masks"])]
        return rows

    def _measured(self, pictures: Mapping[str, Rows]) -> dict[str, Tensor]:
        """torchmetrics over all pictures, in the order of their ids, so that ties fall the same everywhere."""
        from torchmetrics.detection import MeanAveragePrecision

        metric = MeanAveragePrecision(
            iou_type=("bbox", "segm") if self.masks else "bbox",
            # COCO's in double precision: torchmetrics' own are rounded to single, and miss a recall of exactly 0.3
            iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
            rec_thresholds=np.linspace(0.0, 1.0, 101).tolist(),
            class_metrics=True,
            backend="faster_coco_eval",
            sync_on_compute=False,  # every process has all pictures already
        )
        for key in sorted(pictures):
            metric.update([self._predicted(pictures[key])], [self._true(key, pictures[key])])
        return metric.compute()

    def _predicted(self, rows: Rows) -> dict[str, Tensor]:
        found = rows["found"]
        result = {
            "boxes": torch.tensor(found["boxes"]).reshape(-1, 4),
            "scores": torch.tensor(found["scores"], dtype=torch.float32),
            "labels": torch.tensor(found["labels"], dtype=torch.int64),
        }
        if self.masks:
            runs = [{**each, "counts": each["counts"].encode()} for each in found["masks"]]
            result["masks"] = from_runs(runs, *rows["size"])
        return result

    def _true(self, name: str, rows: Rows) -> dict[str, Tensor]:
        truth, (height, width) = rows["truth"], rows["size"]
        result = {
            "boxes": torch.tensor(truth["boxes"], dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor(truth["labels"], dtype=torch.int64),
            "area": torch.tensor(truth["areas"], dtype=torch.float32),
            "iscrowd": torch.tensor(truth["crowd"], dtype=torch.int64),
        }
        if self.masks and truth["outlines"] is None:  # unreadable: nothing can be found there
            result["masks"] = torch.zeros(len(truth["labels"]), height, width, dtype=torch.bool)
        elif self.masks:
            result["masks"] = outline_masks(truth["outlines"], height, width, name)
        return result


def _text(counts: bytes | str) -> str:
    return counts.decode() if isinstance(counts, bytes) else counts
