"""Downloaded pictures made small: the side that training needs, JPEG, as img2dataset does it."""

from __future__ import annotations

import io
from typing import Annotated, Literal, NamedTuple

from PIL import Image

from vlbeit.data.records import ImageError, decoded, upright

Resize = Annotated[
    Literal["keep_ratio", "keep_ratio_largest", "no"],
    "keep_ratio makes the shorter side --image-size, keep_ratio_largest the longer one, where it is larger",
]
QUALITY = 95  # of JPEG, as img2dataset
TOO_LARGE = "more than 89 megapixels"
_MOST = 89_478_485  # pixels, at which Pillow begins to warn: 256 MB when they are decoded
SMALLEST = 16  # pixels of a side: smaller ones are counters and placeholders


class Small(NamedTuple):
    """A picture as it is stored: JPEG, its size, and the size that it came in."""

    data: bytes
    size: tuple[int, int]
    original: tuple[int, int]


def resized(data: bytes, side: int, resize: str) -> Small:
    """The picture of `data`, upright, as JPEG; a JPEG that is small enough keeps its bytes.

    Never enlarged (differs from img2dataset's default), transparent parts white. Raises `ImageError`.
    """
    return decoded(data, lambda image: _resized(image, data, side, resize))


def _resized(image: Image.Image, data: bytes, side: int, resize: str) -> Small:
    original = image.size
    if min(original) < SMALLEST:
        raise ImageError(f"smaller than {SMALLEST} pixels")
    if original[0] * original[1] > _MOST:
        raise ImageError(TOO_LARGE)
    compared = max(original) if resize == "keep_ratio_largest" else min(original)
    shrinks = resize != "no" and compared > side
    plain = image.format == "JPEG" and image.mode == "RGB"
    if not shrinks and plain:
        image.load()  # a picture that is cut off fails here
        return Small(data, original, original)
    width, height = (max(1, round(length * side / compared)) for length in original) if shrinks else original
    size = (width, height)
    if plain:
        image.draft("RGB", size)  # decodes at half, a quarter or an eighth where that is enough
    whole = upright(_on_white(image).resize(size, Image.Resampling.LANCZOS))
    out = io.BytesIO()
    whole.save(out, "JPEG", quality=QUALITY)
    return Small(out.getvalue(), whole.size, original)


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    layers = image.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")
    flat.info = {name: value for name, value in image.info.items() if name == "exif"}  # how it is turned
    return flat
