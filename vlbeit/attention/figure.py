"""Attention maps over a picture: a row per reference point, a column per head, then the mean of the heads.

Legend: H heads, P points.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from vlbeit.attention.maps import (
    Point,
    grid_of,
    maps_at,
    open_tower,
    patch_attention,
    read_heads,
    read_layer,
    read_points,
)
from vlbeit.data import drawing
from vlbeit.data.figure import PALE, Cell, Line, figure
from vlbeit.data.records import open_named
from vlbeit.data.transforms import EvalImage
from vlbeit.engine.device import choose_device
from vlbeit.inference import check_out

_SIDE = 192  # the longer side of a picture in the figure, in pixels
_HEAT = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))  # dark to bright, like inferno


class Inspected(NamedTuple):
    """What was drawn."""

    file: Path
    layer: int
    heads: list[int]
    grid: tuple[int, int]
    points: list[Point]
    maps_PHhw: Tensor  # each sums to 1 over the patches

    def to_json(self) -> dict[str, object]:
        """Plain values: the maps by point, head, row and column."""
        return {
            "file": str(self.file),
            "layer": self.layer,
            "heads": self.heads,
            "grid": list(self.grid),
            "points": [{**point._asdict(), "patch": list(point.cell(self.grid))} for point in self.points],
            "maps": self.maps_PHhw.tolist(),
        }


def inspect_picture(
    path: str,
    image: Path,
    out: Path,
    *,
    points: str = "3",
    layer: int = -1,
    heads: str = "all",
    image_size: tuple[int, int] | None = None,
) -> Inspected:
    """Draw where the tower of a run looks from the points of a picture, and say what was drawn.

    The whole picture is squeezed into the tower's size (nothing is cut off), so that a share of the picture is the same
    share of the grid. `points`, `layer` and `heads` are as on the command line. Raises UsageError and DataError for
    what is wrong with any of them, before the run is read where that is possible.
    """
    picture, places = open_named(image), read_points(points)
    drawing.check_picture_file(out)
    check_out(out, image)
    tower = open_tower(path, image_size)
    layer, chosen, grid = read_layer(layer, tower, path), read_heads(heads, tower, path), grid_of(tower)
    size = tower.encoder.spec.image_size
    assert size is not None
    device = choose_device("auto")
    pixels_BCHW = EvalImage(size, tower.mean, tower.std)(picture)[None].to(device)
    attention_HNN = patch_attention(tower.to(device), pixels_BCHW, layer)[0].cpu()
    maps_PHhw = maps_at(attention_HNN[chosen], places, grid)
    head = [
        Line(f"{path}: attention of block {layer} on {grid[0]}x{grid[1]} patches, from the patch at each point"),
        Line(
            "bright: looked at; every map is scaled by its own largest share, which is written under it; CLS left out",
            color=PALE,
        ),
    ]
    drawing.write_picture(out, draw_maps(picture, places, maps_PHhw, chosen, head))
    return Inspected(out, layer, chosen, grid, places, maps_PHhw)


def draw_maps(
    picture: Image.Image, points: Sequence[Point], maps_PHhw: Tensor, heads: Sequence[int], head: Sequence[Line] = ()
) -> Image.Image:
    """The figure; `heads` are the numbers of the H maps of each point."""
    scale = _SIDE / max(picture.size)
    small = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.BICUBIC)
    cells = []
    for point, maps_Hhw in zip(points, maps_PHhw, strict=True):
        cells.append(Cell(_marked(small, point), (Line(f"x={point.x:g}, y={point.y:g}"),)))
        named = [(f"head {number}", map_hw) for number, map_hw in zip(heads, maps_Hhw, strict=True)]
        for name, map_hw in [*named, ("mean", maps_Hhw.mean(0))]:
            title = Line(f"{name}: up to {100 * map_hw.max().item():.3g} %")
            cells.append(Cell(_marked(heat(small, map_hw), point), (title,)))
    return figure(cells, len(heads) + 2, head)


def heat(picture: Image.Image, map_hw: Tensor) -> Image.Image:
    """The picture in grey under the map's colours: dark where it is 0, bright at its largest value."""
    stops = torch.tensor(_HEAT, dtype=torch.float32)
    place_hw = map_hw.float() / map_hw.max().clamp_min(1e-12) * (len(stops) - 1)
    low_hw = place_hw.floor().clamp(0, len(stops) - 2).long()
    share_hw1 = (place_hw - low_hw)[..., None]
    colors_hw3 = stops[low_hw] * (1 - share_hw1) + stops[low_hw + 1] * share_hw1
    layer = Image.fromarray(colors_hw3.round().to(torch.uint8).numpy()).resize(picture.size, Image.Resampling.NEAREST)
    grey = np.asarray(picture.convert("L").convert("RGB"), np.float32) / 255
    # the picture's light modulates the colour, so that both can be seen
    return Image.fromarray((np.asarray(layer, np.float32) * (0.7 + 0.3 * grey)).round().astype(np.uint8))


def _marked(picture: Image.Image, point: Point) -> Image.Image:
    """The picture with a ring around the point."""
    picture = picture.copy()
    pen = ImageDraw.Draw(picture)
    x, y = point.x * (picture.width - 1), point.y * (picture.height - 1)
    for radius, color in ((6, (0, 0, 0)), (5, (255, 255, 255)), (4, (255, 255, 255)), (3, (0, 0, 0))):
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=color)
    return picture
