"""Pictures with results on them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from vlbeit.data.drawing import IGNORED, draw_boxes, draw_segments, enlarged, palette


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


@pytest.mark.parametrize(
    ("size", "times"), [((48, 48), 6), ((20, 60), 5), ((320, 10), 1), ((161, 20), 1), ((3000, 20), 1), ((1, 1), 320)]
)
def test_small_pictures_are_enlarged_by_their_longer_side(size, times):
    large, found = enlarged(Image.new("RGB", size))
    assert found == times and large.size == (size[0] * times, size[1] * times)


@pytest.mark.parametrize("size", [(300, 200), (300, 6), (6, 300)])
def test_captions_lie_inside_the_picture_wherever_their_box_is(size):
    right, bottom = size
    image = Image.new("RGB", size, (100, 100, 100))
    corner = torch.tensor([[right - 4.0, bottom - 4.0, right, bottom]])  # no letter has room in it
    drawn = draw_boxes(image, corner, [0], ["triangle 0.93"])
    assert drawn.width >= size[0] and drawn.height >= size[1]
    plate = np.argwhere((np.asarray(drawn) == palette(1)[0]).all(-1))
    (top, left), (low, far) = plate.min(0), plate.max(0)
    assert low - top >= 15 and far - left > 70  # a whole plate, and the letters on it
    assert (np.asarray(drawn)[top : low + 1, left : far + 1] < 60).all(-1).sum() > 50


def test_of_captions_at_one_place_the_first_is_read():
    boxes = torch.tensor([[10.0, 10.0, 90.0, 90.0]]).repeat(2, 1)
    drawn = np.asarray(draw_boxes(Image.new("RGB", (100, 100)), boxes, [0, 1], ["circle 0.93", "square 0.20"]))
    first, second = ((drawn == palette(2)[label]).all(-1).sum() for label in (0, 1))
    assert first > 400 and second < 400  # of the second the lines of its box
