"""Transforms of a picture together with its segments: what moves the one moves the other.

Draws come from torch's global generator, which the loader seeds. Sizes are (height, width).

Legend: H, W of the picture as it is; h, w of the crop; channels first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import Image as ImageTensor
from torchvision.tv_tensors import Mask

from vlbeit.data.drawing import IGNORED
from vlbeit.data.transforms import Size, normalize

_TRIES = 10  # for a crop that no class fills
_BRIGHTNESS, _FACTOR, _HUE = 32 / 255, (0.5, 1.5), 18 / 180  # largest shift, range of factors, largest turn


class Jitter(NamedTuple):
    """What is drawn for a picture in training; the defaults are mmsegmentation's for ADE20K."""

    scale: tuple[int, int] = (2048, 512)  # long and short side that the picture is resized to fit, its aspect kept
    ratio: tuple[float, float] = (0.5, 2.0)  # range of a factor on `scale`
    cat_max_ratio: float = 0.75  # share of a crop's scored pixels at which one class is too much; 1: none is
    hflip: float = 0.5  # probability of a flip
    photometric: bool = True  # brightness, contrast, saturation and hue


class SegmentationTrain:
    """Rescale, crop, flip, photometric distortion, normalise, pad: the augmentation of mmsegmentation for ADE20K.

    A crop of `size` is drawn, again up to ten times while one class has too much of it. Where the picture is smaller
    than `size` it is padded at the right and below: 0 after normalisation, and 255 in the segments.
    """

    def __init__(self, size: Size, mean: Sequence[float], std: Sequence[float], jitter: Jitter) -> None:
        self.size, self.mean, self.std, self.jitter = size, mean, std, jitter

    def __call__(self, image: Image.Image, segments_HW: Tensor) -> dict[str, Tensor]:
        """`image`: float [3, h, w], normalised; `segments`: int64 [h, w], of `size` both."""
        picture, segments = rescaled(image, segments_HW, self.jitter.scale, _between(*self.jitter.ratio))
        top, left = self._corner(segments)
        picture, segments = (F.crop(part, top, left, *_within(part, self.size)) for part in (picture, segments))
        if torch.rand(()) < self.jitter.hflip:
            picture, segments = F.horizontal_flip(picture), F.horizontal_flip(segments)
        rgb = picture.as_subclass(Tensor).float() / 255
        rgb = normalize(distorted(rgb) if self.jitter.photometric else rgb, self.mean, self.std)
        missing = [0, 0, self.size[1] - rgb.shape[2], self.size[0] - rgb.shape[1]]  # left, top, right, bottom
        return {
            "image": F.pad(rgb, missing, fill=0),
            "segments": F.pad(segments, missing, fill=IGNORED).as_subclass(Tensor).long(),
        }

    def _corner(self, segments_HW: Tensor) -> tuple[int, int]:
        """Top and left of a crop that no class fills, or of any where ten others were filled."""
        if self.jitter.cat_max_ratio < 1:
            for _ in range(_TRIES):
                top, left = self._any_corner(segments_HW)
                if self._mixed(F.crop(segments_HW, top, left, *_within(segments_HW, self.size))):
                    return top, left
        return self._any_corner(segments_HW)

    def _any_corner(self, segments_HW: Tensor) -> tuple[int, int]:
        room = [whole - part for whole, part in zip(segments_HW.shape, _within(segments_HW, self.size), strict=True)]
        return int(torch.randint(room[0] + 1, ())), int(torch.randint(room[1] + 1, ()))

    def _mixed(self, crop_hw: Tensor) -> bool:
        """Two classes or more, and none of them with `cat_max_ratio` of the scored pixels."""
        counts = torch.bincount(crop_hw.flatten(), minlength=IGNORED + 1)[:IGNORED]
        return bool((counts > 0).sum() > 1 and counts.max() < self.jitter.cat_max_ratio * counts.sum())


def rescaled(
    image: Image.Image, segments_HW: Tensor, scale: tuple[int, int], ratio: float = 1.0
) -> tuple[ImageTensor, Mask]:
    """uint8 picture [3, H', W'] and segments [H', W'] that fit `scale` times `ratio`, see `fitted`."""
    size = list(fitted((image.height, image.width), (int(scale[0] * ratio), int(scale[1] * ratio))))
    # Without antialiasing, as OpenCV resizes: the published weights were trained on such pictures.
    picture = F.resize(ImageTensor(F.pil_to_tensor(image)), size, InterpolationMode.BILINEAR, antialias=False)
    return picture, F.resize(Mask(segments_HW), size)  # a mask is resized by the nearest pixel


def fitted(size: Size, scale: tuple[int, int]) -> Size:
    """The largest size with the aspect of `size` whose sides do not exceed (long, short) of `scale`."""
    factor = min(max(scale) / max(size), min(scale) / min(size))
    height, width = (max(1, int(side * factor + 0.5)) for side in size)
    return height, width


def distorted(rgb_CHW: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue changed, each with probability 0.5; values in [0, 1] stay there.

    The ranges and the order are mmsegmentation's (PhotoMetricDistortion): contrast comes before or after saturation
    and hue. Its contrast is a factor on all values, its saturation that of HSV.
    """
    if _half():
        rgb_CHW = (rgb_CHW + _between(-_BRIGHTNESS, _BRIGHTNESS)).clamp(0, 1)
    contrast_first = _half()
    if contrast_first:
        rgb_CHW = _contrast(rgb_CHW)
    if _half():
        rgb_CHW = _saturated(rgb_CHW, _between(*_FACTOR))
    if _half():
        rgb_CHW = F.adjust_hue(rgb_CHW, _between(-_HUE, _HUE))
    return rgb_CHW if contrast_first else _contrast(rgb_CHW)


def _contrast(rgb_CHW: Tensor) -> Tensor:
    # torchvision calls a factor on all values brightness; its contrast keeps the mean, which this one does not
    return F.adjust_brightness(rgb_CHW, _between(*_FACTOR)) if _half() else rgb_CHW


def _saturated(rgb_CHW: Tensor, factor: float) -> Tensor:
    """Saturation of HSV times `factor`, 1 at most: value and hue stay, so each channel's distance to the largest one
    is what is scaled. torchvision blends with grey, which moves the value."""
    value_1HW, low_1HW = rgb_CHW.amax(0, keepdim=True), rgb_CHW.amin(0, keepdim=True)
    most_1HW = value_1HW / (value_1HW - low_1HW).clamp(min=1e-6)  # where the saturation reaches 1
    return (value_1HW - (value_1HW - rgb_CHW) * most_1HW.clamp(max=factor)).clamp(min=0)  # but for rounding


def _within(part: Tensor, size: Size) -> list[int]:
    """Height and width of a crop of `size` where there is so much."""
    height, width = part.shape[-2:]
    return [min(height, size[0]), min(width, size[1])]


def _between(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def _half() -> bool:
    return bool(torch.rand(()) < 0.5)
