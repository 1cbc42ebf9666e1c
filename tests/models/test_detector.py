"""The detector on made-up maps: pyramid, losses as torchvision's, pictures apart from each other, precision."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork

from vlbeit.models.detector import LEVELS, Detector, _images
from vlbeit.models.heads import Heads

SPEC = {
    "kind": "detector", "dim": 16, "num_classes": 3, "anchors": [8, 12, 16, 24, 32],
    "channels": 8, "hidden": 16, "proposals": 20, "masks": True,
}  # fmt: skip
CANVAS = (48, 64)  # 3x4 patches


def built(**more) -> Detector:
    torch.manual_seed(0)
    return Heads({"detector": {**SPEC, **more}})["detector"]


def maps(count=2, dtype=torch.float32):
    return torch.randn(count, 16, 3, 4, generator=torch.Generator().manual_seed(1)).to(dtype)


def target(*boxes, labels=None):
    boxes_n4 = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    masks_nHW = torch.zeros(len(boxes_n4), *CANVAS, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks_nHW, boxes_n4.int().tolist(), strict=True):
        mask[top:bottom, left:right] = True
    return {
        "boxes": boxes_n4,
        "labels": torch.tensor(labels or [i % 3 for i in range(len(boxes_n4))], dtype=torch.int64),
        "masks": masks_nHW,
    }


TARGETS = [target((4, 4, 20, 24), (30, 10, 60, 40)), target((10, 20, 30, 36))]
INNER = [CANVAS, (40, 50)]


@pytest.mark.parametrize(("rows", "columns"), [(3, 4), (1, 1), (6, 6), (7, 5)])
def test_pyramid(rows, columns):
    levels = built().pyramid(torch.randn(1, 16, rows, columns))
    half = [-(-rows // 2), -(-columns // 2)]
    sizes = [[4 * rows, 4 * columns], [2 * rows, 2 * columns], [rows, columns], half, [-(-side // 2) for side in half]]
    assert [list(each.shape[2:]) for each in levels.values()] == sizes and len(levels) == LEVELS
    assert all(each.shape[1] == 8 for each in levels.values())


def test_losses_are_torchvisions_of_each_picture():
    detector = built()
    detector.rpn.fg_bg_sampler.batch_size_per_image = detector.regions.fg_bg_sampler.batch_size_per_image = 10**6
    detector.rpn.fg_bg_sampler.positive_fraction = detector.regions.fg_bg_sampler.positive_fraction = 1.0
    whole = detector.losses(maps(), CANVAS, [CANVAS] * 2, TARGETS)
    assert sorted(whole) == ["box", "classifier", "mask", "rpn_box", "rpn_objectness"]
    sums = dict.fromkeys(whole, 0.0)
    for index, each in enumerate(TARGETS):
        levels = detector.pyramid(maps()[index : index + 1])
        shifted = [{**each, "labels": each["labels"] + 1}]
        detector.rpn.compute_loss = RegionProposalNetwork.compute_loss.__get__(detector.rpn)
        proposals, first = detector.rpn(_images(levels["level0"], CANVAS, [CANVAS]), levels, shifted)
        del detector.rpn.compute_loss
        _, second = RoIHeads.forward(detector.regions, levels, proposals, [CANVAS], shifted)
        theirs = {
            f"rpn_{name}": first[key] for name, key in (("objectness", "loss_objectness"), ("box", "loss_rpn_box_reg"))
        }
        names = {"classifier": "loss_classifier", "box": "loss_box_reg", "mask": "loss_mask"}
        theirs |= {name: second[key] for name, key in names.items()}
        sums = {name: sums[name] + value for name, value in theirs.items()}
    for name, value in whole.items():
        torch.testing.assert_close(value, sums[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("targets", [[TARGETS[0], target()], [target(), target()]])
def test_every_parameter_gets_a_gradient_whatever_is_there(targets):
    detector = built()
    losses = detector.losses(maps(), CANVAS, INNER, targets)
    assert all(value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    assert not [name for name, p in detector.named_parameters() if p.grad is None]
    if not len(targets[0]["boxes"]):
        assert losses["mask"] == losses["box"] == losses["rpn_box"] == 0 and losses["classifier"] > 0


def test_detections_lie_in_the_picture_and_count_classes_from_0():
    detector = built().eval()
    detector.regions.score_thresh = 0.0
    found = detector.detect(maps(), CANVAS, INNER)
    for each, (height, width) in zip(found, INNER, strict=True):
        assert len(each["boxes"]) == len(each["scores"]) == len(each["labels"]) > 0
        assert each["boxes"].min() >= 0 and each["boxes"][:, 2].max() <= width and each["boxes"][:, 3].max() <= height
        assert set(each["labels"].tolist()) <= {0, 1, 2}
        assert (each["scores"][1:] <= each["scores"][:-1]).all()
        assert each["masks"].shape == (len(each["boxes"]), 1, 28, 28)
    assert "masks" not in built(masks=False).eval().detect(maps(), CANVAS, INNER)[0]


def test_other_pictures_of_a_batch_change_nothing():
    detector = built().eval()
    detector.regions.score_thresh = 0.0
    alone = detector.detect(maps()[1:], CANVAS, INNER[1:])[0]
    beside = detector.detect(maps(), CANVAS, INNER)[1]
    for name in ("boxes", "scores"):
        torch.testing.assert_close(alone[name], beside[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_precision_of_coordinates(dtype):
    detector = built()
    if dtype == torch.float64:
        detector.double()
        losses = detector.losses(maps(dtype=dtype), CANVAS, INNER, TARGETS)
        detected = detector.eval().detect(maps(dtype=dtype), CANVAS, INNER)
    else:
        with torch.autocast("cpu", dtype=dtype):
            losses = detector.losses(maps(), CANVAS, INNER, TARGETS)
            detected = detector.eval().detect(maps(), CANVAS, INNER)
    assert all(value.isfinite() and value.dtype != torch.bfloat16 for value in losses.values())
    assert all(each["boxes"].dtype != torch.bfloat16 for each in detected)
    sum(losses.values()).backward()


def test_wrong_use():
    with pytest.raises(ValueError, match="training mode only"):
        built().eval().losses(maps(), CANVAS, INNER, TARGETS)
    with pytest.raises(ValueError, match="2 anchor sides for 5 levels"):
        built(anchors=[1, 2])


def test_pinned_values():
    with torch.device("meta"):
        base = Detector(768, 80, [32, 64, 128, 256, 512], masks=True)
    # with the 86 million of a ViT-B the 111 million that ViTDet reports for its Mask R-CNN
    assert sum(parameter.numel() for parameter in base.parameters()) == 25_011_125
    means = [level.abs().mean().item() for level in built().pyramid(maps()).values()]
    assert means == pytest.approx([0.81333, 0.82775, 0.82150, 0.86849, 0.86233], abs=1e-3)
