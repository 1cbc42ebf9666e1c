"""The segmentation recipe on a handful of made-up pictures: objective, samples, evaluation, predictor."""

from __future__ import annotations

import pickle
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from vlbeit.config import DataConfig, RunConfig, Settings
from vlbeit.data.drawing import palette
from vlbeit.data.loader import EvalLoader
from vlbeit.data.records import ListRecords
from vlbeit.engine.device import fits, make_accelerator
from vlbeit.engine.evaluate import run_evaluators
from vlbeit.errors import DataError, UsageError
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.presets import PRESETS
from vlbeit.models.spec import encoder_spec
from vlbeit.models.transfer import transfer
from vlbeit.nn.batch_norm import synced
from vlbeit.tasks.segmentation import RECIPE as Segmentation
from vlbeit.tasks.segmentation.task import SegmentationSettings

CLASSES = ["red", "green", "blue"]
COLOURS = np.array([(0, 0, 0), (220, 30, 30), (30, 200, 30), (30, 30, 220)], np.uint8)  # by label; 0 is other
HEADS = ("upernet", "setr_pup")
PLAIN = {"photometric": False, "hflip": 0.0, "ratio_min": 1.0, "ratio_max": 1.0, "cat_max_ratio": 1.0, "dropout": 0.0}


class Colours:
    """A data source with these classes."""

    def classes(self, kind):
        assert kind == "masks"
        return CLASSES


@pytest.fixture(scope="module", autouse=True)
def source():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vlbeit.tasks.segmentation.task.open_source", lambda data: Colours())
        yield


def write_pair(folder, name, labels_HW):
    Image.fromarray(COLOURS[np.minimum(labels_HW, 3)]).save(folder / f"{name}.png")
    Image.fromarray(labels_HW).save(folder / f"{name}_mask.png")
    return {"id": name, "image": str(folder / f"{name}.png"), "mask": str(folder / f"{name}_mask.png")}


def layout(height, width, order):
    """Quarters of a picture with these labels."""
    labels_HW = np.zeros((height, width), np.uint8)
    for index, label in enumerate(order):
        rows = slice(0, height // 2) if index < 2 else slice(height // 2, height)
        labels_HW[rows, width // 2 * (index % 2) :] = label
    return labels_HW


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    sizes = [(64, 64), (64, 96), (48, 40), (64, 64)]
    orders = [(1, 2, 3, 0), (3, 1, 0, 2), (2, 3, 1, 1), (1, 1, 2, 3)]
    return ListRecords(
        [
            write_pair(folder, str(i), layout(*size, order))
            for i, (size, order) in enumerate(zip(sizes, orders, strict=True))
        ]
    )


def built(head="upernet", image_size=64, positions="relative", **task):
    run = RunConfig(
        stage=Settings(name="mim"),
        task=SegmentationSettings(name="segmentation", head=head, **{"channels": 16, **task}),
        model=replace(PRESETS["tiny"], embed_dim=32, num_heads=2, positions=positions),
        data=DataConfig(image_size=image_size),
    )
    recipe, meta = Segmentation(run), {"classes": CLASSES}
    torch.manual_seed(0)
    return recipe, meta, recipe.objective(meta)


def batch_of(recipe, meta, records, train=True, rows=(0, 1, 2, 3)):
    spec = recipe.data(records, meta, train=train)
    return spec.collate([spec.transform(spec.records[i]) for i in rows])


def loss_of(objective, batch):
    return sum(objective(batch, objective.counts(batch)).losses.values())


def test_samples(records):
    recipe, meta, _ = built()
    train = batch_of(recipe, meta, records)
    assert train["image"].shape == (4, 3, 64, 64) and train["segments"].shape == (4, 64, 64)
    assert train["segments"].dtype == torch.int64 and {0, 1, 2} <= set(train["segments"].unique().tolist()) <= {
        0,
        1,
        2,
        255,
    }
    held_out = batch_of(recipe, meta, records, train=False)
    assert [tuple(segments.shape) for segments in held_out["original_segments"]] == held_out["original_size"]
    assert held_out["original_size"] == [(64, 64), (64, 96), (48, 40), (64, 64)]
    assert [tuple(views[0].pixels.shape) for views in held_out["views"]][1:3] == [(3, 64, 96), (3, 77, 64)]
    assert held_out["original_segments"][0][0, 0] == 0 and held_out["original_segments"][0][-1, -1] == 255
    for split in (True, False):
        pickle.dumps(recipe.data(records, meta, train=split).transform)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("positions", "auxiliary"), [("relative", 0.4), ("absolute", 0.0)])
def test_every_parameter_gets_a_gradient(records, head, positions, auxiliary):
    recipe, meta, objective = built(head, positions=positions, auxiliary_weight=auxiliary)
    assert ("auxiliary" in objective.heads) == (auxiliary > 0)
    loss_of(objective.train(), batch_of(recipe, meta, records)).backward()
    assert not [n for n, p in objective.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    groups = recipe.param_groups(objective, recipe.config.optim)
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, _ in objective.named_parameters())


def test_layer_decay_and_weight_decay():
    """Everything above the tower learns at the full rate; norms and biases of the decoder do not decay."""
    recipe, _, objective = built()
    recipe.config.optim.layer_decay, recipe.config.optim.weight_decay = 0.5, 0.05
    groups = recipe.param_groups(objective, recipe.config.optim)
    where = {name: (group["lr_scale"], group["weight_decay"]) for group in groups for name in group["names"]}
    assert all(where[name][0] == 1 for name in where if name.startswith("heads."))
    assert where["encoder.blocks.2.attn.proj.weight"] == (0.5, 0.05) and where["encoder.cls_token"] == (0.0625, 0)
    assert where["heads.segmentation.fuse.norm.weight"] == (1, 0) == where["heads.segmentation.classifier.bias"]
    assert where["heads.necks.up2.weight"] == (1, 0.05)


@pytest.mark.parametrize("head", HEADS)
def test_the_whole_decoder_learns_at_the_rate_of_new_heads(head):
    recipe, _, objective = built(head)
    recipe.config.optim.head_lr_scale = 10
    groups = recipe.param_groups(objective, recipe.config.optim)
    scales = {name: group["lr_scale"] for group in groups for name in group["names"]}
    assert {scale for name, scale in scales.items() if name.startswith("heads.")} == {10}
    assert {scale for name, scale in scales.items() if not name.startswith("heads.")} == {1}


@pytest.mark.parametrize("head", HEADS)
def test_loss_is_the_mean_over_labelled_pixels_of_the_whole_step(records, head):
    recipe, meta, objective = built(head, **PLAIN)
    objective.eval()  # batch statistics do see one micro-batch alone
    whole = batch_of(recipe, meta, records)
    logits = F.interpolate(objective.logits(whole), size=(64, 64), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(logits, whole["segments"], ignore_index=255)  # torch's mean leaves ignored ones out
    found = objective(whole, objective.counts(whole))
    torch.testing.assert_close(found.losses["segmentation"], expected)
    parts = [{name: whole[name][rows] for name in ("image", "segments")} for rows in (slice(0, 1), slice(1, 4))]
    counts = [objective.counts(part) for part in parts]
    assert counts[0]["segmentation"] * 3 != counts[1]["segmentation"]  # not the mean of means
    together = {name: counts[0][name] + counts[1][name] for name in counts[0]}
    summed = sum(loss_of_part(objective, part, together) for part in parts)
    torch.testing.assert_close(summed, sum(found.losses.values()))


def loss_of_part(objective, part, counts):
    return sum(objective(part, counts).losses.values())


def test_auxiliary_loss_is_weighted(records):
    recipe, meta, objective = built(**PLAIN)
    batch = batch_of(recipe, meta, records)
    out = objective.eval()(batch, objective.counts(batch))
    total, number = out.logs["auxiliary"]
    torch.testing.assert_close(out.losses["auxiliary"], 0.4 * total / number)
    right, labelled = out.logs["pixel_accuracy"]
    assert 0 <= right <= labelled == (batch["segments"] != 255).sum()


@pytest.mark.parametrize("head", HEADS)
def test_nothing_labelled_is_a_loss_of_zero(records, head):
    recipe, meta, objective = built(head)
    batch = batch_of(recipe, meta, records)
    batch["segments"] = torch.full_like(batch["segments"], 255)
    counts = {name: torch.ones(()) for name in objective.counts(batch)}  # as the engine has it: 1 instead of 0
    assert all(count == 0 for count in objective.counts(batch).values())
    loss = sum(objective.train()(batch, counts).losses.values())
    loss.backward()
    assert loss == 0 and all(p.grad is not None and p.grad.abs().sum() == 0 for p in objective.parameters())


@pytest.fixture(scope="module", params=HEADS)
def trained(records, request):
    recipe, meta, objective = built(request.param, channels=32, **PLAIN)
    batch = batch_of(recipe, meta, records)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=5e-3, weight_decay=0)
    objective.train()
    for _ in range(40):
        loss = loss_of(objective, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return recipe, meta, objective, loss.item()


def test_overfits_one_batch(trained):
    assert trained[3] < 0.15


def evaluated(recipe, meta, objective, records, batch_size=2):
    loader = EvalLoader(recipe.data(records, meta, train=False), batch_size=batch_size, workers=0, max_bad_fraction=0.5)
    return run_evaluators(objective, loader, recipe.evaluators(records, meta), make_accelerator("cpu"), len(records))


def test_evaluation_of_what_was_learned(records, trained):
    recipe, meta, objective, _ = trained
    numbers = evaluated(recipe, meta, objective, records)
    assert numbers["images"] == 4 and numbers[recipe.metric] > 80 and numbers["aacc"] > 85
    assert evaluated(recipe, meta, objective, records, batch_size=3) == numbers


@pytest.mark.parametrize("setting", [{"inference": "whole"}, {"scales": [1.0, 1.5], "flip": True}])
def test_other_inference_on_the_same_weights(records, trained, setting):
    recipe, meta, objective, _ = trained
    task = replace(recipe.config.task, **setting)
    other = Segmentation(replace(recipe.config, task=task))
    again = other.objective(meta)
    again.load_state_dict(objective.state_dict())
    assert evaluated(other, meta, again, records)["miou"] > 60


def test_unreadable_picture_is_grey_and_counted(records, trained, tmp_path):
    recipe, meta, objective, _ = trained
    (tmp_path / "broken.png").write_bytes(b"no picture")
    rows = ListRecords([records[0], {**records[1], "image": str(tmp_path / "broken.png")}])
    numbers = evaluated(recipe, meta, objective, rows)
    assert numbers["unreadable"] == 1 and numbers["images"] == 2


def test_predictor(records, trained, monkeypatch):
    recipe, meta, objective, _ = trained
    predict = recipe.predictor(objective, meta)
    found = predict(records[3]["image"])
    assert (
        found[0].label == "red" and 0.4 < found[0].share < 0.6 and sum(row.share for row in found) == pytest.approx(1)
    )
    assert predict(records[3]["image"], top=1) == found[:1]
    assert predict.segments(records[1]["image"]).shape == (64, 96)
    expected = predict(records[1]["image"], top=2)
    passes = Mock(wraps=objective.predict)
    monkeypatch.setattr(objective, "predict", passes)
    rows, drawn = predict.draw(records[1]["image"], top=2)
    assert passes.call_count == 1
    assert rows == expected
    with pytest.raises(UsageError, match="leave the question out"):
        predict.draw(records[1]["image"], "what is it?")
    assert drawn.width == 96 * 3 and drawn.height > 64 * 3  # enlarged to a readable size, the legend below
    with pytest.raises(UsageError, match="leave the question out"):
        predict(records[3]["image"], "what is it?")
    with pytest.raises(DataError, match=r"none\.png"):
        predict("none.png")


def test_drawing_shows_the_class_of_every_pixel(records, trained):
    """Away from edges a pixel is half its own colour and half that of its class."""
    recipe, meta, objective, _ = trained
    predict = recipe.predictor(objective, meta)
    (_, drawn), segments = predict.draw(records[3]["image"]), predict.segments(records[3]["image"])
    for row, column in ((8, 16), (56, 8), (56, 56)):
        own = np.array(Image.open(records[3]["image"]).convert("RGB"))[row, column].astype(float)
        colour = np.array(palette(3)[segments[row, column]], float)
        shown = np.array(drawn.getpixel((column * 5 + 2, row * 5 + 2)), float)
        assert np.abs(shown - (own + colour) / 2).max() < 3


def test_the_legend_has_room_beside_any_picture(records, trained):
    recipe, meta, objective, _ = trained
    predict = recipe.predictor(objective, meta)
    for size in ((4, 400), (400, 4)):
        _, drawn = predict.draw(Image.open(records[1]["image"]).resize(size), top=1)
        assert 100 < drawn.width <= 400 and 400 * (size[1] == 400) + 4 < drawn.height < 500
        lowest = np.asarray(drawn.convert("L"))[-30:]
        assert (lowest[:, 40:] < 100).sum() > 50 and (lowest[:, -3:] == 255).all()  # words, not cut at the right


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "CMYK", "I;16", "P"])
def test_pictures_of_other_modes(records, trained, tmp_path, mode):
    recipe, meta, objective, _ = trained
    rgb = Image.open(records[0]["image"]).convert("RGB")
    path = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    if mode == "I;16":
        Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257).save(path)
    else:
        rgb.convert(mode).save(path)
    record = {**records[0], "image": str(path)}
    for train in (True, False):
        batch = batch_of(recipe, meta, ListRecords([record, record]), train, rows=(0, 1))
        image = batch["image"][0] if train else batch["views"][0][0].image(torch.zeros(()))
        assert image.shape == (3, 64, 64) and image.isfinite().all() and image.abs().max() <= 1
    assert evaluated(recipe, meta, objective, ListRecords([record]))["images"] == 1


def test_tower_of_a_vl_run_keeps_its_image_pass(records):
    recipe, meta, objective = built()
    batch = batch_of(recipe, meta, records)
    source = MoMEEncoder(encoder_spec(recipe.config, experts=("image", "text"), fused=True, vocab_size=20))
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.normal_(std=0.05)
    state = {f"encoder.{name}": value for name, value in source.state_dict().items()}
    report = transfer(objective, state, source.spec, objective.encoder.spec)
    assert not [name for name in report.missing if name.startswith("encoder.")]
    with torch.no_grad():
        taps = source.eval().forward_intermediates(source.embed_image(batch["image"]), objective.taps)
        maps = objective.eval()._maps(batch["image"])
    for tap, found in zip(taps, maps, strict=True):
        expected = tap.x_BLD[:, 1:].transpose(1, 2).unflatten(2, (4, 4))  # no CLS, no final norm, row by row
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_chosen_taps(records):
    recipe, meta, objective = built(taps=[0, 0, 1, 1])
    loss_of(objective.train(), batch_of(recipe, meta, records)).backward()
    trainable = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trainable.values())
    left = {name.split(".")[1:3][-1] for name, p in objective.named_parameters() if not p.requires_grad}
    assert left == {"2"}  # the block above the last tap and its positions
    assert objective.taps == [0, 0, 1, 1] and objective.describe()["heads"]["necks"]["taps"] == [0, 0, 1, 1]
    assert built()[2].taps == [0, 0, 1, 2] and "taps" not in built()[2].describe()["heads"]["necks"]
    with pytest.raises(UsageError, match=r"task.taps=\[0, 1, 2, 3\]: there is no block 3 of 3"):
        built(taps=[0, 1, 2, 3])


def test_a_window_of_any_aspect(records):
    recipe, meta, objective = built("setr_pup", image_size=[32, 64], **PLAIN)
    batch = batch_of(recipe, meta, records)
    assert batch["image"].shape == (4, 3, 32, 64)
    loss_of(objective.train(), batch).backward()
    assert evaluated(recipe, meta, objective, records)["images"] == 4


@pytest.mark.parametrize(("size", "stride"), [(512, (341, 341)), (640, (426, 426)), (32, (21, 21))])
def test_published_strides(size, stride):
    recipe, _, _ = built()
    recipe.config.data = DataConfig(image_size=size)
    assert recipe._windows().stride == stride and recipe._resize() == (4 * size, size)


def test_every_pixel_lies_in_a_window():
    built(stride=[64, 64])
    with pytest.raises(UsageError, match=r"task.stride=\[64, 65\] is larger than data.image_size=64"):
        built(stride=[64, 65])
    built(stride=[64, 65], inference="whole")
    assert built(stride=40)[0]._windows().stride == (40, 40)


def test_a_pyramid_needs_two_patches_a_side(records):
    with pytest.raises(UsageError, match=r"data.image_size=16 is 1x1 patches.*task.head=setr_pup"):
        built(image_size=16)
    recipe, meta, objective = built("setr_pup", image_size=16, **PLAIN)
    assert loss_of(objective.train(), batch_of(recipe, meta, records)).isfinite()
    recipe, meta, objective = built(image_size=32, **PLAIN)
    assert loss_of(objective.train(), batch_of(recipe, meta, records)).isfinite()


def test_one_picture_a_process_is_tried_out(records):
    """Of several CUDA processes each may forward one picture; whether it fits a process tries by itself."""
    recipe, meta, objective = built()
    accelerator = make_accelerator("cpu")
    synced(objective.heads)
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    assert fits(objective.train(), batch_of(recipe, meta, records, rows=[0]), accelerator)
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())


def test_one_picture_has_no_batch_statistics(records):
    recipe, meta, objective = built()
    recipe.config.micro_batch_size = 1
    with pytest.raises(UsageError, match="micro_batch_size= to 2 or more"):
        recipe.check()
    recipe.config.micro_batch_size = "auto"
    with pytest.raises(UsageError, match="micro_batch_size= to 2 or more"):
        loss_of(objective.train(), batch_of(recipe, meta, records, rows=(0,)))
    recipe, meta, objective = built("setr_pup")
    assert loss_of(objective.train(), batch_of(recipe, meta, records, rows=(0,))).isfinite()


@pytest.mark.parametrize("classes", [["red", "green"], ["green", "red", "blue"]])
def test_data_with_other_classes_is_refused(records, classes):
    with pytest.raises(DataError, match=r"has 3 classes, the run was trained on \d"):
        built()[0].data(records, {"classes": classes}, train=False)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"head": "fpn"}, "task.head=fpn is not one of upernet, setr_pup"),
        ({"inference": "crop"}, "task.inference=crop is not one of slide, whole"),
        ({"inference": "whole", "scales": [0.5, 1.0]}, "needs task.inference=slide"),
        ({"scales": []}, "must be positive factors"),
        ({"scales": [1.0, -1.0]}, "must be positive factors"),
        ({"stride": [341]}, r"task.stride=\[341\] must be a positive number of pixels, two of them such as"),
        ({"stride": [0, 4]}, "must be a positive number"),
        ({"stride": 0}, "task.stride=0 must be a positive number"),
        ({"stride": "half"}, "task.stride=half must be a positive number"),
        ({"stride": [1.5, 2]}, "must be a positive number"),
        ({"resize": [512, 2048]}, r"such as \[2048,512\], or null"),
        ({"ratio_min": 2.5}, "must be positive and not above task.ratio_max=2.0"),
        ({"channels": 0}, "task.channels=0 must be positive, or null"),
        ({"dropout": 1.0}, r"task.dropout=1.0 must lie in \[0, 1\)"),
        ({"hflip": 1.5}, "task.hflip=1.5"),
        ({"cat_max_ratio": 0.0}, "task.cat_max_ratio=0.0"),
        ({"auxiliary_weight": -0.1}, "task.auxiliary_weight=-0.1 must not be negative"),
        ({"taps": [1, 2, 3]}, r"must be four blocks, such as \[3,5,7,11\]"),
        ({"taps": [0, 1, 2, 3], "head": "setr_pup"}, "with task.head=upernet"),
        ({"windows": 0}, "task.windows=0 must be positive"),
    ],
)
def test_settings_are_checked(setting, message):
    with pytest.raises(UsageError, match=message):
        SegmentationSettings(**setting)
