"""What a picture is made of: the share of every class, and the picture with its classes drawn over it.

Legend: H, W height and width of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vlbeit.data.drawing import draw_segments, enlarged, palette, widened
from vlbeit.data.records import open_image
from vlbeit.task import check_no_text

from .inference import Views
from .objective import SegmentationObjective

_LEGEND = 12  # classes that a legend names: those that cover most
_TEXT = 32  # pixels from the left edge to a name in the legend


class Covered(NamedTuple):
    """A class and the share of the picture's pixels that it covers."""

    label: str
    share: float


class SegmentationPredictor:
    """Classes of a picture with the share of it that they cover."""

    def __init__(self, objective: SegmentationObjective, views: Views, classes: Sequence[str]) -> None:
        self.objective = objective.eval()
        self.views = views
        self.classes = list(classes)

    def __call__(self, image: Any, text: str | None = None, *, top: int = 5) -> list[Covered]:
        """Path, bytes or PIL image -> at most `top` classes and their shares, the largest first; none of share 0.

        Raises UsageError where a `text` is given, ImageError for a picture that cannot be read.
        """
        check_no_text(text, "segmentation")
        return self._shares(self.segments(image))[: max(top, 1)]

    def draw(self, image: Any, text: str | None = None, *, top: int = 5) -> tuple[list[Covered], Image.Image]:
        """The rows, and the picture under the colours of its classes, with a legend below; small ones are enlarged.

        Raises as a call does.
        """
        check_no_text(text, "segmentation")
        picture = open_image(image)
        segments_HW = self.segments(picture)
        shares = self._shares(segments_HW)
        picture, times = enlarged(picture)
        large_HW = segments_HW.repeat_interleave(times, 0).repeat_interleave(times, 1)
        return shares[: max(top, 1)], _with_legend(draw_segments(picture, large_HW), shares, self.classes)

    @torch.no_grad()
    def segments(self, image: Any) -> Tensor:
        """Path, bytes or PIL image -> the class of every pixel, int64 [H, W], on the CPU."""
        picture = open_image(image)
        batch = {"views": [self.views(picture)], "original_size": [(picture.height, picture.width)]}
        return self.objective.predict(batch)[0].cpu()

    def _shares(self, segments_HW: Tensor) -> list[Covered]:
        pixels = segments_HW.flatten().bincount(minlength=len(self.classes))
        order = pixels.argsort(descending=True, stable=True).tolist()
        return [
            Covered(self.classes[index], pixels[index].item() / segments_HW.numel()) for index in order if pixels[index]
        ]


def _with_legend(picture: Image.Image, shares: Sequence[Covered], classes: Sequence[str]) -> Image.Image:
    """The picture above a list of its classes in their colours, `_LEGEND` of them at most, wide enough for it."""
    font = ImageFont.load_default(16)
    colors, line = dict(zip(classes, palette(len(classes)), strict=True)), 24
    lines = [(colors[label], f"{label} {100 * share:.1f} %") for label, share in shares[:_LEGEND]]
    width = max(ceil(font.getlength(text)) for _, text in lines)
    out = widened(picture, _TEXT + width + 6, picture.height + line * len(lines) + 8)
    pen = ImageDraw.Draw(out)
    for row, (color, text) in enumerate(lines):
        top = picture.height + 6 + row * line
        pen.rectangle((6, top, 24, top + 18), fill=color, outline="black")
        pen.text((_TEXT, top), text, fill="black", font=font)
    return out
