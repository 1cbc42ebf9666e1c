"""COCO's segmentations as pixels: polygons, and runs compressed or not, by the COCO mask library.

Legend: n boxes, H W height and width in pixels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlbeit.data.records import ImageError, decoded, looked_at
from vlbeit.errors import DataError, some
from vlbeit.types import Records

Runs = dict[str, Any]
"""A mask as runs of equal pixels: `size` [height, width] and `counts`, the compressed text of COCO's result files."""


def outline_masks(outlines: Sequence[str], height: int, width: int, name: str) -> Tensor:
    """bool [n, H, W] of the `outlines` of a record, whose `name` is for messages.

    Raises `DataError` for one that is empty or no segmentation of COCO, or of another size.
    """
    masks: list[np.ndarray] = [np.zeros((0, height, width), bool)]
    for position, text in enumerate(outlines):
        if not text:
            raise DataError(f"{name}: box {position} has no segmentation; give it one, or set task.masks=false")
        masks.append(_mask(json.loads(text), height, width, f"{name}: box {position}")[None])
    return torch.from_numpy(np.concatenate(masks))


def check_outlines(records: Records, split: str, *, crowds: bool) -> None:
    """Before any work: every box of a split has a segmentation (crowds too only if asked), and some are looked at.

    Raises `DataError` with the pictures of those that have none, and as `outline_masks` does. Pictures that cannot be
    read are left to the loader, which counts them.
    """
    columns = [records.column(name) for name in ("id", "crowd", "outlines")]
    lacking = [
        name
        for name, crowd, outlines in zip(*columns, strict=True)
        for is_crowd, outline in zip(crowd, outlines, strict=True)
        if not outline and (crowds or not is_crowd)
    ]
    if lacking:
        raise DataError(
            f"the split {split!r}: boxes without a segmentation, by their pictures: {some(lacking)}; give them one, or "
            "set task.masks=false"
        )
    for record in map(records.__getitem__, looked_at(len(records))):
        try:
            width, height = decoded(record["image"], lambda image: image.size)
        except ImageError:
            continue
        outline_masks([outline for outline in record["outlines"] if outline], height, width, record["id"])


def to_runs(masks_nHW: Tensor) -> list[Runs]:
    """Every mask as runs: a hundredth of its size, or less."""
    from faster_coco_eval.core import mask as library

    found = [library.encode(np.asfortranarray(mask.cpu().numpy().astype(np.uint8))) for mask in masks_nHW]
    return [{"size": list(runs["size"]), "counts": runs["counts"].decode()} for runs in found]


def from_runs(runs: Sequence[Runs], height: int, width: int) -> Tensor:
    """bool [n, H, W] of what `to_runs` gave."""
    from faster_coco_eval.core import mask as library

    masks = [np.zeros((0, height, width), bool), *(library.decode(each).astype(bool)[None] for each in runs)]
    return torch.from_numpy(np.concatenate(masks))


def _mask(outline: Any, height: int, width: int, name: str) -> np.ndarray:
    from faster_coco_eval.core import mask as library

    try:
        if isinstance(outline, dict) and list(outline["size"]) != [height, width]:
            raise ValueError(f"its size is {outline['size']}, the picture's {[height, width]}")
        runs = outline
        if isinstance(outline, list):
            if not all(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in outline):
                raise ValueError("a polygon needs three corners, x and y of each")
            runs = library.merge(library.frPyObjects(outline, height, width))
        elif isinstance(outline["counts"], list):
            runs = library.frPyObjects(outline, height, width)
        return library.decode(runs).astype(bool)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{name} has a segmentation that is not as in COCO ({type(error).__name__}: {error}); correct the file"
        ) from error
