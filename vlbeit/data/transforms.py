"""Image transforms: PIL image in (RGB), float tensor [3, height, width] out; all sizes are (height, width).

All are plain picklable classes that draw from the global states of torch, numpy and `random`, which the loader seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import AugmentOp, RandAugment, posterize, rand_augment_ops
from torch import Tensor
from torchvision.transforms import ColorJitter, Compose, InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as F

Size = tuple[int, int]
Box = tuple[int, int, int, int]  # top, left, height, width

_BICUBIC = InterpolationMode.BICUBIC
_RATIO = (3 / 4, 4 / 3)  # aspect of a random crop
_VL_OPERATIONS = (  # of RandAugment in VLMo: nothing that changes what a colour is called
    "AutoContrast", "Equalize", "BrightnessIncreasing", "SharpnessIncreasing",
    "ShearX", "ShearY", "TranslateXRel", "TranslateYRel", "Rotate",
)  # fmt: skip


def normalize(pixels_CHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(pixels - mean) / std by channel, for pixels in [0, 1]."""
    mean_C, std_C = (torch.tensor(values, device=pixels_CHW.device) for values in (mean, std))
    return (pixels_CHW - mean_C[:, None, None]) / std_C[:, None, None]


def pixels(image: Image.Image) -> Tensor:
    """float [3, height, width] in [0, 1]."""
    return F.pil_to_tensor(image).float() / 255


class TwoViews:
    """One crop of an image in two sizes, for masked image modeling: colour jitter, flip, one box, resized twice.

    With `train=False` nothing is random: the largest centred box.
    """

    second_interpolation = InterpolationMode.LANCZOS  # of the tokenizer's view, as in BEiT

    def __init__(
        self,
        size: Size,
        second_size: Size,
        mean: Sequence[float],
        std: Sequence[float],
        train: bool = True,
        min_scale: float = 0.08,
        color_jitter: float = 0.4,
        hflip: float = 0.5,
    ) -> None:
        """`min_scale`: least share of the image's area that a crop keeps; `hflip`: probability of a flip."""
        self.size, self.second_size, self.mean, self.std = size, second_size, mean, std
        self.train, self.scale, self.hflip = train, (min_scale, 1.0), hflip
        self.jitter = ColorJitter(color_jitter, color_jitter, color_jitter)

    def __call__(self, image: Image.Image) -> dict[str, Tensor]:
        """`image`: normalised, of `size`; `pixels`: in [0, 1], of `second_size`."""
        if self.train:
            image = _flip(self.jitter(image), self.hflip)
            box = _random_box(image, self.size, self.scale)
        else:
            box = _centre_box(image, self.size)
        first = F.resized_crop(image, *box, size=list(self.size), interpolation=_BICUBIC)
        second = F.resized_crop(image, *box, size=list(self.second_size), interpolation=self.second_interpolation)
        return {"image": normalize(pixels(first), self.mean, self.std), "pixels": pixels(second)}


class TrainImage:
    """Random resized crop for images that go with a text: at least half of the area stays, and left stays left.

    `hflip` is the probability of a flip; VLMo has 0.5, although questions and captions speak of left and right.
    `randaugment` is VLMo's: 2 operations of magnitude 7, each done with probability 0.5. With `pad` the crop has about
    the picture's own aspect and keeps it: what lacks to `size` is filled with the mean colour, which is 0 then.
    """

    def __init__(
        self,
        size: Size,
        mean: Sequence[float],
        std: Sequence[float],
        min_scale: float = 0.5,
        hflip: float = 0.0,
        randaugment: bool = False,
        pad: bool = False,
    ) -> None:
        self.size, self.mean, self.std, self.pad = size, mean, std, pad
        self.scale, self.hflip = (min_scale, 1.0), hflip
        # VLMo draws from these nine and Identity: 9/10 of its probability is the same without Identity.
        fill = {"img_mean": tuple(round(255 * value) for value in mean)}
        operations = rand_augment_ops(7, prob=0.5 * 9 / 10, hparams=fill, transforms=list(_VL_OPERATIONS))
        self.augment = RandAugment(operations, num_layers=2) if randaugment else None

    def __call__(self, image: Image.Image) -> Tensor:
        return self.view(image)[0]

    def view(self, image: Image.Image, size: Size | None = None, may_flip: bool = True) -> tuple[Tensor, bool]:
        """[3, *size] (None: the size of all) and whether it is flipped, which `may_flip` can forbid."""
        size = size or self.size
        box = _random_box(image, (image.height, image.width) if self.pad else size, self.scale)
        inner = fitting(box[2:], size) if self.pad else size
        image = F.resized_crop(image, *box, size=list(inner), interpolation=_BICUBIC)
        flipped = bool(torch.rand(()) < self.hflip) and may_flip
        image = F.horizontal_flip(image) if flipped else image
        image_CHW = normalize(pixels(self.augment(image) if self.augment else image), self.mean, self.std)
        return _padded(image_CHW, size), flipped


class EvalImage:
    """The whole image, resized without regard to its aspect: nothing that a question asks about is cut off.

    With `pad` it keeps its aspect: what lacks to `size` is filled with the mean colour, which is 0 then.
    """

    def __init__(self, size: Size, mean: Sequence[float], std: Sequence[float], pad: bool = False) -> None:
        self.size, self.mean, self.std, self.pad = size, mean, std, pad

    def __call__(self, image: Image.Image, size: Size | None = None) -> Tensor:
        """[3, *size]; None: the size of all."""
        size = size or self.size
        inner = fitting((image.height, image.width), size) if self.pad else size
        return _padded(normalize(pixels(F.resize(image, list(inner), _BICUBIC)), self.mean, self.std), size)


class Erasing(NamedTuple):
    """timm's random erasing: the share of pictures that it strikes, what it leaves, how many patches it may make."""

    share: float = 0.25
    mode: str = "pixel"  # noise per pixel | rand: one colour per patch | const: zeros
    most: int = 1


class ClassificationTrain:
    """timm's training transform: random resized crop, flip, RandAugment (or colour jitter), random erasing.

    `randaugment` is a string of timm.data.auto_augment, "" for none: colour jitter is used only then, as in timm.
    """

    def __init__(
        self,
        size: Size,
        mean: Sequence[float],
        std: Sequence[float],
        randaugment: str = "rand-m9-mstd0.5-inc1",
        erasing: Erasing = Erasing(),  # noqa: B008  (immutable)
        color_jitter: float = 0.4,
        min_scale: float = 0.08,
    ) -> None:
        self._transform = create_transform(
            input_size=(3, *size),
            is_training=True,
            scale=(min_scale, 1.0),
            color_jitter=color_jitter,
            auto_augment=randaugment or None,
            interpolation="bicubic",
            mean=tuple(mean),
            std=tuple(std),
            re_prob=erasing.share,
            re_mode=erasing.mode,
            re_count=erasing.most,
        )
        for operation in _operations(self._transform):
            if operation.name.startswith("Posterize"):
                operation.aug_fn = _posterize

    def __call__(self, image: Image.Image) -> Tensor:
        return self._transform(image)


class ClassificationEval:
    """Shorter side resized to size / crop_pct, then the centre.

    `crop_pct` None: 0.875 below 384 pixels and 1.0 from there, as in BEiT.
    """

    def __init__(self, size: Size, mean: Sequence[float], std: Sequence[float], crop_pct: float | None = None) -> None:
        self.size, self.mean, self.std = size, mean, std
        crop_pct = crop_pct or (0.875 if max(size) < 384 else 1.0)
        self.cover = (math.floor(size[0] / crop_pct), math.floor(size[1] / crop_pct))

    def __call__(self, image: Image.Image) -> Tensor:
        image = _middle(image)
        (rows, columns), (width, height) = self.cover, image.size
        if rows * width <= columns * height:  # the width is what limits
            resized = [columns * height // width, columns]
        else:
            resized = [rows, rows * width // height]
        image = F.center_crop(F.resize(image, resized, _BICUBIC), list(self.size))
        return normalize(pixels(image), self.mean, self.std)


def fitting(picture: Size, size: Size) -> Size:
    """The largest size of the picture's aspect within `size`; a side is a pixel at least."""
    scale = min(size[0] / picture[0], size[1] / picture[1])
    height, width = (min(most, max(1, round(side * scale))) for side, most in zip(picture, size, strict=True))
    return height, width


def _padded(image_CHW: Tensor, size: Size) -> Tensor:
    """In the middle of zeros."""
    rows, columns = size[0] - image_CHW.shape[1], size[1] - image_CHW.shape[2]
    return torch.nn.functional.pad(image_CHW, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])


def _operations(transform: Compose) -> Iterator[AugmentOp]:
    """The operations of timm's augmentation policies in a transform."""
    for part in transform.transforms:
        yield from getattr(part, "ops", ())  # RandAugment, AugMix
        for step in getattr(part, "policy", ()):  # AutoAugment
            yield from step


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """differs from timm, which asks for 0 bits at full strength: Pillow 13 refuses that, it was a black picture."""
    return posterize(image, max(bits, 1))


def _middle(image: Image.Image, most: int = 32) -> Image.Image:
    """The middle of a picture that is more than `most` times as long as it is wide, which would resize to gigabytes."""
    width, height = image.size
    length = [min(height, most * width), min(width, most * height)]
    return image if length == [height, width] else F.center_crop(image, length)


def _flip(image: Image.Image, probability: float) -> Image.Image:
    return F.horizontal_flip(image) if torch.rand(()) < probability else image


def _random_box(image: Image.Image, size: Size, scale: tuple[float, float]) -> Box:
    """A box as RandomResizedCrop draws it, its aspect about that of `size`."""
    if scale[0] >= 1:  # no box but the whole can have all of the area
        return 0, 0, image.height, image.width
    aspect = size[1] / size[0]
    top, left, height, width = RandomResizedCrop.get_params(
        image, list(scale), [_RATIO[0] * aspect, _RATIO[1] * aspect]
    )
    return top, left, height, width


def _centre_box(image: Image.Image, size: Size) -> Box:
    """The largest centred box with the aspect of `size`."""
    width, height = image.size
    scale = min(height / size[0], width / size[1])
    rows, columns = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    return (height - rows) // 2, (width - columns) // 2, rows, columns
