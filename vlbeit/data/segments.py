"""Masks: a class per pixel, read from an index image, with the convention of ADE20K for label 0.

In what comes out, classes are 0..K-1 and 255 is not scored. What a file holds is one of two things:

- `reduce_zero_label` off: the classes 0..K-1 themselves, and 255.
- `reduce_zero_label` on (ADE20K): 0 is "other", which is not scored, 1..K are the classes, and 255 stays 255. It is
  done here, once, where the file is read; doing it again would move every class.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlbeit.data.drawing import IGNORED
from vlbeit.data.records import ImageError, decoded, described, looked_at, open_stored
from vlbeit.errors import DataError
from vlbeit.types import Record, Records

log = logging.getLogger(__name__)

_INDEX_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")  # one number a pixel
_SHOWN = 5  # wild labels that a message names


def read_segments(value: str | bytes | Path, *, num_classes: int, reduce_zero_label: bool) -> Tensor:
    """uint8 [H, W], the classes 0..num_classes-1 and 255, of an index image: grey of 8 or 16 bits, or a palette.

    Of a palette image the indices are the labels, whatever colours they show.
    Raises `ImageError` for a file that cannot be read; `DataError`, naming the file, for a colour image, for labels
    beyond the classes, and for more classes than fit below 255.
    """
    if not 0 < num_classes <= IGNORED - reduce_zero_label:
        most = IGNORED - reduce_zero_label
        raise DataError(f"masks of {num_classes} classes: 1..{most} can be told from 255, which is not scored")
    labels_HW = read_labels(value)
    first, last = (1, num_classes) if reduce_zero_label else (0, num_classes - 1)
    ignored_HW = (labels_HW == IGNORED) | (labels_HW == 0 if reduce_zero_label else False)
    wild_HW = ((labels_HW < first) | (labels_HW > last)) & ~ignored_HW
    if wild_HW.any():
        raise DataError(_wild(described(value), np.unique(labels_HW[wild_HW]), num_classes, reduce_zero_label))
    return torch.from_numpy(np.where(ignored_HW, IGNORED, labels_HW - first).astype(np.uint8))


def read_labels(value: str | bytes | Path) -> np.ndarray:
    """int32 [H, W], the numbers of an index image as they are stored. Raises as `read_segments` does."""

    def labels(image: Image.Image) -> np.ndarray:
        if image.mode not in _INDEX_MODES:
            raise DataError(
                f"{described(value)} has mode {image.mode}, it is no map of classes: write one number a pixel, as a "
                "PNG of mode L or P (the colours of a legend must be turned into class numbers first)"
            )
        return np.asarray(image).astype(np.int32)

    return decoded(value, labels)


def open_pair(record: Record, num_classes: int, reduce_zero_label: bool) -> tuple[Image.Image, Tensor]:
    """The picture of a `masks` record as RGB, as it is stored, and its segments: see `read_segments`.

    Raises as `read_segments` does, and `DataError` naming both files where they differ in size.
    """
    image = open_stored(record["image"])
    try:
        segments_HW = read_segments(record["mask"], num_classes=num_classes, reduce_zero_label=reduce_zero_label)
    except DataError as error:
        if isinstance(record["mask"], bytes):  # which the message could not name
            raise type(error)(f"{record['id']}: {error}") from error
        raise
    height, width = segments_HW.shape
    if (width, height) != image.size:
        image_name, mask_name = (
            f"the {name} of {record['id']}" if isinstance(record[name], bytes) else record[name]
            for name in ("image", "mask")
        )
        raise DataError(
            f"{image_name} has {image.width}x{image.height} pixels, but {mask_name} {width}x{height}; "
            "take both from the same release (a picture beside a mask is not turned by its EXIF data: where the mask "
            "was drawn on it turned, write it anew upright), or remove the pair"
        )
    return image, segments_HW


def check_pairs(records: Records, split: str, num_classes: int, reduce_zero_label: bool) -> None:
    """Look at some pairs of a split before any work; those that cannot be read are left to the loader, which counts.

    Raises `DataError` as `open_pair` does, and where not one pixel of the split is scored; where some masks alone were
    looked at, that is a warning.
    """
    rows = looked_at(len(records))
    read, scored = 0, False
    for row in rows:
        try:
            _, segments_HW = open_pair(records[row], num_classes, reduce_zero_label)
        except ImageError:
            continue
        read += 1
        scored |= bool((segments_HW != IGNORED).any())
    if not read or scored:
        return
    found = _nothing_scored(read, len(records), split, reduce_zero_label)
    if len(rows) == len(records):
        raise DataError(found)
    log.warning("%s", found)


def _nothing_scored(read: int, count: int, split: str, reduce_zero_label: bool) -> str:
    zero = ", nor is 0 with task.reduce_zero_label=true (set it to false if it is one)" if reduce_zero_label else ""
    return (
        f"no pixel of {read} masks of the split {split!r} is scored, of {count} that it has: 255 is no class{zero}; "
        "correct the masks"
    )


def _wild(name: str, labels: np.ndarray, num_classes: int, reduce_zero_label: bool) -> str:
    shown = ", ".join(map(str, labels[:_SHOWN].tolist())) + (", ..." if len(labels) > _SHOWN else "")
    if reduce_zero_label:
        allowed = f"0 (not scored), 1..{num_classes} and 255 (not scored) with"
    else:
        allowed = f"0..{num_classes - 1} and 255 (not scored) without"
    return (
        f"{name}: label{'s' * (len(labels) > 1)} {shown} out of range: a mask of {num_classes} classes holds {allowed} "
        "reduce_zero_label; correct the mask, the list of classes or task.reduce_zero_label"
    )
