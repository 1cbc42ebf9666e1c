"""Results drawn onto pictures: a colour per class, masks over the picture, boxes with their names; and their files.

Legend: n boxes.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from vlbeit import files
from vlbeit.errors import UsageError

Color = tuple[int, int, int]

IGNORED = 255  # in a map of classes: a pixel that is not scored
_TURN = 0.618034  # of the colour circle from one class to the next: neighbours in the list look different


def palette(count: int) -> list[Color]:
    """`count` colours (0..255), the same for the same class in every picture."""
    shades = [(index * _TURN % 1.0, 0.95 - 0.3 * (index // 8 % 2)) for index in range(count)]
    rgb = [colorsys.hsv_to_rgb(hue, 0.75, value) for hue, value in shades]
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in rgb]


def draw_segments(image: Image.Image, segments_HW: Tensor, *, alpha: float = 0.5) -> Image.Image:
    """The RGB picture under a colour per class; `IGNORED` pixels stay as they are.

    Raises ValueError where the map of classes has not the picture's height and width.
    """
    if tuple(segments_HW.shape) != (image.height, image.width):
        height, width = segments_HW.shape
        raise ValueError(f"a map of {height}x{width} does not fit a picture of {image.height}x{image.width}")
    found = [int(value) for value in segments_HW.unique() if value != IGNORED]
    if not found:
        return image
    colors = palette(max(found) + 1)
    masks = torch.stack([segments_HW == value for value in found])
    return to_pil_image(
        draw_segmentation_masks(pil_to_tensor(image), masks, alpha=alpha, colors=[colors[value] for value in found])
    )


def draw_boxes(
    image: Image.Image,
    boxes_n4: Tensor,
    labels: Sequence[int],
    captions: Sequence[str] | None = None,
    masks_nHW: Tensor | None = None,
) -> Image.Image:
    """The RGB picture with boxes (left, top, right, bottom), coloured by label, their captions and masks."""
    if not len(boxes_n4):
        return image
    colors = [palette(label + 1)[label] for label in labels]
    canvas = pil_to_tensor(image)
    if masks_nHW is not None:
        canvas = draw_segmentation_masks(canvas, masks_nHW.bool(), alpha=0.5, colors=list(colors))
    names = None if captions is None else list(captions)
    plates = (
        None if names is None else list(colors)
    )  # under the names, which could not be read on a thing of that colour
    return to_pil_image(
        draw_bounding_boxes(
            canvas,
            boxes_n4,
            labels=names,
            colors=list(colors),
            label_colors=None if names is None else ["black"] * len(names),
            label_background_colors=plates,
            fill_labels=plates is not None,
        )
    )


def check_picture_file(path: Path) -> None:
    """Raise UsageError unless the name ends as a format of pictures that can be written."""
    if _format(path) is None:
        raise UsageError(f"--out {path}: its name tells no format of pictures: end it in .png, .jpg or .webp")


def write_picture(path: Path, image: Image.Image) -> Path:
    """Replace the file atomically; its name tells the format, which `check_picture_file` has approved."""
    return files.write_by(path, lambda temporary: image.save(temporary, format=_format(path)))


def _format(path: Path) -> str | None:
    """Pillow's name of the format for a suffix, where Pillow writes RGB pictures in it."""
    name = Image.registered_extensions().get(path.suffix.lower())
    return name if name in ("PNG", "JPEG", "WEBP", "BMP", "TIFF") else None
