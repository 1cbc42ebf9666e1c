"""How well an attention map covers the object that its reference point lies on.

A map is turned into a set of patches, the fewest that hold 60 % of its mass (as in DINO, arXiv 2104.14294), and the set
is compared with the object pixel by pixel, at the size of the tower's input: a patch is the square of pixels that it
was made of. Nothing is smoothed, so the patch grid limits what can be reached: `ceiling` says how far. `discs` say what
being local alone reaches: sets that know the point and nothing of the picture.

Legend: H heads, N patches, rows and columns those of the patch grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vlbeit.attention.maps import Point
from vlbeit.data.drawing import IGNORED

MASS = 0.6  # of a map that the set of patches holds
RADII = (0.0, 1.0, 1.5, 2.0, 2.9, 4.0, 5.7, 8.0)  # of discs, in patches


class Thing(NamedTuple):
    """A connected region of one class and a point on it."""

    mask_HW: Tensor  # bool, of the tower's input size
    point: Point
    label: int


def things(segments_HW: Tensor, least: int = 1) -> Iterator[Thing]:
    """The 4-connected regions of one class with at least `least` pixels, 255 left out, ordered by class.

    Their point is the pixel of the region that lies nearest to its centre of mass, so it lies on it, whatever its form.
    """
    height, width = segments_HW.shape
    regions_HW = torch.from_numpy(_regions(segments_HW.numpy()))
    numbers, sizes = regions_HW.unique(return_counts=True)
    labels = segments_HW.flatten()[numbers]
    kept = (sizes >= least) & (labels != IGNORED)  # of noise nearly all are too small: before a mask is made of any
    order = labels[kept].argsort(stable=True)
    for number, label in zip(numbers[kept][order].tolist(), labels[kept][order].tolist(), strict=True):
        mask_HW = regions_HW == number
        y_n, x_n = mask_HW.nonzero(as_tuple=True)
        y, x = y_n.float(), x_n.float()
        nearest = ((y - y.mean()) ** 2 + (x - x.mean()) ** 2).argmin()
        point = Point((x[nearest].item() + 0.5) / width, (y[nearest].item() + 0.5) / height)
        yield Thing(mask_HW, point, int(label))


def _regions(labels_HW: np.ndarray) -> np.ndarray:
    """Of every pixel the number of its 4-connected region of one label: its first pixel, counted row by row.

    Rows are cut into runs of one label. Those that touch across two rows are joined: of two groups, the one with the
    larger number goes to the smaller, until all that touch have one.
    """
    starts_HW = np.ones(labels_HW.shape, bool)
    starts_HW[:, 1:] = labels_HW[:, 1:] != labels_HW[:, :-1]
    run_HW = starts_HW.cumsum().reshape(labels_HW.shape) - 1
    touching = labels_HW[1:] == labels_HW[:-1]
    upper, lower = run_HW[:-1][touching], run_HW[1:][touching]
    group = np.arange(starts_HW.sum())  # run -> a run of its group with a smaller number, or itself
    while (apart := group[upper] != group[lower]).any():
        upper, lower = upper[apart], lower[apart]
        one, other = group[upper], group[lower]
        np.minimum.at(group, np.maximum(one, other), np.minimum(one, other))
        while ((after := group[group]) != group).any():
            group = after
    return starts_HW.ravel().nonzero()[0][group][run_HW]


def kept_patches(map_HN: Tensor, mass: float = MASS) -> Tensor:
    """bool [H, N]: of each map the fewest patches that hold at least `mass` of it; among equal ones the first."""
    ordered = map_HN.sort(dim=-1, descending=True, stable=True)
    share_HN = ordered.values / ordered.values.sum(-1, keepdim=True)
    before_HN = share_HN.cumsum(-1) - share_HN
    return torch.zeros_like(map_HN, dtype=torch.bool).scatter(-1, ordered.indices, before_HN < mass)


def coverage(mask_HW: Tensor, grid: tuple[int, int]) -> Tensor:
    """Number of the object's pixels in every patch, float64 [N]."""
    height, width = mask_HW.shape
    cell = height // grid[0], width // grid[1]
    assert (cell[0] * grid[0], cell[1] * grid[1]) == (height, width), "patches tile the picture"
    return F.avg_pool2d(mask_HW[None].double(), cell, divisor_override=1).flatten()


def jaccard(kept_HN: Tensor, covered_N: Tensor, patch_pixels: int) -> Tensor:
    """Intersection over union in pixels of sets of whole patches and the object, [H]."""
    shared_H = (kept_HN * covered_N).sum(-1)
    return shared_H / (kept_HN.sum(-1) * patch_pixels + covered_N.sum() - shared_H)


def ceiling(covered_N: Tensor, patch_pixels: int) -> float:
    """The largest Jaccard index that any set of whole patches can have with the object."""
    shared = covered_N.sort(descending=True).values.cumsum(0)
    chosen = torch.arange(1, len(covered_N) + 1) * patch_pixels
    return (shared / (chosen + covered_N.sum() - shared)).max().item()


def discs(point: Point, grid: tuple[int, int]) -> Tensor:
    """bool [R, N]: for each of `RADII` the patches whose middle lies within it of the middle of the point's patch."""
    row, column = point.cell(grid)
    y, x = torch.arange(grid[0])[:, None] - row, torch.arange(grid[1])[None, :] - column
    distance_N = (y**2 + x**2).double().sqrt().flatten()
    return distance_N <= torch.tensor(RADII, dtype=torch.float64)[:, None]
