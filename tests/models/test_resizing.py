"""Position tables for other grids: timm's numbers where they hold, and the rules where they do not."""

from __future__ import annotations

import warnings

import pytest
import torch
from timm.layers import resize_rel_pos_bias_table

from vlbeit.models.resizing import cut_text_table, resize_embedding, resize_table


def rows(grid: tuple[int, int], extra: int = 3) -> int:
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + extra


@pytest.mark.parametrize("extra", [3, 397])
@pytest.mark.parametrize(("old", "new"), [((14, 14), (24, 24)), ((14, 14), (30, 30)), ((14, 14), (20, 40))])
def test_growing_is_timm_and_silent(old: tuple[int, int], new: tuple[int, int], extra: int) -> None:
    table = torch.randn(rows(old, extra), 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = resize_table(table, old, new)
    expected = resize_rel_pos_bias_table(table, new, (rows(new, extra), 3), old_window_size=old)
    assert torch.equal(found, expected) and torch.equal(found[-extra:], table[-extra:])


def test_the_rule_beyond_timm_goes_over_into_timm() -> None:
    """Where both hold they are the same: 4 -> 5 by ours, from a grid whose other axis timm cannot do."""
    table = torch.randn(rows((4, 6)), 2)
    ours = resize_table(table, (4, 6), (5, 6))[:-3].view(9, 11, 2)
    column = table[:-3].view(7, 11, 2)[:, 3].repeat_interleave(11, 0).contiguous()
    square = resize_rel_pos_bias_table(column, (5, 8), (9 * 15, 2), old_window_size=(4, 6))
    torch.testing.assert_close(ours[:, 3], square.view(9, 15, 2)[:, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("new", [(7, 7), (14, 7), (7, 20), (2, 2), (1, 1), (24, 14)])
def test_shrinking_keeps_the_ends_the_middle_and_the_symmetry(new: tuple[int, int]) -> None:
    old = (14, 14)
    table = torch.randn(rows(old, 5), 2)
    found = resize_table(table, old, new)
    assert found.shape == (rows(new, 5), 2) and torch.equal(found[-5:], table[-5:])
    before, after = table[:-5].view(27, 27, 2), found[:-5].view(2 * new[0] - 1, 2 * new[1] - 1, 2)
    torch.testing.assert_close(after[new[0] - 1, new[1] - 1], before[13, 13])  # a patch with itself
    if min(new) > 2:
        torch.testing.assert_close(after[0, 0], before[0, 0])  # the farthest pair
        torch.testing.assert_close(after[-1, -1], before[-1, -1])
    if new[1] > 1:
        torch.testing.assert_close(after[new[0] - 1, new[1]], before[13, 14])  # a patch with its neighbour
    flipped = torch.cat([table[:-5].flip(0), table[-5:]])
    torch.testing.assert_close(resize_table(flipped, old, new)[:-5], found[:-5].flip(0))


def test_an_axis_of_the_same_size_is_left_alone() -> None:
    table = torch.randn(rows((4, 6)), 2)
    found = resize_table(table, (4, 6), (8, 6))[:-3].view(15, 11, 2)
    torch.testing.assert_close(found[7], table[:-3].view(7, 11, 2)[3])
    assert resize_table(table, (4, 6), (4, 6)) is table


def test_text_rows() -> None:
    table = torch.arange(24.0)[:, None]
    assert cut_text_table(table, 4).flatten().tolist() == [8.0, 9.0, 10.0, 11.0, 12.0, 21.0, 22.0, 23.0]
    assert torch.equal(cut_text_table(table, 12), table)


def test_absolute_positions_keep_cls() -> None:
    positions = torch.randn(1, 1 + 4 * 6, 8)
    found = resize_embedding(positions, (4, 6), (8, 6))
    assert found.shape == (1, 49, 8) and torch.equal(found[:, 0], positions[:, 0])
