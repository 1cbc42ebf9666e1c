"""What is looked at in a picture before it goes into a prepared folder, and what is said about it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from PIL import ExifTags, Image

from vlbeit.data.records import ImageError, open_header, open_image

from .shards import Fault, Finding, Item

Check = Annotated[
    Literal["none", "header", "full"], "how each picture is looked at: header reads its size, full every pixel"
]
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")  # as data=imagefolder
IGNORED = 255  # label of a mask's pixels that are not scored
_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF"}
_INDEX_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")  # of masks: one number a pixel
_PLAIN = ("1", "L", "P", "RGB")  # what a reader expects; others are named


def is_picture(name: str) -> bool:
    """Whether the name ends as a picture's does and is not a hidden file."""
    last = name.rpartition("/")[2].lower()
    return last.endswith(SUFFIXES) and not last.startswith(".")


def examine_picture(item: Item, check: Check) -> Finding:
    """Size and faults of an item's image. `header` does not decode: a picture that is cut off passes.

    Left out is what cannot be read; CMYK, alpha, 16 bits, huge sizes, a format that the name does not say and pictures
    that their EXIF data turns are kept, and named.
    """
    if check == "none" or _hopeless(item):
        return Finding()
    value = item.record["image"]
    try:
        size, notes = _header(value, str(item.targets.get("image", item.record["id"])))  # ids may lack the suffix
        if check == "full":
            open_image(value)  # as a reader will
    except ImageError as error:
        return Finding(None, (Fault(f"cannot be read: {_reason(error)}", True),))
    return Finding(size, tuple(Fault(note, False) for note in notes))


def examine_pair(item: Item, check: Check, last: int) -> Finding:
    """As `examine_picture`; and the mask has the picture's size and, with `full`, labels within 0..last or 255.

    `classes` are the labels 1..last that occur, minus 1.
    """
    found = examine_picture(item, check)
    if check == "none" or _hopeless(item) or found.size is None:
        return found
    try:
        with _opened(item.record["mask"]) as mask:
            whole = check == "full" and mask.mode in _INDEX_MODES
            labels = np.asarray(mask).astype(np.int32) if whole else None  # decodes
    except Exception as error:  # as in `decoded`: a damaged file may raise about anything
        return found._replace(faults=(Fault(f"mask cannot be read: {_reason(error)}", True), *found.faults))
    faults = (*_mask_faults(mask, found.size, labels, last), *found.faults)
    there = [] if labels is None else [int(label) - 1 for label in np.unique(labels) if 0 < label <= last]
    return found._replace(faults=faults, classes=there)


def _mask_faults(mask: Image.Image, size: tuple[int, int], labels: np.ndarray | None, last: int) -> list[Fault]:
    if mask.mode not in _INDEX_MODES:
        return [Fault(f"mask has colours: mode {mask.mode}, not one number a pixel", True)]
    if mask.size != size:
        return [Fault(f"mask of another size: {mask.width}x{mask.height}, picture {size[0]}x{size[1]}", True)]
    if labels is None:
        return []
    if wild := sorted({int(label) for label in np.unique(labels) if label > last and label != IGNORED}):
        return [Fault(f"mask labels out of range: {', '.join(map(str, wild[:5]))} (0..{last} are known)", True)]
    return [] if (labels != 0).any() else [Fault("mask is empty: every pixel is 0", False)]


def _hopeless(item: Item) -> bool:
    return any(fault.left_out for fault in item.faults)


def _header(value: bytes | Path, name: str) -> tuple[tuple[int, int], list[str]]:
    """Width and height as stored, which masks and boxes count in, and what is worth saying of the picture."""
    with _opened(value) as image:
        notes = [] if image.mode in _PLAIN else ["CMYK" if image.mode == "CMYK" else f"mode {image.mode}"]
        wanted = _FORMATS.get(Path(name).suffix.lower())
        if image.format not in (wanted, "MPO") and wanted:  # MPO: JPEG with a second picture behind the first
            notes.append(f"other format: {image.format} by its content")
        if image.width * image.height > (Image.MAX_IMAGE_PIXELS or 0):
            notes.append(f"huge: {image.width}x{image.height} pixels")
        turn = _orientation(image)
        if turn != 1:
            notes.append(f"EXIF orientation: {turn}")
        return image.size, notes


def _orientation(image: Image.Image) -> int:
    try:
        turn = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # as in open_image: damaged EXIF data is no reason to refuse a picture
        return 1
    return turn if isinstance(turn, int) and 1 <= turn <= 8 else 1


def _opened(value: bytes | Path) -> Image.Image:
    """The picture with only its header read. Raises `ImageError`."""
    try:
        return open_header(value)
    except Image.UnidentifiedImageError as error:
        raise ImageError("not an image in a known format") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"huge: {error}") from error
    except Exception as error:  # as in `decoded`
        raise ImageError(str(error) or type(error).__name__) from error


def _reason(error: Exception) -> str:
    """The message without the name, which stands beside it."""
    return str(error).partition(" cannot be read: ")[2] or str(error)
