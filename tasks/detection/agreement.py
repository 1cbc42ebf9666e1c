"""How well the detections of one picture agree with what is there: F1, which unlike average precision each picture has.

Legend: n detections, m true boxes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torchvision.ops import box_area, box_iou

LEAST_SCORE = 0.5  # of a detection that counts
LEAST_IOU = 0.5  # of a detection and the box that it found


def picture_f1(found: Mapping[str, Any], truth: Mapping[str, Any]) -> float:
    """F1 in [0, 1] of the detections of a score of at least 0.5: twice the hits over detections and true boxes.

    The surest detection chooses first: of the boxes of its class that are still free the one that it overlaps most,
    by an IoU of at least 0.5. As in COCO crowds are not searched for, and a detection without a box that lies half or
    more within a crowd of its class does not count. Nothing there and nothing found is 1.

    Args:
        found: `boxes` (corners), `scores`, `labels`: lists of one length.
        truth: `boxes` (corners), `labels`, `crowd`: lists of one length.
    """
    sure = [index for index, score in enumerate(found["scores"]) if score >= LEAST_SCORE]
    sure.sort(key=lambda index: -found["scores"][index])
    boxes_n4 = torch.tensor([found["boxes"][index] for index in sure]).reshape(-1, 4).float()
    labels_n = torch.tensor([found["labels"][index] for index in sure])
    true_m4 = torch.tensor(truth["boxes"]).reshape(-1, 4).float()
    same_nm = labels_n[:, None] == torch.tensor(truth["labels"])[None]
    crowd_m = torch.tensor(truth["crowd"], dtype=torch.bool)
    iou_nm = torch.where(same_nm & ~crowd_m, box_iou(boxes_n4, true_m4), 0.0)
    inside_nm = torch.where(same_nm & crowd_m, _share_inside(boxes_n4, true_m4), 0.0)
    boxes = int((~crowd_m).sum())
    hits = counted = 0
    for iou_m, inside_m in zip(iou_nm, inside_nm, strict=True):
        best = int(iou_m.argmax()) if len(iou_m) else -1
        if best >= 0 and iou_m[best] >= LEAST_IOU:
            iou_nm[:, best] = 0  # taken
            hits, counted = hits + 1, counted + 1
        elif not (inside_m >= 0.5).any():
            counted += 1
    return 2 * hits / (counted + boxes) if counted + boxes else 1.0


def _share_inside(boxes_n4: torch.Tensor, true_m4: torch.Tensor) -> torch.Tensor:
    """float [n, m]: the share of a detection that lies within a true box."""
    low_nm2 = torch.maximum(boxes_n4[:, None, :2], true_m4[None, :, :2])
    high_nm2 = torch.minimum(boxes_n4[:, None, 2:], true_m4[None, :, 2:])
    common_nm = (high_nm2 - low_nm2).clamp(min=0).prod(dim=-1)
    return common_nm / box_area(boxes_n4)[:, None].clamp(min=1e-9)
