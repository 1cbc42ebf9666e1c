"""One picture in, the things in it out: what, how sure, where; and drawn onto the picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import nn

from vlbeit.data.drawing import draw_boxes, enlarged
from vlbeit.data.outlines import from_runs
from vlbeit.data.records import open_image
from vlbeit.task import check_no_text
from vlbeit.types import Sample


class Detection(NamedTuple):
    """One thing of a picture."""

    label: str
    score: float  # in [0, 1]
    box: tuple[float, float, float, float]  # left, top, right, bottom in pixels of the picture


class DetectionPredictor:
    """Boxes of a picture, the surest first.

    Args:
        objective: of the run.
        image: `vlbeit.data.box_transforms.BoxEval`.
        classes: names of the labels.
        least_score: of what `draw` shows, if anything reaches it.
    """

    def __init__(
        self, objective: nn.Module, image: Callable[[Any], Sample], classes: Sequence[str], least_score: float = 0.5
    ) -> None:
        self.objective = objective.eval()
        self.image = image
        self.classes = list(classes)
        self.least_score = least_score

    def __call__(self, image: Any, text: str | None = None, *, top: int = 5) -> list[Detection]:
        """Path, bytes or PIL image -> up to `top` detections, the surest first; none where nothing is found.

        Raises UsageError where a `text` is given, ImageError for a picture that cannot be read.
        """
        check_no_text(text, "detection")
        return self._rows(self._found(open_image(image)), top)

    def draw(self, image: Any, text: str | None = None, *, top: int = 5) -> tuple[list[Detection], Image.Image]:
        """The rows, and the picture with the boxes (and masks) of at least `least_score`, their names and scores.

        Where none reaches it those of the rows are drawn. Small pictures are enlarged. Raises as a call does.
        """
        check_no_text(text, "detection")
        picture = open_image(image)
        found = self._found(picture)
        drawn_n = (found["scores"] >= self.least_score).nonzero()[:, 0]
        if not len(drawn_n):
            drawn_n = found["scores"].argsort(descending=True, stable=True)[: max(top, 1)]
        labels, scores = found["labels"][drawn_n].tolist(), found["scores"][drawn_n].tolist()
        captions = [f"{self.classes[label]} {score:.2f}" for label, score in zip(labels, scores, strict=True)]
        large, times = enlarged(picture)
        masks_nHW = None
        if "masks" in found:
            runs = [found["masks"][index] for index in drawn_n.tolist()]
            masks_nHW = from_runs(runs, picture.height, picture.width)
            masks_nHW = masks_nHW.repeat_interleave(times, 1).repeat_interleave(times, 2)
        boxes_n4 = found["boxes"][drawn_n].cpu() * times
        return self._rows(found, top), draw_boxes(large, boxes_n4, labels, captions, masks_nHW)

    def _rows(self, found: dict[str, Any], top: int) -> list[Detection]:
        rows = zip(*(found[name].tolist() for name in ("labels", "scores", "boxes")), strict=True)
        detections = [
            Detection(self.classes[label], score, tuple(round(value, 1) for value in box)) for label, score, box in rows
        ]
        return sorted(detections, key=lambda each: -each.score)[: max(top, 1)]

    @torch.no_grad()
    def _found(self, picture: Image.Image) -> dict[str, Any]:
        device = next(self.objective.parameters()).device
        sample = self.image(picture)
        batch = {name: [value] for name, value in sample.items()} | {"image": sample["image"][None].to(device)}
        return self.objective.predict(batch)[0]
