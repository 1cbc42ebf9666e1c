"""Mean IoU over a set, as ADE20K is scored: areas summed over all pictures, IoU by class, the mean over classes.

Legend: K classes; H, W of the original label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_confusion_matrix

from vlbeit.bootstrap import Interval, statistic_interval
from vlbeit.data.areas import Areas, ratios, set_numbers, stacked
from vlbeit.data.drawing import IGNORED
from vlbeit.dist import gather_objects
from vlbeit.errors import DataError
from vlbeit.types import Batch


class SegmentationEvaluator:
    """`miou`, `macc` and `aacc` over all scored pixels of a set; what is scored the label alone decides (255 is not).

    The areas of every class are summed over the set before anything is divided: IoU = right / (predicted + labelled
    - right). A class that is neither labelled nor predicted anywhere is left out of the mean. The mean of IoUs by
    picture or by batch is another, larger or smaller number. A picture that is seen twice counts once.
    """

    over = "pictures"

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = list(classes)
        self.areas: dict[str, Areas] = {}  # by sample id
        self._gathered: dict[str, Areas] = {}

    @torch.no_grad()
    def update(self, objective: nn.Module, batch: Batch) -> None:
        """Segment the pictures of one batch; `objective.predict` gives a list of [H, W], as `original_segments` is."""
        predictions = objective.predict(batch)
        for sample_id, found, label in zip(batch["sample_id"], predictions, batch["original_segments"], strict=True):
            self.update_one(found, label, sample_id)

    def update_one(self, prediction_HW: Tensor, segments_HW: Tensor, sample_id: str) -> None:
        """Take in one picture: classes 0..K-1 predicted for every pixel, and the label, which may be 255."""
        count = len(self.classes)
        # On the CPU: torchmetrics counts in another, memory-hungry way on some devices.
        prediction_HW, segments_HW = prediction_HW.cpu().long(), segments_HW.cpu().long()
        assert prediction_HW.shape == segments_HW.shape, (sample_id, prediction_HW.shape, segments_HW.shape)
        # torchmetrics would count such a pixel in another class's row without a word
        low, high = int(prediction_HW.min()), int(prediction_HW.max())
        assert low >= 0 and high < count, f"{sample_id}: classes {low} to {high} predicted, of {count}"
        scored = segments_HW[segments_HW != IGNORED]
        assert not len(scored) or scored.max() < count, f"{sample_id}: a label beyond {count} classes"
        confusion_KK = multiclass_confusion_matrix(
            prediction_HW, segments_HW, count, ignore_index=IGNORED, validate_args=False
        )
        areas_K3 = torch.stack([confusion_KK.diagonal(), confusion_KK.sum(dim=0), confusion_KK.sum(dim=1)], dim=1)
        occurring = areas_K3.any(dim=1).nonzero()
        self.areas[sample_id] = torch.cat([occurring, areas_K3[occurring[:, 0]]], dim=1).tolist()

    def compute(self) -> dict[str, float]:
        """Percent over all processes, and `images`, the number of pictures.

        `miou`: mean IoU over classes; `macc`: mean over the labelled classes of the share found; `aacc`: share of
        pixels that are right. Raises DataError where no pixel is scored.
        """
        self._gathered = {key: rows for part in gather_objects(self.areas) for key, rows in part.items()}
        if not self._gathered:
            raise ValueError("no picture was evaluated")
        areas_K3 = self._total()
        if not areas_K3[:, 2].sum():
            raise DataError(
                f"no pixel of {len(self._gathered)} masks is scored, all are 255 or, with task.reduce_zero_label=true, "
                "0: look at the masks and at task.reduce_zero_label"
            )
        return {name: float(value) for name, value in set_numbers(areas_K3).items()} | {"images": len(self._gathered)}

    def details(self) -> dict[str, list[dict[str, Any]]]:
        """Two tables of the last `compute`.

        `classes`: class, iou and acc in percent, pixels labelled; null where a class does not occur. `images`:
        sample_id, score: share of its pixels that are right, null where none is scored; miou: mean IoU in percent over
        the classes in this picture, whose mean is not the set's miou; areas: class, pixels right, predicted, labelled.
        """
        areas_K3 = self._total()
        iou_K, accuracy_K = ratios(areas_K3)
        classes = [
            {"class": name, "iou": _percent(iou), "acc": _percent(accuracy), "pixels": int(pixels)}
            for name, iou, accuracy, pixels in zip(self.classes, iou_K, accuracy_K, areas_K3[:, 2], strict=True)
        ]
        return {"classes": classes, "images": [_image_row(*item) for item in sorted(self._gathered.items())]}

    def intervals(self) -> dict[str, Interval]:
        """Of `miou`, `macc` and `aacc`: percent, over pictures, whose areas are drawn and summed anew each time."""
        classes = len(self.classes)
        scored = [rows for rows in self._gathered.values() if rows]
        areas_NF = stacked(scored, classes).reshape(-1, classes * 3)

        def number(name: str) -> Interval:
            return statistic_interval(areas_NF, lambda sums_RF: set_numbers(sums_RF.reshape(-1, classes, 3))[name])

        return {name: number(name) for name in ("miou", "macc", "aacc")}

    def state_dict(self) -> dict[str, Any]:
        """The areas so far, of this process."""
        return {"areas": dict(self.areas)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` left off."""
        self.areas = dict(state["areas"])

    def _total(self) -> np.ndarray:
        """int64 [K, 3]: pixels that are right, predicted and labelled, over the set."""
        areas_K3 = np.zeros((len(self.classes), 3), np.int64)
        for rows in self._gathered.values():
            for index, *areas in rows:
                areas_K3[index] += areas
        return areas_K3


def _image_row(sample_id: str, rows: Areas) -> dict[str, Any]:
    if not rows:
        return {"sample_id": sample_id, "score": None, "miou": None, "areas": []}
    areas_K3 = np.array(rows)[:, 1:]
    score = float(areas_K3[:, 0].sum() / areas_K3[:, 2].sum())
    miou = _percent(ratios(areas_K3)[0].mean())
    return {"sample_id": sample_id, "score": score, "miou": miou, "areas": rows}


def _percent(share: float) -> float | None:
    return None if np.isnan(share) else 100 * float(share)
