"""VLMo's joint position table: the parts of all layers in one tensor, side by side along the heads.

[(2R-1)(2C-1)+3 image rows + 2 between image and text + 2*T0 text rows, H * depth] for R x C patches, T0 text distances.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vlbeit.errors import DataError, UsageError
from vlbeit.models.convert.layout import Hints, State
from vlbeit.nn.relpos import image_rows, text_rows

JOINT_TABLE = "relative_position_bias_table"
PUBLISHED_TEXT = 196  # T0 of every published VLMo model
_PARTS = ("image", "cross", "text")


def say(hint: str, option: str) -> str:
    """How to give a hint that is needed."""
    return f"say it: vlbeit.load(FILE, {hint}), or `vlbeit convert FILE DIR {option}`"


SAY_SIZE = f"The size of its pictures would tell; {say('image_size=(HEIGHT, WIDTH)', '--image-size HEIGHTxWIDTH')}"


def square_grid(rows: int) -> tuple[int, int] | None:
    """The square patch grid of an image table with so many rows; None where there is none."""
    side = math.isqrt(max(rows - 3, 0))
    return ((side + 1) // 2, (side + 1) // 2) if side * side == rows - 3 and side % 2 else None


def joint_grid(rows: int, patch_size: int, hints: Hints) -> tuple[int, int]:
    """The patch grid of a joint table.

    Said by `image_size`; else what is left beside the text rows (`text_positions`, or 196 assumed), if it is a square.
    Raises UsageError naming the hint that is missing or contradicts the table.
    """
    if hints.image_size is None:
        length = hints.text_positions or PUBLISHED_TEXT
        grid = square_grid(rows - 2 - text_rows(length))
        if grid is None:
            raise UsageError(
                f"{JOINT_TABLE} has {rows} rows: {length} text distances leave no square grid of patches. The size of "
                f"its pictures would tell, and so would the longest text; "
                f"{say('image_size=224', '--image-size 224')} (text_positions=40, --text-positions 40)"
            )
        return grid
    grid = hint_grid(hints.image_size, patch_size)
    left = rows - 2 - image_rows(grid)
    if left < text_rows(3) or left % 2 or (hints.text_positions or left // 2) != left // 2:
        raise UsageError(
            f"{JOINT_TABLE} has {rows} rows, which do not fit image_size={_size(hints.image_size)}: leave it out, or "
            f"say the size that the file was trained with"
        )
    return grid


def hint_grid(image_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Rows and columns of patches. Raises UsageError unless the patches fill the picture."""
    if any(side <= 0 or side % patch_size for side in image_size):
        raise UsageError(f"image_size={_size(image_size)} is not a multiple of the file's patches of {patch_size}")
    return (image_size[0] // patch_size, image_size[1] // patch_size)


def image_grid(rows: int, patch_size: int, hints: Hints, name: str) -> tuple[int, int]:
    """The patch grid of an image table with so many rows, 3 of them for CLS. UsageError where a hint is needed."""
    found = square_grid(rows)
    if hints.image_size is None:
        if found is None:
            raise UsageError(f"{name} has {rows} rows, the patches are no square. {SAY_SIZE}")
        return found
    grid = hint_grid(hints.image_size, patch_size)
    if image_rows(grid) != rows:
        raise UsageError(
            f"{name} has {rows} rows, which do not fit image_size={_size(hints.image_size)}: leave it out, or say the "
            f"size that the file was trained with"
        )
    return grid


def cut_joint_table(table: Tensor, depth: int, grid: tuple[int, int]) -> State:
    """A joint table as `encoder.rel_pos.i.{image,cross,text}`. DataError where it does not fit grid and depth."""
    n_image = image_rows(grid)
    n_text = table.shape[0] - n_image - 2
    if n_text < 2 or n_text % 2 or table.shape[1] % depth:
        raise DataError(f"{JOINT_TABLE} of shape {list(table.shape)} does not fit a grid of {grid} and {depth} blocks")
    out: State = {}
    for layer, columns in enumerate(table.chunk(depth, dim=1)):
        for part, rows in zip(_PARTS, columns.split([n_image, 2, n_text]), strict=True):
            out[f"encoder.rel_pos.{layer}.{part}"] = rows.clone()
    return out


def join_tables(state: State, depth: int) -> Tensor:
    """The inverse of `cut_joint_table`."""
    layers = [torch.cat([state[f"encoder.rel_pos.{i}.{part}"] for part in _PARTS]) for i in range(depth)]
    return torch.cat(layers, dim=1)


def _size(image_size: tuple[int, int]) -> str:
    return str(image_size[0]) if image_size[0] == image_size[1] else f"({image_size[0]}, {image_size[1]})"
