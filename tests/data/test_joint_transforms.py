"""A picture and its segments stay together; masks get no new labels; every draw hangs on the seed."""

import colorsys
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from vlbeit.data import joint_transforms
from vlbeit.data.joint_transforms import Jitter, SegmentationTrain, distorted, fitted, rescaled
from vlbeit.data.randomness import seeded

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PLAIN = {"scale": (400, 100), "cat_max_ratio": 1.0, "photometric": False}


def pair(height=100, width=150):
    """Blocks of 25 pixels: the class of a block is its grey value over 8."""
    rows, columns = np.arange(height) // 25, np.arange(width) // 25
    classes = (5 * rows[:, None] + columns[None]).astype(np.uint8)
    grey = np.repeat(classes[..., None] * 8, 3, axis=2)
    return Image.fromarray(grey), torch.from_numpy(classes)


def shown(image):
    """Classes [h, w] that a picture of `pair` shows, from its normalised values."""
    return (image[0] * 0.5 + 0.5) * 255 / 8


def apply(transform, key, image_and_segments=None):
    with seeded(key):
        return transform(*(image_and_segments or pair()))


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (200, 320)])
def test_picture_and_segments_stay_together(size):
    transform = SegmentationTrain(size, *HALF, Jitter(**PLAIN))
    flips = 0
    for key in range(20):
        sample = apply(transform, key)
        image, segments = sample["image"], sample["segments"]
        assert image.shape == (3, *size) and image.dtype == torch.float32
        assert segments.shape == size and segments.dtype == torch.int64
        assert type(image) is type(segments) is torch.Tensor  # no torchvision class goes further
        scored = segments != 255
        away = (shown(image)[scored] - segments[scored]).abs()
        assert (away > 0.3).float().mean() < 0.15  # at the borders of blocks the picture is blended
        assert away.median() < 0.1
        row = segments[0][scored[0]]
        flips += bool((row.diff() < 0).any())
    assert 4 < flips < 16


def test_a_picture_too_small_is_padded_right_and_below():
    transform = SegmentationTrain((120, 200), *HALF, Jitter(scale=(400, 50), ratio=(1, 1), photometric=False))
    sample = apply(transform, 0)
    assert (sample["segments"] == 255).nonzero().min(0).values.tolist() == [0, 0]
    assert (sample["segments"][:50, :75] != 255).all()
    assert (sample["segments"][50:] == 255).all() and (sample["segments"][:, 75:] == 255).all()
    assert (sample["image"][:, 50:] == 0).all() and (sample["image"][:, :, 75:] == 0).all()


def test_masks_get_no_new_labels():
    """Between 0 and 200 lie 200 other classes; 255 must not be blended either."""
    image, _ = pair()
    segments = torch.zeros(100, 150, dtype=torch.uint8)
    segments[:, 50:], segments[30:60, 20:90] = 200, 255
    transform = SegmentationTrain((64, 64), *HALF, Jitter(scale=(400, 100)))
    for key in range(10):
        assert set(apply(transform, key, (image, segments))["segments"].unique().tolist()) <= {0, 200, 255}


def test_the_seed_alone_decides():
    transform = SegmentationTrain((64, 64), *HALF, Jitter(scale=(400, 100)))
    copy = pickle.loads(pickle.dumps(transform))
    first, again, other = apply(transform, 1), apply(copy, 1), apply(transform, 2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["image"], other["image"])


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [
        ((512, 683), (2048, 512), (512, 683)),
        ((683, 512), (2048, 512), (683, 512)),
        ((300, 400), (2048, 512), (512, 683)),
        ((100, 1000), (2048, 512), (205, 2048)),  # the long side is what limits
        ((100, 1000), (512, 2048), (205, 2048)),  # in any order
        ((1, 9000), (2048, 512), (1, 2048)),
    ],
)
def test_sizes_that_fit(size, scale, expected):
    assert fitted(size, scale) == expected


def test_the_ratio_scales_both_limits():
    image, segments = rescaled(*pair(), (400, 100), 0.5)
    assert image.shape == (3, 50, 75) and segments.shape == (50, 75)
    heights = set()
    transform = SegmentationTrain((1000, 1000), *HALF, Jitter(scale=(400, 100), ratio=(0.5, 2.0), photometric=False))
    for key in range(30):
        heights.add(int((apply(transform, key)["segments"] != 255).any(dim=1).sum()))
    assert min(heights) < 80 and max(heights) > 150 and min(heights) >= 50 and max(heights) <= 200


def filled():
    """Class 1 in a corner of a field of class 0: most crops show class 0 alone."""
    segments = torch.zeros(100, 150, dtype=torch.uint8)
    segments[:40, :40] = 1
    return pair()[0], segments


def share(segments):
    counts = torch.bincount(segments[segments != 255])
    return float(counts.max() / counts.sum())


def test_crops_that_one_class_fills_are_drawn_again():
    options = {"scale": (150, 100), "ratio": (1, 1), "photometric": False}
    shares = {
        limit: [
            share(apply(transform, key, filled())["segments"])
            for transform in [SegmentationTrain((40, 40), *HALF, Jitter(cat_max_ratio=limit, **options))]
            for key in range(40)
        ]
        for limit in (0.75, 1.0)
    }
    filling = {limit: sum(value >= 0.75 for value in values) for limit, values in shares.items()}
    assert filling[1.0] > 30 and filling[0.75] < filling[1.0] - 10


def test_the_share_is_of_the_scored_pixels():
    transform = SegmentationTrain((4, 4), *HALF, Jitter())
    crop = torch.full((4, 4), 255)
    assert not transform._mixed(crop)  # nothing is scored
    crop[0] = torch.tensor([0, 0, 0, 0])
    assert not transform._mixed(crop)  # one class alone, although a quarter of the pixels
    crop[0] = torch.tensor([0, 0, 0, 1])
    assert not transform._mixed(crop)  # exactly the limit
    crop[0] = torch.tensor([0, 0, 1, 1])
    assert transform._mixed(crop)


def test_ten_draws_and_then_any(monkeypatch):
    transform = SegmentationTrain((40, 40), *HALF, Jitter(scale=(150, 100), ratio=(1, 1)))
    drawn = []
    any_corner = transform._any_corner
    monkeypatch.setattr(transform, "_any_corner", lambda segments: drawn.append(1) or any_corner(segments))
    apply(transform, 0, (pair()[0], torch.zeros(100, 150, dtype=torch.uint8)))
    assert len(drawn) == 11
    drawn.clear()
    apply(transform, 0)
    assert len(drawn) < 11


COLOURS = torch.tensor([[200, 40, 90], [10, 250, 10], [128, 128, 128], [0, 0, 0], [255, 255, 255]]).T / 255


def only(monkeypatch, **values):
    """`_half` answers in order what happens, `_between` always the highest of the range."""
    answers = iter([values[name] for name in ("brightness", "contrast_first", "first", "second", "third")])
    monkeypatch.setattr(joint_transforms, "_half", lambda: next(answers))
    monkeypatch.setattr(joint_transforms, "_between", lambda low, high: high)
    return distorted(COLOURS[:, None])[:, 0]


def test_each_distortion_alone(monkeypatch):
    nothing = {"brightness": False, "contrast_first": False, "first": False, "second": False, "third": False}
    assert torch.equal(only(monkeypatch, **nothing), COLOURS)
    brighter = only(monkeypatch, **nothing | {"brightness": True})
    torch.testing.assert_close(brighter, (COLOURS + 32 / 255).clamp(max=1))
    for changed in ({"third": True}, {"contrast_first": True, "first": True}):  # after, or before
        torch.testing.assert_close(only(monkeypatch, **nothing | changed), (COLOURS * 1.5).clamp(max=1))


@pytest.mark.parametrize("name", ["saturation", "hue"])
def test_saturation_and_hue_are_those_of_hsv(monkeypatch, name):
    nothing = {"brightness": False, "contrast_first": False, "third": False}
    found = only(monkeypatch, **nothing, first=name == "saturation", second=name == "hue")
    for before, after in zip(COLOURS.T.tolist(), found.T.tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        if name == "saturation":
            expected = colorsys.hsv_to_rgb(hue, min(1, saturation * 1.5), value)
        else:
            expected = colorsys.hsv_to_rgb((hue + 0.1) % 1, saturation, value)  # 18 of OpenCV's 180
        assert after == pytest.approx(expected, abs=2e-3)


def test_distortion_stays_in_range_and_happens_half_of_the_time():
    rgb = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    same = 0
    for key in range(200):
        with seeded(key):
            result = distorted(rgb)
        assert result.min() >= 0 and result.max() <= 1
        same += torch.equal(result, rgb)
    assert 3 < same < 30  # 1 in 16
