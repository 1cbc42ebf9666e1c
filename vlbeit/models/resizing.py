"""Positions, and the rows of classifiers, for other pictures, texts and answers than they were trained for.

Legend: H heads, W rows or columns of the patch grid, T0 longest text, D width.
"""

from __future__ import annotations

import warnings

import torch
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from torch import Tensor

from vlbeit.errors import DataError

Grid = tuple[int, int]
_TIMM_Q = (1.01, 1.5)


def resize_table(table: Tensor, old: Grid, new: Grid) -> Tensor:
    """A relative position table [rows, H] for another patch grid, by BEiT's geometric sequence.

    The old offsets 0, 1, 2, ... are placed at 0, 1, 1 + q, 1 + q + q^2, ..., the last of them on the last new offset,
    and the new ones are interpolated linearly in between: near offsets keep their bias. Every row beyond the offsets
    (three for CLS, more in other layouts) is kept as it is.

    timm's function does it where both axes grow by what its q (1.01 to 1.5) can express. Elsewhere it would cut the far
    offsets off, shift an axis of the same size or extrapolate: there our own takes any q, below 1 for fewer patches.
    """
    if old == new:
        return table
    if all(_suits_timm(before - 1, after - 1) for before, after in zip(old, new, strict=True)):
        extra = len(table) - (2 * old[0] - 1) * (2 * old[1] - 1)
        shape = ((2 * new[0] - 1) * (2 * new[1] - 1) + extra, table.shape[1])
        with warnings.catch_warnings():
            # about how timm's interpolation indexes and searches: not for our users to mend
            for message in (r"Using a non-tuple sequence", r"torch\.searchsorted\(\): input value"):
                warnings.filterwarnings("ignore", message, UserWarning)
            return resize_rel_pos_bias_table(table, new, shape, old_window_size=old)
    return _resize_any(table, old, new)


def _suits_timm(terms: int, total: int) -> bool:
    return (
        sum(_TIMM_Q[0] ** power for power in range(terms)) < total < sum(_TIMM_Q[1] ** power for power in range(terms))
    )


def _resize_any(table: Tensor, old: Grid, new: Grid) -> Tensor:
    sizes = [(2 * before - 1, 2 * after - 1) for before, after in zip(old, new, strict=True)]
    (rows, new_rows), (columns, new_columns) = sizes
    offsets, extra = table.split([rows * columns, len(table) - rows * columns])
    values_hyx = offsets.double().T.unflatten(1, (rows, columns))
    down, across = (_interpolation(*size).to(table.device) for size in sizes)
    moved = (down @ values_hyx @ across.T).reshape(-1, new_rows * new_columns).T
    return torch.cat([moved.to(table.dtype), extra])


def resize_embedding(positions: Tensor, old: Grid, new: Grid) -> Tensor:
    """Absolute positions [1, 1+N, D] of CLS and patches for another grid, bicubic."""
    return resample_abs_pos_embed(positions, list(new), list(old), num_prefix_tokens=1)


def cut_text_table(table: Tensor, length: int) -> Tensor:
    """A text table [2*T0, H] for texts of at most `length` tokens: far offsets go, the three [CLS] rows stay."""
    surplus = len(table) // 2 - length
    assert surplus >= 0, "check_fits refuses longer texts"
    offsets, cls = table[:-3], table[-3:]
    return torch.cat([offsets[surplus : len(offsets) - surplus], cls])


def reorder_rows(given: Tensor, initial: Tensor, theirs: list[str], ours: list[str], head: str) -> tuple[Tensor, int]:
    """A classifier's weight or bias with its rows in the order of `ours`; unknown ones keep their initial values.

    Returns it, and how many rows were found. Raises DataError where the file's list is not as long as its classifier.
    """
    if len(theirs) != len(given) or len(ours) != len(initial):
        listed, wide = (len(theirs), len(given)) if len(theirs) != len(given) else (len(ours), len(initial))
        raise DataError(f"head {head}: a list of {listed} labels for a classifier of width {wide}: give the right list")
    place = {label: row for row, label in enumerate(theirs)}
    rows = [(row, place[label]) for row, label in enumerate(ours) if label in place]
    out = initial.clone()
    if rows:
        to, of = map(list, zip(*rows, strict=True))
        out[to] = given[of].to(out.dtype)
    return out, len(rows)


def _interpolation(old: int, new: int) -> Tensor:
    """Weights [new, old] that carry values at the old offsets -n..n over to the new ones, linearly."""
    near = torch.arange(old // 2 + 1, dtype=torch.float64)
    if len(near) == 1:
        return torch.ones(new, 1, dtype=torch.float64)
    if old != new and new > 3:  # of at most two patches the near offsets are all there is
        near[1:] = torch.cumsum(_ratio(old // 2, new // 2) ** near[:-1], dim=0)
        near[1:] *= (new // 2) / near[-1]  # what the bisection leaves
    places = torch.cat([-near[1:].flip(0), near])
    wanted = torch.arange(-(new // 2), new // 2 + 1, dtype=torch.float64)
    right = torch.searchsorted(places, wanted).clamp(1, len(places) - 1)
    share = (wanted - places[right - 1]) / (places[right] - places[right - 1])
    out = torch.zeros(new, old, dtype=torch.float64)
    out[torch.arange(new), right - 1] = 1 - share
    out[torch.arange(new), right] = share
    return out


def _ratio(terms: int, total: int) -> float:
    """q with 1 + q + ... + q^(terms-1) = total."""
    low, high = 0.0, float(max(total, 2))
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (low, middle) if sum(middle**power for power in range(terms)) > total else (middle, high)
    return (low + high) / 2
