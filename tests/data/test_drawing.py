"""Pictures with results on them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from vlbeit.data.drawing import IGNORED, draw_boxes, draw_segments, palette


def test_the_colours_of_the_first_classes_differ_and_do_not_change_with_their_number():
    assert len(set(palette(150))) == 150
    assert palette(150)[:20] == palette(20)


def test_classes_tint_their_pixels_and_ignored_ones_stay():
    image = Image.new("RGB", (6, 4), (100, 100, 100))
    segments = torch.full((4, 6), IGNORED)
    segments[1, 2] = 3
    drawn = np.asarray(draw_segments(image, segments))
    changed = (drawn != 100).any(-1)
    assert changed[1, 2] and changed.sum() == 1
    expected = (np.array(palette(4)[3]) + 100) / 2
    assert np.abs(drawn[1, 2] - expected).max() <= 1


def test_a_map_of_another_size_is_refused():
    with pytest.raises(ValueError, match="4x6 does not fit a picture of 4x5"):
        draw_segments(Image.new("RGB", (5, 4)), torch.zeros(4, 6, dtype=torch.long))


def test_a_box_is_drawn_on_its_edge_alone():
    image = Image.new("RGB", (20, 20))
    drawn = np.asarray(draw_boxes(image, torch.tensor([[4.0, 5.0, 14.0, 15.0]]), [2]))
    assert (drawn[5, 4:14] != 0).any() and (drawn[5:15, 4] != 0).any()
    assert not drawn[8:12, 8:11].any() and not drawn[:4].any()


def test_no_box_leaves_the_picture_as_it_is():
    image = Image.new("RGB", (20, 20))
    assert draw_boxes(image, torch.zeros(0, 4), []) is image
