import pickle

import pytest
import torch
from PIL import Image, ImageDraw
from torchvision.transforms import functional as TF

from vlbeit.data.randomness import seeded
from vlbeit.data.transforms import (
    ClassificationEval,
    ClassificationTrain,
    Erasing,
    EvalImage,
    TrainImage,
    TwoViews,
    pixels,
)

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def picture(width=96, height=64):
    """Red left of blue, the upper half dark."""
    image = Image.new("RGB", (width, height), (220, 0, 0))
    draw = ImageDraw.Draw(image)
    draw.rectangle((width // 2, 0, width, height), fill=(0, 0, 220))
    draw.rectangle((0, 0, width, height // 2 - 1), fill=(60, 0, 0))
    draw.rectangle((width // 2, 0, width, height // 2 - 1), fill=(0, 0, 60))
    return image


def all_transforms(size):
    return {
        "two views": TwoViews(size, (size[0] // 2, size[1] // 2), *HALF),
        "plain two views": TwoViews(size, (size[0] // 2, size[1] // 2), *HALF, train=False),
        "train": TrainImage(size, *HALF, randaugment=True, hflip=0.5),
        "eval": EvalImage(size, *HALF),
        "padded train": TrainImage(size, *HALF, randaugment=True, hflip=0.5, pad=True),
        "padded eval": EvalImage(size, *HALF, pad=True),
        "classification": ClassificationTrain(size, *HALF),
        "classification eval": ClassificationEval(size, *HALF),
    }


@pytest.mark.parametrize("size", [(32, 32), (32, 48)])
@pytest.mark.parametrize("name", all_transforms((32, 32)))
def test_size_range_pickling_and_seeding(name, size):
    transform = all_transforms(size)[name]
    copy = pickle.loads(pickle.dumps(transform))
    results = []
    for one, key in ((transform, 1), (copy, 1), (transform, 2)):
        with seeded(key):
            result = one(picture())
        results.append(result if isinstance(result, dict) else {"image": result})
    first, again, other = results
    assert first["image"].shape == (3, *size) and first["image"].dtype == torch.float32
    assert all(torch.equal(first[key], again[key]) for key in first)
    random = name in ("two views", "train", "padded train", "classification")
    assert torch.equal(first["image"], other["image"]) != random
    if "pixels" in first:
        assert first["pixels"].shape == (3, size[0] // 2, size[1] // 2)
        assert first["pixels"].min() >= 0 and first["pixels"].max() <= 1
    if name != "classification":  # random erasing goes beyond
        assert first["image"].abs().max() <= 1 + 1e-6


@pytest.mark.parametrize(("width", "height"), [(96, 64), (64, 96), (64, 64), (500, 3)])
def test_padded_pictures_keep_their_aspect(width, height):
    """A white picture in the middle of the mean colour, which is 0."""
    image_CHW = EvalImage((32, 32), *HALF, pad=True)(Image.new("RGB", (width, height), (255, 255, 255)))
    rows, columns = (image_CHW[0] == 1).nonzero().T
    assert image_CHW[0].unique().tolist() in ([0, 1], [1])
    shape = (int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1)
    assert max(shape) == 32 and shape[0] * shape[1] == len(rows)
    assert min(shape) == max(1, round(32 * min(width, height) / max(width, height)))
    assert abs(rows.min() + rows.max() - 31) <= 1 and abs(columns.min() + columns.max() - 31) <= 1


def test_padded_crops_keep_about_the_aspect_of_the_picture():
    ratios = []
    train = TrainImage((48, 48), *HALF, pad=True)
    for key in range(40):
        with seeded(key):
            rows, columns = (train(Image.new("RGB", (200, 100), (255, 255, 255)))[0] == 1).nonzero().T
        ratios.append((int(columns.max() - columns.min()) + 1) / (int(rows.max() - rows.min()) + 1))
    assert min(ratios) > 2 * 3 / 4 - 0.15 and max(ratios) < 2 * 4 / 3 + 0.2 and min(ratios) < 1.8 < 2.2 < max(ratios)


@pytest.mark.parametrize("transform", [TrainImage((32, 32), *HALF).view, EvalImage((32, 32), *HALF)])
def test_a_size_of_its_own(transform):
    found = transform(picture(), (16, 48))
    assert (found[0] if isinstance(found, tuple) else found).shape == (3, 16, 48)


@pytest.mark.parametrize("train", [True, False])
def test_both_views_show_the_same_crop(train):
    views = TwoViews((64, 64), (32, 32), *HALF, train=train)
    for key in range(20):
        with seeded(key):
            view = views(picture())
        patches = view["image"] * 0.5 + 0.5
        small = torch.nn.functional.avg_pool2d(patches, 2)
        assert (small - view["pixels"]).abs().mean() < 0.02


def test_views_are_cropped_and_flipped():
    views = TwoViews((32, 32), (32, 32), *HALF, color_jitter=0.0)
    flips = 0
    for key in range(60):
        with seeded(key):
            pixels_CHW = views(picture())["pixels"]
        flips += int(pixels_CHW[0, :, 0].mean() < pixels_CHW[0, :, -1].mean())
    assert 5 < flips < 45  # a crop may also show one half alone


def test_text_images_are_not_flipped_unless_told():
    for hflip, expected in ((0.0, 0), (1.0, 20)):
        transform = TrainImage((32, 32), *HALF, min_scale=0.95, hflip=hflip)
        flips = 0
        for key in range(20):
            with seeded(key):
                image = transform(picture())
            flips += int(image[0, :, 0].mean() < image[0, :, -1].mean())
        assert flips == expected


def test_evaluation_shows_the_whole_image():
    image = EvalImage((32, 32), *HALF)(picture())
    red, blue = image[0], image[2]
    assert red[20:, :14].min() > 0.6 and blue[20:, 18:].min() > 0.6
    assert torch.allclose(image, pixels(picture().resize((32, 32), Image.Resampling.BICUBIC)) * 2 - 1)


@pytest.mark.parametrize(("size", "wide"), [(224, (300, 250)), (224, (250, 301)), (384, (500, 400))])
def test_classification_crop_is_torchvisions(size, wide):
    image = Image.effect_noise(wide, 60).convert("RGB")
    short = int(size / 0.875) if size < 384 else size
    expected = TF.center_crop(TF.resize(image, short, TF.InterpolationMode.BICUBIC), size)
    ours = ClassificationEval((size, size), *HALF)(image)
    assert torch.allclose(ours, pixels(expected) * 2 - 1, atol=1e-6)


def test_non_square_crops_keep_the_aspect_of_the_size():
    image = picture(200, 200)
    plain = TwoViews((32, 64), (32, 64), *HALF, train=False)(image)["pixels"]
    assert plain[0, :, :28].max() > 0.8 and plain[2, :, 36:].max() > 0.8  # both halves, so the full width
    assert plain[0, 17:, 4].min() > 0.8  # lower half bright, symmetric about the middle
    assert plain[0, :15, 4].max() < 0.3


def test_normalisation_uses_the_channels():
    image = EvalImage((4, 4), (0.1, 0.2, 0.3), (0.5, 0.25, 0.125))(Image.new("RGB", (8, 8), (255, 255, 255)))
    assert torch.allclose(image[:, 0, 0], torch.tensor([0.9 / 0.5, 0.8 / 0.25, 0.7 / 0.125]))


def erased(image, mode, count=1):
    """A grey picture after random erasing that always strikes, and the pixels that it changed."""
    transform = ClassificationTrain(
        (64, 64), *HALF, randaugment="", color_jitter=0.0, erasing=Erasing(1.0, mode, count)
    )
    with seeded(3):
        out = transform(image)
    return out, (out != out.mode().values.mode().values.view(3, 1, 1)).any(0)


def test_random_erasing_has_its_modes_and_is_drawn_from_the_seeded_generators():
    grey = Image.new("RGB", (80, 80), (100, 120, 140))
    noise, where = erased(grey, "pixel")
    assert 0.01 < where.float().mean() < 0.5
    assert len(noise[:, where].unique()) > 100 and torch.equal(noise, erased(grey, "pixel")[0])
    assert erased(grey, "const")[0][:, erased(grey, "const")[1]].unique().tolist() == [0.0]
    colour, where = erased(grey, "rand")
    assert len(colour[:, where].unique(dim=1).T) == 1
    with seeded(4):
        other = ClassificationTrain((64, 64), *HALF, randaugment="", erasing=Erasing(1.0))(grey)
    assert not torch.equal(other, noise)
    several = set()
    for key in range(8):
        with seeded(key):
            out = ClassificationTrain(
                (64, 64), *HALF, randaugment="", color_jitter=0.0, erasing=Erasing(1.0, "rand", 3)
            )(grey)
        several.add(len(out.flatten(1).unique(dim=1).T) - 1)
    assert max(several) > 1, "up to three patches, each of its colour"


def test_share_of_erased_pictures():
    grey, struck = Image.new("RGB", (40, 40), (100, 120, 140)), 0
    transform = ClassificationTrain((32, 32), *HALF, randaugment="", color_jitter=0.0, erasing=Erasing(0.25))
    for key in range(200):
        with seeded(key):
            struck += len(transform(grey).flatten(1).unique(dim=1).T) > 1
    assert 30 <= struck <= 70  # 50 expected, standard deviation 6


def test_randaugment_is_drawn_from_the_seeded_generators():
    image, transform = picture(), ClassificationTrain((32, 32), *HALF, erasing=Erasing(0.0))
    drawn = []
    for key in (1, 1, 2):
        with seeded(key):
            drawn.append(transform(image))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
