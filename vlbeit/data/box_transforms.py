"""Pictures with boxes on their way into a fixed canvas: large-scale jitter for training, the whole for evaluation.

A tower's positions belong to one grid, so that every picture comes to `size`: resized with its aspect kept, what is
too large cropped, what is missing filled up at the right and the bottom with the mean colour (0 once normalised).

Legend: n boxes, H W height and width in pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from vlbeit.data.collate import collate
from vlbeit.data.records import ImageError
from vlbeit.data.transforms import Size, normalize, pixels
from vlbeit.types import Batch, Sample

_BICUBIC = InterpolationMode.BICUBIC
_LEAST = 1.0  # pixel of width and height, or else what a crop leaves of a box is lost
_OUTSIDE = 1.0  # pixel that a box may reach out of its picture: rounding
LISTS = ("boxes", "box_labels", "box_masks", "inner_size", "original_size", "truth")
"""Fields of a sample that differ in size from picture to picture: a batch keeps them as lists."""


def corners(boxes: Sequence[Sequence[float]]) -> Tensor:
    """[x, y, width, height] of a record -> float [n, 4]: left, top, right, bottom."""
    found_n4 = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return torch.cat([found_n4[:, :2], found_n4[:, :2] + found_n4[:, 2:]], dim=1)


def collate_boxes(samples: list[Sample]) -> Batch:
    """`vlbeit.data.collate.collate`, the fields of `LISTS` kept apart."""
    lists = {name: [sample[name] for sample in samples] for name in LISTS if name in samples[0]}
    rest = [{name: value for name, value in sample.items() if name not in lists} for sample in samples]
    return collate(rest) | lists


class BoxTrain:
    """Flip and large-scale jitter (Ghiasi et al., arXiv 2012.07177, as ViTDet).

    Args:
        size: of the canvas, height and width.
        mean, std: of the channels.
        scale: least and largest size of the picture over the one that just fits the canvas.
        hflip: probability of a flip.
    """

    def __init__(
        self,
        size: Size,
        mean: Sequence[float],
        std: Sequence[float],
        scale: tuple[float, float] = (0.1, 2.0),
        hflip: float = 0.5,
    ) -> None:
        self.size, self.mean, self.std, self.scale, self.hflip = size, mean, std, scale, hflip

    def __call__(
        self, image: Image.Image, boxes_n4: Tensor, labels_n: Tensor, masks_nHW: Tensor | None = None
    ) -> Sample:
        """RGB picture, corners in its pixels, labels, and with Mask R-CNN bool masks of its size.

        Returns `image` [3, *size], `boxes` [m, 4] in its pixels, `box_labels` [m], `box_masks` [m, *size] where masks
        are given, and `inner_size`, the height and width of the part that is picture. Boxes are cut at its edges; the
        m <= n that keep a pixel of width and height (and of mask) are what is left.

        Raises ImageError where a box lies outside the picture: its annotations are for a file of another size.
        """
        check_inside(image, boxes_n4)
        boxes: Any = tv_tensors.BoundingBoxes(boxes_n4, format="XYXY", canvas_size=(image.height, image.width))
        parts: list[Any] = [image, boxes] + ([] if masks_nHW is None else [tv_tensors.Mask(masks_nHW)])
        if torch.rand(()) < self.hflip:
            parts = [F.horizontal_flip(part) for part in parts]
        low, high = self.scale
        resized = fitted(image, self.size, low + (high - low) * torch.rand(()).item())
        parts = [F.resize(part, list(resized), _BICUBIC) for part in parts]
        inner = (min(self.size[0], resized[0]), min(self.size[1], resized[1]))
        top, left = (int(torch.randint(whole - kept + 1, ())) for whole, kept in zip(resized, inner, strict=True))
        image, boxes, *masks = (F.crop(part, top, left, *inner) for part in parts)
        kept_n4 = F.clamp_bounding_boxes(boxes).as_subclass(Tensor)
        keep_n = (kept_n4[:, 2:] - kept_n4[:, :2] >= _LEAST).all(1)
        if masks:
            keep_n &= masks[0].flatten(1).any(1)
        sample: Sample = {
            "image": padded(normalize(pixels(image), self.mean, self.std), self.size),
            "boxes": kept_n4[keep_n],
            "box_labels": labels_n[keep_n],
            "inner_size": inner,
        }
        if masks:
            sample["box_masks"] = padded(masks[0].as_subclass(Tensor)[keep_n], self.size)
        return sample


class BoxEval:
    """The whole picture, as large as the canvas allows, at its left and top."""

    def __init__(self, size: Size, mean: Sequence[float], std: Sequence[float]) -> None:
        self.size, self.mean, self.std = size, mean, std

    def __call__(self, image: Image.Image) -> Sample:
        """`image` [3, *size], `inner_size` and `original_size`: height and width of the picture in it, and as it was.

        A box of the canvas times original over inner size is one of the picture.
        """
        inner = fitted(image, self.size)
        resized = normalize(pixels(F.resize(image, list(inner), _BICUBIC)), self.mean, self.std)
        original = (image.height, image.width)
        return {"image": padded(resized, self.size), "inner_size": inner, "original_size": original}


def fitted(image: Image.Image, size: Size, scale: float = 1.0) -> Size:
    """Height and width of a picture, its aspect kept, at `scale` times the largest that fits into `size`."""
    ratio = scale * min(size[0] / image.height, size[1] / image.width)
    return max(1, round(image.height * ratio)), max(1, round(image.width * ratio))


def padded(values_CHW: Tensor, size: Size) -> Tensor:
    """[C, H, W] with zeros at the right and the bottom up to `size`."""
    height, width = values_CHW.shape[-2:]
    return torch.nn.functional.pad(values_CHW, (0, size[1] - width, 0, size[0] - height))


def check_inside(image: Image.Image, boxes_n4: Tensor) -> None:
    """Raise ImageError where a box reaches out of the picture by more than rounding."""
    limits = torch.tensor([image.width, image.height]) + _OUTSIDE
    outside_n = (boxes_n4[:, 2:] > limits).any(1)
    if outside_n.any():
        right, bottom = (round(value, 2) for value in boxes_n4[outside_n][0, 2:].tolist())
        raise ImageError(
            f"its picture has {image.width}x{image.height} pixels, a box reaches to {right}, {bottom}: "
            f"the annotations are for a file of another size"
        )
