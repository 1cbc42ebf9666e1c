"""Pictures with boxes in a canvas: what is drawn over a thing stays over it, whatever is done to the picture."""

from __future__ import annotations

import pickle

import pytest
import torch
from PIL import Image

from vlbeit.data.box_transforms import BoxEval, BoxTrain, collate_boxes, corners, fitted
from vlbeit.data.outlines import from_runs, outline_masks, to_runs
from vlbeit.data.records import ImageError
from vlbeit.errors import DataError

MEAN = STD = (0.5, 0.5, 0.5)


def picture(width=60, height=40, box=(20, 10, 40, 30)):
    """Black with a white box."""
    image = Image.new("RGB", (width, height))
    image.paste((255, 255, 255), box)
    mask_HW = torch.zeros(height, width, dtype=torch.bool)
    mask_HW[box[1] : box[3], box[0] : box[2]] = True
    return image, torch.tensor([box], dtype=torch.float32), torch.tensor([4]), mask_HW[None]


def bright(image_CHW):
    """Corners of what is bright, 0 being grey."""
    rows, columns = (image_CHW.mean(0) > 0.2).nonzero().unbind(1)
    return [columns.min().item(), rows.min().item(), columns.max().item() + 1, rows.max().item() + 1]


@pytest.mark.parametrize("seed", range(12))
def test_box_and_mask_follow_the_picture(seed):
    torch.manual_seed(seed)
    sample = BoxTrain((96, 64), MEAN, STD, scale=(0.5, 1.6), hflip=0.5)(*picture())
    assert sample["image"].shape == (3, 96, 64)
    height, width = sample["inner_size"]
    assert (sample["image"][:, height:] == 0).all() and (sample["image"][:, :, width:] == 0).all()
    if not len(sample["boxes"]):
        return
    torch.testing.assert_close(sample["boxes"][0], torch.tensor(bright(sample["image"])).float(), atol=1.5, rtol=0)
    assert sample["box_masks"].shape == (1, 96, 64) and sample["box_masks"].dtype == torch.bool
    inside = sample["image"].mean(0)[sample["box_masks"][0]]
    assert (inside > 0.2).float().mean() > 0.8 and sample["box_labels"].tolist() == [4]


def test_flip_mirrors():
    train = BoxTrain((40, 60), MEAN, STD, scale=(1, 1), hflip=1.0)
    sample = train(*picture(box=(0, 10, 20, 30)))
    assert sample["boxes"].tolist() == [[40, 10, 60, 30]] and sample["inner_size"] == (40, 60)
    plain = BoxTrain((40, 60), MEAN, STD, scale=(1, 1), hflip=0.0)(*picture(box=(0, 10, 20, 30)))
    assert plain["boxes"].tolist() == [[0, 10, 20, 30]]


def test_scale_is_over_what_fits_and_what_is_cropped_is_lost():
    image, boxes, labels, masks = picture(box=(0, 0, 20, 20))
    seen, kept = set(), set()
    for seed in range(30):
        torch.manual_seed(seed)
        sample = BoxTrain((40, 60), MEAN, STD, scale=(2, 2), hflip=0.0)(image, boxes, labels, masks)
        assert sample["inner_size"] == (40, 60)  # the picture is 80x120, and 40x60 of it is seen
        kept.add(len(sample["boxes"]))
        for box in sample["boxes"]:
            assert (box >= 0).all() and (box[2:] - box[:2] >= 1).all()
            seen.add(round(box[2].item()))
        assert len(sample["boxes"]) == len(sample["box_labels"]) == len(sample["box_masks"])
    assert kept == {0, 1} and len(seen) > 2
    torch.manual_seed(0)
    tiny = torch.tensor([[0.0, 0, 8, 8]])
    small = BoxTrain((40, 60), MEAN, STD, scale=(0.1, 0.1))(image, tiny, labels)
    assert small["inner_size"] == (4, 6) and len(small["boxes"]) == 0  # 0.8 pixels are too few


@pytest.mark.parametrize("size", [(10_000, 1), (1, 10_000), (3, 500)])
def test_extreme_aspects_keep_a_pixel(size):
    image = Image.new("RGB", size)
    assert min(fitted(image, (48, 48), 0.1)) == 1
    sample = BoxTrain((48, 48), MEAN, STD)(image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert sample["image"].shape == (3, 48, 48) and sample["boxes"].shape == (0, 4)
    assert BoxEval((48, 48), MEAN, STD)(image)["original_size"] == (size[1], size[0])


def test_evaluation_keeps_the_way_back():
    image, boxes, _, _ = picture(90, 40, (30, 10, 60, 30))
    sample = BoxEval((48, 48), MEAN, STD)(image)
    assert sample["inner_size"] == (21, 48) and sample["original_size"] == (40, 90)
    found = torch.tensor(bright(sample["image"])) * torch.tensor([90 / 48, 40 / 21, 90 / 48, 40 / 21])
    torch.testing.assert_close(found, boxes[0], atol=1.5, rtol=0)


def test_boxes_of_another_file_are_refused():
    image, _, labels, _ = picture()
    train = BoxTrain((48, 48), MEAN, STD)
    with pytest.raises(ImageError, match=r"60x40 pixels, a box reaches to 80.0, 30.0: the annotations are for a file"):
        train(image, torch.tensor([[20.0, 10, 80, 30]]), labels)
    train(image, torch.tensor([[20.0, 10, 60.9, 30]]), labels)  # rounding


def test_corners_and_collation():
    assert corners([[2, 3, 10, 5]]).tolist() == [[2, 3, 12, 8]] and corners([]).shape == (0, 4)
    train = BoxTrain((32, 32), MEAN, STD, scale=(1, 1))
    samples = [{"sample_id": str(i), **train(*picture())} for i in range(2)]
    samples[1]["boxes"] = samples[1]["boxes"][:0]
    batch = collate_boxes(samples)
    assert batch["image"].shape == (2, 3, 32, 32) and batch["sample_id"] == ["0", "1"]
    assert [len(boxes) for boxes in batch["boxes"]] == [1, 0] and batch["inner_size"] == [(21, 32)] * 2
    pickle.dumps(train)


def test_outlines_of_all_forms():
    square = [[2, 1, 6, 1, 6, 4, 2, 4]]
    expected = torch.zeros(5, 8, dtype=torch.bool)
    expected[1:4, 2:6] = True
    counts = [11, 3, 2, 3, 2, 3, 2, 3, 11]  # columns of five, run by run
    outlines = [
        str(square),
        f'{{"size": [5, 8], "counts": {counts}}}',
        "[[0, 0, 1, 0, 1, 5], [2, 1, 6, 1, 6, 4, 2, 4]]",
    ]
    masks = outline_masks(outlines, 5, 8, "a.jpg")
    assert masks.dtype == torch.bool and torch.equal(masks[0], expected) and torch.equal(masks[1], expected)
    assert (masks[2] & expected).sum() == expected.sum() and masks[2].sum() > expected.sum()  # two parts, one thing
    assert torch.equal(from_runs(to_runs(masks), 5, 8), masks)
    assert outline_masks([], 5, 8, "a.jpg").shape == from_runs([], 5, 8).shape == (0, 5, 8)


@pytest.mark.parametrize(
    ("outline", "message"),
    [
        ("", "a.jpg: box 0 has no segmentation; give it one, or set task.masks=false"),
        ("[[1, 2, 3, 4]]", "a polygon needs three corners"),
        ('{"size": [4, 8], "counts": [32]}', r"its size is \[4, 8\], the picture's \[5, 8\]"),
        ('{"counts": [32]}', "KeyError: 'size'"),
        ("3", "TypeError"),
    ],
)
def test_bad_outlines_are_named(outline, message):
    with pytest.raises(DataError, match=message):
        outline_masks([outline], 5, 8, "a.jpg")
