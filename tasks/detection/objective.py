"""The detection objective: the tower's last map, a feature pyramid, region proposals, classes, boxes, masks.

Legend: B batch, D width, h, w rows and columns of patches, n boxes, H W height and width of a picture in pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from vlbeit.data.outlines import to_runs
from vlbeit.models.detector import Detector
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.heads import Heads
from vlbeit.models.pyramid import to_map
from vlbeit.objectives.base import Objective
from vlbeit.types import Batch, StepOutput

_LOSSES = ("rpn_objectness", "rpn_box", "classifier", "box")


class DetectionObjective(Objective):
    """Faster R-CNN or Mask R-CNN on a plain tower (ViTDet, arXiv 2203.16527), whose blocks all see the whole picture.

    Args:
        encoder: with the image expert and no final norm, as in ViTDet.
        heads: `detector`.
    """

    def __init__(self, encoder: MoMEEncoder, heads: Heads) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = heads

    @property
    def detector(self) -> Detector:
        """The head."""
        head = self.heads["detector"]
        assert isinstance(head, Detector)
        return head

    @property
    def masks(self) -> bool:
        """Whether it has a mask branch."""
        return bool(self.detector.regions.has_mask())

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Pictures of the batch; for `mask` those with a box, since the others have no term there."""
        count = torch.tensor(len(batch["image"]))
        counts = dict.fromkeys(_LOSSES, count)
        if self.masks:
            counts["mask"] = torch.tensor(sum(len(boxes) > 0 for boxes in batch["boxes"]))
        return counts

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> StepOutput:
        """Losses `rpn_objectness`, `rpn_box`, `classifier`, `box` and, with masks, `mask`; each is logged.

        Of the batch: `image`, `inner_size`, `boxes`, `box_labels` and, with masks, `box_masks`. Training mode only.
        """
        image, names = batch["image"], {"boxes": "boxes", "labels": "box_labels"}
        if self.masks:
            names["masks"] = "box_masks"
        targets = [
            {name: batch[field][index].to(image.device) for name, field in names.items()} for index in range(len(image))
        ]
        canvas = (image.shape[-2], image.shape[-1])
        sums = self.detector.losses(self._map(batch), canvas, batch["inner_size"], targets)
        own = self.counts(batch)
        losses = {name: value / counts[name] for name, value in sums.items()}
        return StepOutput(losses, {name: (value.detach(), own[name].to(image.device)) for name, value in sums.items()})

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[dict[str, Any]]:
        """Of each picture `boxes` [n, 4] (corners, in the original's pixels), sorted `scores` [n], `labels` [n].

        With a mask branch also `masks`, n `Runs` (`vlbeit.data.outlines`) of the original's size. Of the batch:
        `image`, `inner_size`, `original_size`.
        """
        canvas = (batch["image"].shape[-2], batch["image"].shape[-1])
        found = self.detector.detect(self._map(batch), canvas, batch["inner_size"])
        sizes = zip(found, batch["inner_size"], batch["original_size"], strict=True)
        return [_to_original(each, inner, original) for each, inner, original in sizes]

    def _map(self, batch: Batch) -> Tensor:
        return to_map(self.encoder(self.encoder.embed_image(batch["image"])))

    def describe(self) -> dict[str, Any]:
        return {"encoder": self.encoder.spec.to_dict(), "heads": self.heads.specs}


def _to_original(found: dict[str, Tensor], inner: tuple[int, int], original: tuple[int, int]) -> dict[str, Any]:
    rows, columns = original[0] / inner[0], original[1] / inner[1]
    boxes_n4 = found["boxes"] * found["boxes"].new_tensor([columns, rows, columns, rows])
    result: dict[str, Any] = {**found, "boxes": boxes_n4}
    if "masks" in found:
        # one by one: in single precision a hundred masks of a photograph of 12 million pixels take 5 GB
        result["masks"] = [
            runs
            for mask, box in zip(found["masks"].split(1), boxes_n4.split(1), strict=True)
            for runs in to_runs(paste_masks_in_image(mask, box, original)[:, 0] > 0.5)
        ]
    return result
