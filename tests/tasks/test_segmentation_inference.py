"""Views, windows and their averages, on decoders that are known functions of the pixels."""

from __future__ import annotations

import pickle
from typing import NamedTuple

import pytest
import torch
from PIL import Image

from vlbeit.models.pyramid import resized
from vlbeit.tasks.segmentation.inference import Views, Windows, segment, slide

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PUBLISHED = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """[3, height, width], coarse structure, so that resizing keeps something of it."""
    generator = torch.Generator().manual_seed(seed)
    return resized(torch.rand(1, 3, max(height // 5, 1), max(width // 5, 1), generator=generator), (height, width))[0]


def views_of(window=(32, 32), resize=None, scales=(1.0,)) -> Views:
    return Views(window, *HALF, resize=resize, scales=scales)


def pil(height: int, width: int, seed: int = 0) -> Image.Image:
    array = (picture(height, width, seed) * 255).byte().movedim(0, -1)
    return Image.fromarray(array.numpy())


class Given(NamedTuple):
    """A view of these values, as `decode` shall see them."""

    weight: int
    values: torch.Tensor

    def image(self, like: torch.Tensor) -> torch.Tensor:
        return self.values


def segmented(decode, pictures, windows):
    return segment(decode, pictures, windows, torch.zeros(()))


def colours(image: torch.Tensor) -> torch.Tensor:
    """The pixels themselves as logits of three classes."""
    return image


@pytest.mark.parametrize(
    ("window", "size", "sizes"),
    [
        (512, (683, 512), {(683, 512): 1}),
        (512, (256, 384), {(512, 768): 1}),
        (512, (100, 1000), {(205, 2048): 1}),  # the long side reached 2048 first
        (640, (640, 853), {(640, 853): 1}),
    ],
)
def test_sizes_at_scale_1(window, size, sizes):
    assert views_of((window, window), (4 * window, window)).sizes(size) == sizes


def test_published_scales_below_1_are_scale_1():
    sizes = views_of((640, 640), (2560, 640), PUBLISHED).sizes((480, 640))
    assert sizes == {(640, 853): 3, (800, 1067): 1, (960, 1280): 1, (1120, 1493): 1}
    small_windows = views_of((320, 320), (2560, 640), PUBLISHED).sizes((480, 640))
    assert (320, 427) in small_windows and len(small_windows) == 6


def test_whole_takes_any_aspect_to_one_window():
    (view,) = views_of((32, 48))(pil(100, 20))
    assert view.weight == 1 and view.pixels.shape == (3, 32, 48)
    pickle.dumps(views_of())


def test_views_are_normalised_and_weighted():
    grey = Image.new("RGB", (40, 40), (255, 255, 255))
    views = views_of((32, 32), (128, 32), (0.5, 1.0, 2.0))(grey)
    assert [(view.weight, tuple(view.pixels.shape)) for view in views] == [(2, (3, 32, 32)), (1, (3, 64, 64))]
    assert all(torch.equal(view.image(torch.zeros(())), torch.ones(view.pixels.shape)) for view in views)


def test_a_view_on_its_way_is_bytes():
    """As floats six views of one picture are 50 MB, and a batch of them lies in the memory that processes share."""
    (view,) = views_of(resize=(128, 32))(pil(32, 32))
    assert view.pixels.dtype == torch.uint8 and view.pixels.untyped_storage().nbytes() == 3 * 32 * 32
    found = view.image(torch.zeros((), dtype=torch.float64))
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, view.pixels.double() / 127.5 - 1, rtol=0, atol=1e-6)


def test_one_view_at_a_time_is_made_ready():
    """The others wait as bytes where the loader left them."""
    ready, seen = [], []

    class Recorded(Given):
        def image(self, like):
            ready.append(self.weight)
            return self.values

    views = [Recorded(weight, torch.zeros(3, 8, 8)) for weight in (1, 2, 3)]
    windows = Windows((8, 8), (8, 8), at_a_time=1)
    segmented(lambda image: (seen.append(len(ready)), image)[1], [(views, (8, 8))], windows)
    assert seen == [1, 2, 3]


@pytest.mark.parametrize(
    ("size", "stride", "rows"),
    [(32, 21, [0]), (20, 21, [0]), (33, 21, [0, 1]), (53, 21, [0, 21]), (54, 21, [0, 21, 22]), (96, 32, [0, 32, 64])],
)
def test_windows_lie_at_the_stride_and_flush_with_the_border(size, stride, rows):
    windows = Windows((32, 32), (stride, stride))
    assert windows.starts((size, 32)) == [(row, 0) for row in rows]
    assert windows.starts((32, size)) == [(0, column) for column in rows]


@pytest.mark.parametrize("size", [(32, 32), (45, 70), (20, 50), (10, 9), (100, 33)])
@pytest.mark.parametrize("stride", [(32, 32), (21, 21), (5, 32)])
def test_windows_put_the_picture_together_again(size, stride):
    """Where every window gives back its pixels, the average is the picture: nothing shifted, counted twice or left."""
    view = picture(*size)
    (found,) = slide(colours, [view], Windows((32, 32), stride, at_a_time=3))
    torch.testing.assert_close(found, view)


def test_overlapping_windows_are_averaged():
    """Each window says its own number: two windows of 4 over 6 columns overlap in the middle two."""
    seen = []

    def numbered(windows):
        values = torch.arange(len(seen), len(seen) + len(windows)).float()
        seen.extend(windows)
        return values[:, None, None, None].expand(-1, 1, 4, 4)

    (found,) = slide(numbered, [torch.zeros(3, 4, 6)], Windows((4, 4), (2, 2)))
    assert found[0].tolist() == [[0.0, 0.0, 0.5, 0.5, 1.0, 1.0]] * 4


def test_small_pictures_are_padded_with_the_mean():
    seen = []
    (found,) = slide(lambda x: (seen.append(x), x)[1], [torch.ones(3, 5, 7)], Windows((8, 8), (5, 5)))
    assert found.shape == (3, 5, 7) and found.eq(1).all()
    assert seen[0].shape == (1, 3, 8, 8) and seen[0].sum() == 3 * 5 * 7 and seen[0][0, 0, 0, 0] == 1


def test_logits_of_any_size_are_brought_to_the_window():
    (found,) = slide(lambda x: x[:, :, ::4, ::4], [picture(32, 32)], Windows((32, 32), (21, 21)))
    torch.testing.assert_close(found, resized(picture(32, 32)[None, :, ::4, ::4], (32, 32))[0])


@pytest.mark.parametrize("size", [(60, 60), (32, 32), (17, 17)])
def test_slide_with_one_window_is_whole(size):
    image, windows = pil(*size), Windows((32, 32), (21, 21))
    slid, whole = (segmented(colours, [(views(image), size)], windows)[0] for views in both())
    assert torch.equal(slid, whole) and slid.shape == size and slid.dtype == torch.int64
    assert len(slid.unique()) == 3


def both() -> tuple[Views, Views]:
    return views_of(resize=(128, 32)), views_of()


def test_logits_and_not_classes_are_brought_to_the_original_size():
    """Two pixels, 0 and 1, to four: bilinear gives 0, 0.25, 0.75, 1 with corners not aligned; 0.3 lies between."""
    view = Given(1, torch.tensor([0.0, 1.0]).expand(3, 2, 2))
    (found,) = segmented(
        lambda x: torch.stack([x[:, 0], torch.full_like(x[:, 0], 0.3)], 1), [([view], (2, 4))], Windows((2, 2), (2, 2))
    )
    assert found.tolist() == [[1, 1, 0, 0]] * 2


def test_flip_is_undone():
    """A decoder that looks at the pixels only sees the same picture from both sides."""
    view = Given(1, picture(32, 48))
    plain, flipped = (
        segmented(colours, [([view], (32, 48))], Windows((32, 32), (21, 21), flip=flip))[0] for flip in (False, True)
    )
    assert torch.equal(plain, flipped) and len(plain.unique()) == 3


def test_flip_is_seen():
    """One that looks at the place only, left half class 0, contradicts itself: the more certain side wins."""

    def by_place(windows):
        left = torch.linspace(3, -3, windows.shape[-1]).expand(len(windows), windows.shape[-2], -1)
        return torch.stack([left, torch.full_like(left, 0.5)], 1)

    view = Given(1, torch.zeros(3, 8, 8))
    (plain,) = segmented(by_place, [([view], (8, 8))], Windows((8, 8), (8, 8)))
    (both_sides,) = segmented(by_place, [([view], (8, 8))], Windows((8, 8), (8, 8), flip=True))
    assert plain[0].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]  # 3, 2.14, 1.29, 0.43, ... against 0.5
    assert torch.equal(both_sides, both_sides.flip(-1)) and not torch.equal(plain, both_sides)


def test_probabilities_and_not_logits_are_averaged_over_views():
    """Some views are a little sure, one very: as probabilities three votes win, as logits the loud one would."""
    weak, loud = Given(3, torch.full((3, 4, 4), 1.0)), Given(1, torch.full((3, 4, 4), -100.0))

    def against(views):
        pictures, windows = [(views, (4, 4))], Windows((4, 4), (4, 4))
        return segmented(lambda x: torch.stack([x[:, 0], -x[:, 0]], 1), pictures, windows)[0]

    assert against([weak, loud]).eq(0).all()  # 3 * 0.88 against 3 * 0.12 + 1
    assert against([weak._replace(weight=1), loud]).eq(1).all()  # 0.88 against 0.12 + 1


def test_neither_order_nor_batching_changes_anything():
    views = views_of(resize=(128, 32), scales=(1.0, 1.5))
    images = [pil(height, width, seed) for seed, (height, width) in enumerate([(40, 70), (32, 32), (90, 30)])]
    pictures = [(views(image), (image.height, image.width)) for image in images]
    found = segmented(colours, pictures, Windows((32, 32), (21, 21), flip=True, at_a_time=1))
    for at_a_time in (2, 7, 100):
        windows = Windows((32, 32), (21, 21), flip=True, at_a_time=at_a_time)
        again = segmented(colours, pictures[::-1], windows)[::-1]
        assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert [tuple(classes.shape) for classes in found] == [(40, 70), (32, 32), (90, 30)]


def test_windows_share_a_forward():
    sizes = []
    segmented(
        lambda x: (sizes.append(len(x)), x)[1],
        [([Given(1, picture(32, 53))], (32, 53)), ([Given(1, picture(32, 74))], (32, 74))],
        Windows((32, 32), (21, 21), at_a_time=4),
    )
    assert sizes == [4, 1]
