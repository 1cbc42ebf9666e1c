"""Object detection: boxes (and masks) by Faster or Mask R-CNN on a pyramid of the tower's last map, COCO mAP."""

from __future__ import annotations

from .task import Detection

RECIPE = Detection
