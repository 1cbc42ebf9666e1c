"""Results drawn onto pictures: a colour per class, masks over the picture, boxes with their names; and their files.

Legend: H, W height and width of the picture; n boxes.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from math import ceil
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from vlbeit import files
from vlbeit.errors import UsageError

Color = tuple[int, int, int]

IGNORED = 255  # in a map of classes: a pixel that is not scored
_MOST = 320  # pixels of the longer side of a picture that was enlarged
_CAPTION = 13  # height of the letters of a caption in pixels
_TURN = 0.618034  # of the colour circle from one class to the next: neighbours in the list look different


def palette(count: int) -> list[Color]:
    """`count` colours (0..255), the same for the same class in every picture."""
    shades = [(index * _TURN % 1.0, 0.95 - 0.3 * (index // 8 % 2)) for index in range(count)]
    rgb = [colorsys.hsv_to_rgb(hue, 0.75, value) for hue, value in shades]
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in rgb]


def enlarged(image: Image.Image) -> tuple[Image.Image, int]:
    """A small picture so many times larger that words on it can be read, and how many times; a large one as it is."""
    times = max(1, _MOST // max(image.size))
    return image.resize((image.width * times, image.height * times), Image.Resampling.BICUBIC), times


def widened(image: Image.Image, width: int, height: int = 0) -> Image.Image:
    """The picture at the top left of a white one of at least this width and height."""
    canvas = Image.new("RGB", (max(image.width, width), max(image.height, height)), "white")
    canvas.paste(image)
    return canvas


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
    """The RGB picture with boxes (left, top, right, bottom), coloured by label, their captions and masks.

    A picture that is too small for a caption gets a white margin, so that all of it can be read.
    """
    if not len(boxes_n4):
        return image
    colors = [palette(label + 1)[label] for label in labels]
    canvas = pil_to_tensor(image)
    if masks_nHW is not None:
        canvas = draw_segmentation_masks(canvas, masks_nHW.bool(), alpha=0.5, colors=list(colors))
    drawn = to_pil_image(draw_bounding_boxes(canvas, boxes_n4, colors=list(colors)))
    return drawn if captions is None else _with_captions(drawn, boxes_n4, colors, captions)


def _with_captions(
    image: Image.Image, boxes_n4: Tensor, colors: Sequence[Color], captions: Sequence[str]
) -> Image.Image:
    """Captions at the top left of their boxes, moved to lie inside the picture; the first one lies on top."""
    font = ImageFont.load_default(_CAPTION)
    widths, height = [ceil(font.getlength(caption)) + 4 for caption in captions], _CAPTION + 4
    image = widened(image, max(widths), height)
    pen = ImageDraw.Draw(image)
    plates = list(zip(boxes_n4[:, :2].tolist(), widths, colors, captions, strict=True))
    for (left, top), width, color, caption in reversed(plates):
        x, y = int(min(max(left, 0), image.width - width)), int(min(max(top, 0), image.height - height))
        # a plate of the box's colour: black letters could not be read on everything
        pen.rectangle((x, y, x + width - 1, y + height - 1), fill=color)
        pen.text((x + 2, y), caption, fill="black", font=font)
    return image


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
