"""The detection recipe on a handful of drawn pictures, and through the command line on the built-in scenes."""

from __future__ import annotations

import json
import logging
import pickle
from contextlib import chdir
from dataclasses import replace
from unittest.mock import Mock, patch

import numpy as np
import pytest
import torch
from faster_coco_eval import COCO, COCOeval_faster
from PIL import Image
from torchvision.models.detection.roi_heads import paste_masks_in_image

import vlbeit
from vlbeit.cli import main
from vlbeit.config import DataConfig, RunConfig, Settings
from vlbeit.data.drawing import draw_boxes
from vlbeit.data.outlines import from_runs, to_runs
from vlbeit.data.records import ListRecords
from vlbeit.errors import DataError, UsageError
from vlbeit.models.presets import PRESETS
from vlbeit.tasks.detection import RECIPE as Detection
from vlbeit.tasks.detection.evaluator import DetectionEvaluator
from vlbeit.tasks.detection.predictor import Detection as Found
from vlbeit.tasks.detection.task import DetectionSettings

CLASSES = ["red", "green"]
COLOURS = [(230, 20, 20), (20, 220, 20)]
NARROW = {"channels": 16, "hidden": 32, "proposals": 16, "anchors": [0.38, 0.45, 0.5, 0.6, 0.7]}
STILL = {"min_scale": 1.0, "max_scale": 1.0, "hflip": 0.0}
WORDS = ("task.channels=16", "task.hidden=32", "task.proposals=20")


class Colours:
    """A data source with these classes."""

    def classes(self, kind):
        assert kind == "boxes"
        return CLASSES


@pytest.fixture(autouse=True)
def source(request, monkeypatch):
    if "chain" not in request.fixturenames:
        monkeypatch.setattr("vlbeit.tasks.detection.task.open_source", lambda data: Colours())


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Two pictures with two boxes each, one with a crowd alone, one with nothing."""
    folder, rows = tmp_path_factory.mktemp("pictures"), []
    places = [[(4, 6, 22, 24), (30, 20, 48, 44)], [(10, 20, 30, 36), (34, 2, 46, 20)], [(0, 0, 40, 40)], []]
    for number, boxes in enumerate(places):
        image = Image.new("RGB", (48, 48), (40, 40, 50))
        for label, box in enumerate(boxes):
            image.paste(COLOURS[label], box)
        image.save(folder / f"{number}.png")
        rows.append(
            {
                "id": f"{number}.png",
                "image": str(folder / f"{number}.png"),
                "image_id": number,
                "boxes": [[left, top, right - left, bottom - top] for left, top, right, bottom in boxes],
                "labels": list(range(len(boxes))),
                "areas": [float((right - left) * (bottom - top)) for left, top, right, bottom in boxes],
                "crowd": [number == 2] * len(boxes),
                "outlines": [str([[a, b, c, b, c, d, a, d]]).replace("(", "[") for a, b, c, d in boxes],
            }
        )
    return ListRecords(rows)


def built(size=48, **task):
    run = RunConfig(
        stage=Settings(name="mim"),
        task=DetectionSettings(name="detection", **{**NARROW, **STILL, **task}),
        model=replace(PRESETS["tiny"], embed_dim=32, depth=2, num_heads=2),
        data=DataConfig(image_size=size),
    )
    recipe, meta = Detection(run), {"classes": CLASSES}
    torch.manual_seed(0)
    return recipe, meta, recipe.objective(meta)


def batch_of(recipe, meta, records, train=False, rows=(0, 1)):
    spec = recipe.data(records, meta, train=train)
    return spec.collate([spec.transform(spec.records[i]) for i in rows])


def losses_of(objective, batch):
    return objective(batch, objective.counts(batch)).losses


def test_samples(records, caplog):
    with caplog.at_level(logging.INFO):
        recipe, meta, _ = built(masks=True)
        spec = recipe.data(records, meta, train=True)
    assert len(spec.records) == 2 and "2 of 4 training pictures have no box, or crowds alone" in caplog.text
    assert len(built(keep_empty=True)[0].data(records, meta, train=True).records) == 4
    batch = batch_of(recipe, meta, records, train=True)
    assert batch["image"].shape == (2, 3, 48, 48) and batch["inner_size"] == [(48, 48)] * 2
    assert batch["boxes"][0].tolist() == [[4, 6, 22, 24], [30, 20, 48, 44]]
    assert batch["box_labels"][1].tolist() == [0, 1] and batch["box_masks"][0][0].sum() == 18 * 18
    truth = batch_of(recipe, meta, records, rows=(2, 3))["truth"]
    assert truth[0]["crowd"] == [True] and truth[0]["boxes"] == [[0, 0, 40, 40]] and truth[1]["boxes"] == []
    for train in (True, False):
        pickle.dumps(recipe.data(records, meta, train=train).transform)


@pytest.mark.parametrize("train", [True, False])
def test_boxes_lie_on_the_picture_as_it_is_stored(records, tmp_path, train):
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down: no size tells
    with Image.open(records[0]["image"]) as image:
        image.save(tmp_path / "turned.png", exif=exif)
    recipe, meta, _ = built()
    turned = ListRecords([{**records[0], "image": str(tmp_path / "turned.png")}])
    plain, same = (batch_of(recipe, meta, each, train, rows=(0,))["image"] for each in (records, turned))
    assert torch.equal(plain, same)


def test_crowds_are_nothing_to_learn_from(records):
    recipe, meta, _ = built(keep_empty=True)
    batch = batch_of(recipe, meta, records, train=True, rows=(2, 3))
    assert [len(boxes) for boxes in batch["boxes"]] == [0, 0]
    with pytest.raises(DataError, match="none of the 2 training pictures has a box"):
        built()[0].data(ListRecords([records[2], records[3]]), meta, train=True)


@pytest.mark.parametrize(("masks", "size"), [(False, 48), (True, 48), (True, [64, 96])])
def test_every_parameter_gets_a_gradient(records, masks, size):
    recipe, meta, objective = built(size, masks=masks)
    losses = losses_of(objective.train(), batch_of(recipe, meta, records, train=True))
    assert list(losses) == ["rpn_objectness", "rpn_box", "classifier", "box"] + ["mask"] * masks
    sum(losses.values()).backward()
    assert not [name for name, p in objective.named_parameters() if p.grad is None or not p.requires_grad]
    groups = recipe.param_groups(objective, recipe.config.optim)
    assert sorted(name for group in groups for name in group["names"]) == sorted(
        name for name, _ in objective.named_parameters()
    )


def test_a_batch_without_boxes_trains(records):
    recipe, meta, objective = built(masks=True, keep_empty=True)
    batch = batch_of(recipe, meta, records, train=True, rows=(2, 3))
    counts = objective.counts(batch)
    assert counts["mask"] == 0 and counts["box"] == 2
    counts["mask"] = torch.tensor(1)  # as the engine makes of a step without any
    losses = objective.train()(batch, counts).losses
    sum(losses.values()).backward()
    assert losses["mask"] == losses["box"] == 0 and losses["rpn_objectness"] > 0
    assert not [name for name, p in objective.named_parameters() if p.grad is None]


def test_losses_add_up_over_micro_batches(records):
    recipe, meta, objective = built(masks=True, keep_empty=True)
    for part in (objective.heads["detector"].rpn, objective.heads["detector"].regions):
        part.fg_bg_sampler.batch_size_per_image = 10**6  # all of them: nothing is drawn
    rows = (0, 1, 3)
    batches = [batch_of(recipe, meta, records, train=True, rows=part) for part in (rows, rows[:1], rows[1:])]
    counts = objective.counts(batches[0])
    assert counts["mask"] == 2 and counts["rpn_box"] == 3
    whole, *parts = (objective.train()(batch, counts).losses for batch in batches)
    for name, value in whole.items():
        torch.testing.assert_close(value, parts[0][name] + parts[1][name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.fixture(scope="module")
def trained(records):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vlbeit.tasks.detection.task.open_source", lambda data: Colours())
        recipe, meta, objective = built(masks=True)
        batch = batch_of(recipe, meta, records, train=True)
    optimizer = torch.optim.AdamW(objective.train().parameters(), lr=3e-3, weight_decay=0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=120)
    totals = []
    for _ in range(120):
        loss = sum(losses_of(objective, batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        totals.append(loss.item())
    return recipe, meta, objective.eval(), totals


def test_overfits_one_batch(records, trained):
    recipe, meta, objective, totals = trained
    assert totals[-1] < 0.25 * totals[0]
    numbers = {}
    for name, each in (("before", built(masks=True)[2].eval()), ("after", objective)):
        (evaluator,) = recipe.evaluators(records, meta).values()
        evaluator.update(each, batch_of(recipe, meta, records))
        evaluator.update(each, batch_of(recipe, meta, records, rows=(1,)))  # seen twice, counted once
        numbers[name] = evaluator.compute()
    assert numbers["before"]["map"] < 5 and numbers["after"]["map"] > 60 and numbers["after"]["segm_map_50"] > 80
    assert numbers["after"]["images"] == 2 and recipe.metric in numbers["after"]
    assert "map_large" not in numbers["after"]  # there is nothing large
    rows = evaluator.details()["classes"]
    assert [row["class"] for row in rows] == CLASSES and min(row["segm_map"] for row in rows) > 40


def test_predictor(records, trained, monkeypatch):
    recipe, meta, objective, _ = trained
    predict = recipe.predictor(objective, meta)
    large = Image.open(records[0]["image"]).resize((96, 96))  # found in pixels of the picture that was given
    found = predict(large, top=2)
    assert all(isinstance(row, Found) and row.score > 0.5 for row in found) and {f.label for f in found} == set(CLASSES)
    red = next(row for row in found if row.label == "red")
    assert np.abs(np.array(red.box) - np.array([8, 12, 44, 48])).max() < 8
    passes = Mock(wraps=objective.predict)
    monkeypatch.setattr(objective, "predict", passes)
    rows, drawn = predict.draw(large, top=2)
    assert passes.call_count == 1
    assert rows == found
    with pytest.raises(UsageError, match="leave the question out"):
        predict.draw(large, "what is it?")
    assert drawn.size == (3 * 96, 3 * 96)  # enlarged, so that the names can be read
    plain = np.asarray(large.convert("RGB").resize(drawn.size, Image.Resampling.BICUBIC)).astype(int)
    changed = (np.asarray(drawn) != plain).any(-1)
    rows, columns = (round(3 * (red.box[side] + red.box[side + 2]) / 2) for side in (1, 0))
    edges = [round(3 * edge) for edge in red.box]
    assert changed[rows, edges[0]] and changed[edges[1], columns]  # the box where it is, at this size
    with pytest.raises(UsageError, match="leave the question out"):
        predict(large, "what is it?")
    with pytest.raises(DataError, match=r"none\.png"):
        predict("none.png")


@pytest.mark.parametrize("masks", [False, True])
def test_where_no_score_suffices_the_printed_rows_are_drawn(records, masks):
    recipe, meta, objective = built(masks=masks, draw_score=0.9)
    found = {
        "boxes": torch.tensor([[4.0, 4, 12, 12], [24, 8, 40, 30], [1, 30, 9, 44]]),
        "scores": torch.tensor([0.2, 0.6, 0.4]),
        "labels": torch.tensor([0, 1, 1]),
    }
    if masks:
        found["masks"] = to_runs(torch.ones(3, 48, 48, dtype=torch.bool))
    predict = recipe.predictor(objective, meta)
    predict._found = lambda picture: found
    with patch("vlbeit.tasks.detection.predictor.draw_boxes", wraps=draw_boxes) as drawing:
        rows, drawn = predict.draw(records[0]["image"], top=2)
        assert [round(row.score, 1) for row in rows] == [0.6, 0.4] and drawn.size == (288, 288)
        _, boxes, labels, captions, masks_nHW = drawing.call_args.args
        assert boxes.tolist() == [[144, 48, 240, 180], [6, 180, 54, 264]] and labels == [1, 1]
        assert captions == [f"{CLASSES[1]} 0.60", f"{CLASSES[1]} 0.40"]
        assert (masks_nHW.shape == (2, 288, 288)) if masks else masks_nHW is None
        predict.least_score = 0.5
        predict.draw(records[0]["image"], top=2)
        assert drawing.call_args.args[3] == [f"{CLASSES[1]} 0.60"]


class Known(torch.nn.Module):
    """Detections made up beforehand."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def predict(self, batch):
        return [self.found[sample_id] for sample_id in batch["sample_id"]]


def made_up(pictures=6, seed=0):
    """Truths with crowds of all sizes, detections near them and elsewhere; as batch and as COCO's files."""
    rng = np.random.default_rng(seed)
    batch = {"sample_id": [str(i) for i in range(pictures)], "original_size": [(200, 300)] * pictures, "truth": []}
    found, annotations, results = {}, [], []
    for number in range(pictures):
        count = int(rng.integers(0, 5))
        place, side = rng.uniform(0, 100, (count, 2)), rng.uniform(8, 130, (count, 2)).round(1)
        truth = np.concatenate([place.round(1), side], axis=1)
        labels, crowd = rng.integers(0, 3, count), rng.random(count) < 0.2
        corners = np.concatenate([truth[:, :2], truth[:, :2] + truth[:, 2:]], axis=1)
        areas = (truth[:, 2] * truth[:, 3] * 0.8).round(1)
        batch["truth"].append(
            {"boxes": corners.tolist(), "labels": labels.tolist(), "areas": areas.tolist(), "crowd": crowd.tolist()}
        )
        moved = np.concatenate([corners + rng.normal(0, 3, corners.shape), corners[:1] + 20]).clip(0, 290).round(1)
        names, scores = np.concatenate([labels, labels[:1]]), rng.random(len(moved)).astype(np.float32)
        found[str(number)] = {
            "boxes": torch.tensor(moved, dtype=torch.float32).reshape(-1, 4),
            "scores": torch.tensor(scores),
            "labels": torch.tensor(names, dtype=torch.int64),
        }
        for box, label, area, is_crowd in zip(truth, labels, areas, crowd, strict=True):
            row = {"id": len(annotations) + 1, "image_id": number, "category_id": int(label), "bbox": box.tolist()}
            annotations.append({**row, "area": float(area), "iscrowd": int(is_crowd)})
        for (left, top, right, bottom), label, score in zip(moved, names, scores, strict=True):
            row = {"image_id": number, "category_id": int(label), "score": float(score)}
            results.append({**row, "bbox": [left, top, right - left, bottom - top]})
    images = [{"id": i, "width": 300, "height": 200} for i in range(pictures)]
    categories = [{"id": i, "name": str(i)} for i in range(4)]
    return batch, found, {"images": images, "annotations": annotations, "categories": categories}, results


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_numbers_are_those_of_faster_coco_eval(seed):
    batch, found, truth, results = made_up(seed=seed)
    reference = COCO(truth)
    direct = COCOeval_faster(reference, reference.loadRes(results), iouType="bbox")
    direct.evaluate()
    direct.accumulate()
    direct.summarize()
    names = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large")
    evaluator = DetectionEvaluator(list("abcd"))
    evaluator.update(Known(found), batch)
    numbers = evaluator.compute()
    for name, value in zip(names, direct.stats[:6], strict=True):
        assert numbers.get(name, -100) == pytest.approx(100 * value, abs=1e-3), name
    assert numbers["mar_100"] == pytest.approx(100 * direct.stats[8], abs=1e-3)
    rows = evaluator.details()["classes"]
    assert rows[3] == {"class": "d", "map": None}  # the split has none of it
    present = [row["map"] for row in rows if row["map"] is not None]
    assert np.mean(present) == pytest.approx(numbers["map"], abs=1e-3)


def with_masks(batch, found, truth, results):
    """Every truth an octagon in its box, every detection an ellipse in its; truths as polygons, crowds as runs."""
    y, x = np.mgrid[:200, :300] + 0.5
    outlines = []
    for row in truth["annotations"]:
        left, top, width, height = row["bbox"]
        ring = [(0.3, 0), (0.7, 0), (1, 0.3), (1, 0.7), (0.7, 1), (0.3, 1), (0, 0.7), (0, 0.3)]
        row["segmentation"] = [[value for a, b in ring for value in (left + a * width, top + b * height)]]
        if row["iscrowd"]:
            inside = (x > left) & (x < left + width) & (y > top) & (y < top + height)
            changes = np.flatnonzero(np.diff(inside.T.ravel(), prepend=False, append=True))
            counts = np.diff(changes, prepend=0).tolist()
            row["segmentation"] = {"size": [200, 300], "counts": [*counts, 200 * 300 - sum(counts)]}
        outlines.append((row["image_id"], json.dumps(row["segmentation"])))
    for number, each in enumerate(batch["truth"]):
        each["outlines"] = [text for image_id, text in outlines if image_id == number]
    rows = iter(results)
    for each in found.values():
        each["masks"] = []
        for _ in each["labels"]:
            row = next(rows)
            left, top, width, height = row["bbox"]
            centre, half = (left + width / 2, top + height / 2), (width / 2, height / 2)
            inside = ((x - centre[0]) / half[0]) ** 2 + ((y - centre[1]) / half[1]) ** 2 < 1
            each["masks"] += to_runs(torch.from_numpy(inside)[None])
            row["segmentation"] = each["masks"][-1]
    return batch, found, truth, results


@pytest.mark.parametrize("seed", [0, 1])
def test_numbers_of_masks_are_those_of_faster_coco_eval(seed):
    batch, found, truth, results = with_masks(*made_up(seed=seed))
    evaluator = DetectionEvaluator(list("abcd"), masks=True)
    evaluator.update(Known(found), batch)
    again = DetectionEvaluator(list("abcd"), masks=True)
    again.load_state_dict(json.loads(json.dumps(evaluator.state_dict())))
    numbers = again.compute()
    names = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large")
    for ours, kind in {"segm_": "segm", "": "bbox"}.items():
        reference = COCO(json.loads(json.dumps(truth)))
        shown = [{**row, "area": row["bbox"][2] * row["bbox"][3]} for row in results]
        if kind == "bbox":
            shown = [{name: value for name, value in row.items() if name != "segmentation"} for row in shown]
        else:
            shown = [{name: value for name, value in row.items() if name != "bbox"} for row in shown]
        direct = COCOeval_faster(reference, reference.loadRes(shown), iouType=kind)
        direct.evaluate()
        direct.accumulate()
        direct.summarize()
        for name, value in zip(names, direct.stats[:6], strict=True):
            assert numbers.get(ours + name, -100) == pytest.approx(100 * value, abs=1e-3), ours + name
    assert 5 < numbers["segm_map_50"] < 100 and numbers["segm_map"] != numbers["map"]


def test_the_main_process_computes_for_all(monkeypatch):
    batch, found, _, _ = made_up()
    main, other = DetectionEvaluator(list("abcd")), DetectionEvaluator(list("abcd"))
    for each in (main, other):
        each.update(Known(found), batch)
    sent = []
    monkeypatch.setattr("vlbeit.tasks.detection.evaluator.broadcast_object", lambda own: sent.append(own) or own)
    numbers = main.compute()
    monkeypatch.setattr("vlbeit.tasks.detection.evaluator.is_main", lambda: False)
    monkeypatch.setattr("vlbeit.tasks.detection.evaluator.broadcast_object", lambda own: sent[0])
    monkeypatch.setattr(DetectionEvaluator, "_measured", None)
    assert other.compute() == numbers and other.details() == main.details()


def test_masks_are_pasted_one_by_one(records, trained, monkeypatch):
    recipe, meta, objective, _ = trained
    batch, at_once = batch_of(recipe, meta, records), []

    def counting(masks, boxes, size):
        at_once.append(len(masks))
        return paste_masks_in_image(masks, boxes, size)

    monkeypatch.setattr("vlbeit.tasks.detection.objective.paste_masks_in_image", counting)
    batch["original_size"] = [(96, 48), (48, 48)]
    for found, raw, (rows, columns) in zip(
        objective.predict(batch),
        objective.detector.detect(objective._map(batch), (48, 48), batch["inner_size"]),
        batch["original_size"],
        strict=True,
    ):
        expected = paste_masks_in_image(raw["masks"], found["boxes"], (rows, columns))[:, 0] > 0.5
        assert len(expected) > 1 and torch.equal(from_runs(found["masks"], rows, columns), expected)
    assert set(at_once) == {1}


@pytest.mark.parametrize(
    ("outline", "said"),
    [
        ("", r"split 'train': boxes without a segmentation, by their pictures: 1 \(0.png\); .*task.masks=false"),
        ("[[1,2,3]]", r"0.png: box 1 has a segmentation that is not as in COCO"),
    ],
)
def test_outlines_are_looked_at_before_training(records, outline, said):
    rows = [records[row] for row in range(len(records))]
    rows[0]["outlines"] = [rows[0]["outlines"][0], outline]
    splits = {"train": ListRecords(rows), "val": records}
    with pytest.raises(DataError, match=said):
        built(masks=True)[0].prepare(Mock(), splits, Mock())
    built(masks=False)[0].prepare(Mock(), splits, Mock())
    rows = [records[row] for row in range(len(records))]
    rows[2]["outlines"] = [""]  # of a crowd, which is measured by and not learned from
    built(masks=True)[0].prepare(Mock(), {"train": ListRecords(rows)}, Mock())
    with pytest.raises(DataError, match=r"split 'val': boxes without a segmentation, by their pictures: 1 \(2.png\)"):
        built(masks=True)[0].prepare(Mock(), {"val": ListRecords(rows)}, Mock())


def test_a_split_without_boxes_is_refused(records):
    recipe, meta, _ = built()
    with pytest.raises(DataError, match="none of the 2 pictures of the split 'val' of data/own has a box"):
        recipe.config.data.root = "data/own"
        recipe.evaluators(ListRecords([records[2], records[3]]), meta)


def test_evaluator_goes_on_and_merges(monkeypatch):
    batch, found, _, _ = made_up()
    whole = DetectionEvaluator(list("abcd"))
    whole.update(Known(found), batch)
    parts = []
    for rows in (range(4), range(3, 6)):  # one picture by both
        part = DetectionEvaluator(list("abcd"))
        part.update(Known(found), {name: [values[i] for i in rows] for name, values in batch.items()})
        parts.append(part.pictures)
    again = DetectionEvaluator(list("abcd"))
    again.load_state_dict(json.loads(json.dumps({"pictures": parts[0]})))
    monkeypatch.setattr("vlbeit.tasks.detection.evaluator.gather_objects", lambda own: [own, parts[1]])
    merged = again.compute()
    monkeypatch.undo()
    assert merged == whole.compute() and merged["images"] == 6
    with pytest.raises(ValueError, match="no picture was evaluated"):
        DetectionEvaluator(["a"]).compute()


def test_an_unreadable_picture_of_a_run_with_masks_counts_as_missed(records, trained):
    recipe, meta, objective, _ = trained
    spec = recipe.data(records, meta, train=False)
    grey = {**records[0], "image": Image.new("RGB", (64, 64)), "outlines": ['{"size": [48, 48], "counts": [2304]}'] * 2}
    batch = spec.collate([spec.transform(row) for row in (grey, records[1])]) | {"bad": ["0.png"]}
    (evaluator,) = recipe.evaluators(records, meta).values()
    evaluator.update(objective, batch)
    assert 0 < evaluator.compute()["segm_map_50"] <= 60


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"anchors": [0.1, 0.2]}, r"task.anchors=\[0.1, 0.2\] must be 5 numbers in \(0, 1\]"),
        ({"min_scale": 2.0, "max_scale": 1.0}, r"must lie in \(0, 10\], the least first"),
        ({"hflip": 1.5}, r"task.hflip=1.5 must lie in \[0, 1\]"),
        ({"proposals": 0}, "task.proposals=0 must be positive"),
        ({"least_score": 1.0}, r"task.least_score=1.0 must lie in \[0, 1\)"),
    ],
)
def test_settings_are_checked(setting, message):
    with pytest.raises(UsageError, match=message):
        DetectionSettings(**setting)


def test_other_classes_and_odd_patches_are_refused(records, monkeypatch):
    recipe, _, _ = built()
    with pytest.raises(DataError, match=r"has 2 classes, the run was trained on 3, and they differ \(such as 'blue'\)"):
        recipe.data(records, {"classes": [*CLASSES, "blue"]}, train=False)
    for side, size in ((14, 56), (4, 16), (64, 256)):
        recipe.config.model = replace(recipe.config.model, patch_size=side)
        recipe.config.data = DataConfig(image_size=size)
        with pytest.raises(UsageError, match="needs square patches of 8, 16 or 32 pixels; this tower has 4x4"):
            recipe.objective({"classes": CLASSES})


def test_without_the_library_it_says_so_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("vlbeit.tasks.detection.evaluator.find_spec", lambda name: None)
    with chdir(tmp_path):
        assert main(["train", "task=detection", "init=none"]) == 2
    assert "error: task=detection needs faster-coco-eval: pip install 'vlbeit[detection]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    recipe, meta, objective = built()
    recipe.predictor(objective, meta)  # boxes alone need no library
    recipe.settings.masks = True
    with pytest.raises(UsageError, match="needs faster-coco-eval"):
        recipe.predictor(objective, meta)


@pytest.mark.parametrize("stage", ["mim", "vl"])
def test_command_line(chain, scenes, tmp_path, capsys, stage):
    run, picture = tmp_path / "run", next((scenes / "val2014").iterdir())
    small = ["model.embed_dim=32", "model.depth=3", "model.num_heads=2", "model.fused_layers=1", "data.workers=0"]
    steps = ["steps=2", "global_batch_size=4", "micro_batch_size=2", "engine.evaluate_every=2", "data.limit=6"]
    words = [f"stage={stage}", "task=detection", f"data.root={scenes}", f"run={run}", *WORDS, *small, *steps]
    with chdir(chain):
        assert main(["train", *words, "task.least_score=0", f"task.masks={str(stage == 'vl').lower()}"]) == 0
        capsys.readouterr()
        assert main(["evaluate", str(run)]) == 0
        rows = [line.split() for line in capsys.readouterr().out.partition("\n\n")[2].splitlines()]
        assert rows[0] == ["class", "map"] + ["segm_map"] * (stage == "vl")
        assert rows[3][0] == "triangle" and rows[5][:3] == [
            "wrote",
            f"{run}/evaluation.json,",
            f"{run}/detection_details.json",
        ]
        assert {"map", "images"} <= json.loads((run / "evaluation.json").read_text()).keys()
        details = json.loads((run / "detection_details.json").read_text())
        assert [row["class"] for row in details["classes"]] == ["circle", "square", "triangle", "cross"]
        assert len(details["images"]) == 6 and all(0 <= row["score"] <= 1 for row in details["images"])
        capsys.readouterr()
        assert main(["predict", str(run), str(picture), "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)
        assert set(rows[0]) == {"label", "score", "box"} and len(rows[0]["box"]) == 4
        out = tmp_path / "drawn.png"
        assert main(["predict", str(run), str(picture), "--out", str(out)]) == 0
        assert Image.open(out).size == tuple(6 * side for side in Image.open(picture).size)
        assert (run / "batch0.png").exists()
        assert "detector" in vlbeit.load(run).heads
