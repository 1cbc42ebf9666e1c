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

from vlbeit.errors import DataError

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
