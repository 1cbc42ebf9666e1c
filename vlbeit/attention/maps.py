"""Attention of one layer for reference points: which patches the patch at a point looks at, head by head.

Legend: B batch, H heads, L all tokens, N patches, P points, rows and columns those of the patch grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vlbeit.errors import UsageError
from vlbeit.models.image_tower import ImageTower

_MOST_POINTS = 16
_INNER = 0.8  # chosen points stay in the middle of the picture
_PLASTIC = 1.324717957244746  # R2, the two-dimensional golden sequence (M. Roberts 2018), is made of its powers


class Point(NamedTuple):
    """A place in a picture, as shares of its width and height from the top left, each in [0, 1]."""

    x: float
    y: float

    def cell(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Row and column of the patch that it lies in."""
        rows, columns = grid
        return min(int(self.y * rows), rows - 1), min(int(self.x * columns), columns - 1)


def read_points(text: str) -> list[Point]:
    """`3`: so many points, chosen by `spread_points`; `0.3,0.5;0.7,0.2`: these, as shares x,y.

    Raises UsageError naming the part that is no point.
    """
    if text.strip().isdecimal():
        count = int(text)
        if not 1 <= count <= _MOST_POINTS:
            raise UsageError(f"--points {text}: between 1 and {_MOST_POINTS} points are drawn")
        return spread_points(count)
    points = [_read_point(part, text) for part in text.split(";") if part.strip()]
    if not 1 <= len(points) <= _MOST_POINTS:
        raise UsageError(f"--points {text}: between 1 and {_MOST_POINTS} points are drawn, not {len(points)}")
    return points


def spread_points(count: int) -> list[Point]:
    """The middle of the picture, then points far from each other: the R2 sequence within the middle 80 %.

    The first points of a longer list are those of a shorter one.
    """
    steps = 1 / _PLASTIC, 1 / _PLASTIC**2
    places = [[(0.5 + number * step) % 1 for step in steps] for number in range(count)]
    return [Point(*(round((1 - _INNER) / 2 + _INNER * share, 3) for share in place)) for place in places]


def _read_point(part: str, text: str) -> Point:
    try:
        x, y = (float(number) for number in part.split(","))
    except ValueError as error:
        raise UsageError(
            f"--points {text}: {part!r} is not x,y; write a number, or points such as '0.3,0.5;0.7,0.2'"
        ) from (error)
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise UsageError(
            f"--points {text}: {part!r} lies outside the picture: x and y are shares of its width and height, 0 to 1"
        )
    return Point(x, y)


def open_tower(path: str, image_size: tuple[int, int] | None = None) -> ImageTower:
    """The image pass of a run, or of a checkpoint of others by file or name, for pictures of this (height, width).

    Positions follow another size, as between runs: the patch grid becomes finer. Raises UsageError for what has no
    image tower, and for a size that the tower cannot take; DataError for what cannot be read.
    """
    try:
        tower = ImageTower.from_run(path)
    except ValueError as error:
        raise UsageError(f"{error}; name a run of stage=mim or vl, or of a task on pictures") from error
    if image_size is not None and image_size != tower.encoder.spec.image_size:
        tower.set_input_size(image_size)
    return tower.eval()


def read_layer(layer: int, tower: ImageTower, path: str) -> int:
    """The block's number from 0; a negative one counts from the last. Raises UsageError where there is none."""
    depth = tower.encoder.spec.depth
    if not -depth <= layer < depth:
        raise UsageError(f"--layer {layer}: {path} has the blocks 0 to {depth - 1}, or -1 for the last")
    return layer % depth


def read_heads(text: str, tower: ImageTower, path: str) -> list[int]:
    """`all`, or numbers from 0 with commas between. Raises UsageError where there is no such head."""
    count = tower.encoder.spec.num_heads
    if text == "all":
        return list(range(count))
    try:
        heads = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--heads {text}: write all, or numbers such as 0,3") from error
    if wrong := [head for head in heads if not 0 <= head < count]:
        raise UsageError(f"--heads {text}: {path} has the heads 0 to {count - 1}, not {wrong[0]}")
    return heads


def grid_of(tower: ImageTower) -> tuple[int, int]:
    """Rows and columns of its patches."""
    grid = tower.encoder.spec.grid
    assert grid is not None, "an image tower has pictures"
    return grid


@torch.no_grad()
def patch_attention(tower: ImageTower, image_BCHW: Tensor, layer: int) -> Tensor:
    """What every patch gives to every patch, [B, H, N, N], rows sum to 1: the share that goes to CLS is left out."""
    encoder = tower.encoder
    probability_BHLL = encoder.attention(encoder.embed_image(image_BCHW), layer)
    patches_BHNN = probability_BHLL[:, :, tower.num_prefix_tokens :, tower.num_prefix_tokens :]
    return patches_BHNN / patches_BHNN.sum(-1, keepdim=True)


def maps_at(attention_HNN: Tensor, points: Sequence[Point], grid: tuple[int, int]) -> Tensor:
    """The maps of the points, [P, H, rows, columns]; each sums to 1."""
    cells = [row * grid[1] + column for row, column in (point.cell(grid) for point in points)]
    return attention_HNN[:, cells].transpose(0, 1).unflatten(-1, grid)
