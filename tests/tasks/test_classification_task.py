"""The classification recipe on a handful of made-up pictures: objective, mixing, evaluator, predictor."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torchmetrics.classification import MulticlassAccuracy

from vlbeit.config import DataConfig, RunConfig, Settings
from vlbeit.data.records import ListRecords
from vlbeit.errors import DataError, UsageError
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.presets import PRESETS
from vlbeit.models.spec import encoder_spec
from vlbeit.models.transfer import transfer
from vlbeit.tasks.classification import RECIPE as Classification
from vlbeit.tasks.classification.evaluator import ClassificationEvaluator
from vlbeit.tasks.classification.subset import subset_rows, weights_classes
from vlbeit.tasks.classification.task import ClassificationSettings

CLASSES = ["red", "green", "blue"]
COLOURS = [(220, 30, 30), (30, 200, 30), (30, 30, 220)]


class Colours:
    """A data source with these classes."""

    def classes(self):
        return CLASSES


@pytest.fixture(scope="module", autouse=True)
def source():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vlbeit.tasks.classification.task.open_source", lambda data: Colours())
        yield


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder, rows = tmp_path_factory.mktemp("pictures"), []
    for label, colour in enumerate(COLOURS):
        path = folder / f"{label}.png"
        Image.new("RGB", (40, 30), colour).save(path)
        rows.append({"id": str(label), "image": str(path), "label": label})
    return ListRecords(rows)


def built(positions="relative", **task):
    run = RunConfig(
        stage=Settings(name="mim"),
        task=ClassificationSettings(name="classification", **task),
        model=replace(PRESETS["tiny"], embed_dim=32, depth=2, num_heads=2, positions=positions),
        data=DataConfig(image_size=32),
    )
    recipe, meta = Classification(run), {"classes": CLASSES}
    torch.manual_seed(0)
    return recipe, meta, recipe.objective(meta)


PLAIN = {"mixup": 0.0, "cutmix": 0.0, "init_scale": 1.0}


def batch_of(recipe, meta, records, train=False, rows=(0, 1, 2)):
    spec = recipe.data(records, meta, train=train)
    return spec.collate([spec.transform(spec.records[i]) for i in rows])


def loss_of(objective, batch):
    return sum(objective(batch, objective.counts(batch)).losses.values())


def test_samples(records):
    recipe, meta, _ = built()
    for train in (True, False):
        batch = batch_of(recipe, meta, records, train)
        assert batch["image"].shape == (3, 3, 32, 32) and batch["label"].tolist() == [0, 1, 2]
        assert batch["sample_id"] == ["0", "1", "2"]
        pickle.dumps(recipe.data(records, meta, train=train).transform)


@pytest.mark.parametrize("classes", [["red", "green"], ["green", "red", "blue"], [*CLASSES, "pink"]])
def test_data_with_other_classes_is_refused(records, classes):
    recipe, _, _ = built()
    with pytest.raises(DataError, match=r"has 3 classes, the run was trained on \d"):
        recipe.data(records, {"classes": classes}, train=False)


def test_meta_takes_the_classes_of_the_source(records, monkeypatch):
    class Source:
        def classes(self):
            return ("a", "b")

    monkeypatch.setattr("vlbeit.tasks.classification.task.open_source", lambda data: Source())
    assert built()[0].meta(records, {"tokenizer": {}}) == {"classes": ["a", "b"]}


@pytest.mark.parametrize("positions", ["relative", "absolute"])
def test_every_parameter_gets_a_gradient(records, positions):
    recipe, meta, objective = built(positions)
    loss_of(objective, batch_of(recipe, meta, records, train=True)).backward()
    assert not [name for name, p in objective.named_parameters() if p.grad is None or not p.requires_grad]
    groups = recipe.param_groups(objective, recipe.config.optim)
    assert sorted(name for group in groups for name in group["names"]) == sorted(
        name for name, _ in objective.named_parameters()
    )


def test_layer_decay_reaches_the_groups():
    recipe, _, objective = built()
    recipe.config.optim.layer_decay = 0.5
    scales = {n: g["lr_scale"] for g in recipe.param_groups(objective, recipe.config.optim) for n in g["names"]}
    assert scales["heads.classification.fc.weight"] == 1.0
    assert scales["encoder.blocks.1.norm1.weight"] == scales["encoder.rel_pos.1.image"] == 0.5
    assert scales["encoder.blocks.0.norm1.weight"] == 0.25 and scales["encoder.cls_token"] == 0.125


def test_new_classifier_starts_small():
    small, large = built()[2], built(init_scale=1.0)[2]
    weights = [objective.heads["classification"].fc.weight for objective in (small, large)]
    torch.testing.assert_close(weights[0], weights[1] * 0.001)


def test_plain_loss_is_label_smoothing_cross_entropy(records):
    recipe, meta, objective = built(**PLAIN)
    batch = batch_of(recipe, meta, records)
    out = objective.train()(batch, {"classification": torch.tensor(6)})  # half of a step
    logits = objective.class_logits(batch)
    torch.testing.assert_close(
        out.losses["classification"], LabelSmoothingCrossEntropy(0.1)(logits, batch["label"]) / 2
    )
    assert out.logs["accuracy"][0] == (logits.argmax(1) == batch["label"]).sum() and out.logs["accuracy"][1] == 3


@pytest.mark.parametrize("rows", [(0,), (0, 1), (0, 1, 2), (0, 1, 2, 0)])
@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixing(records, rows, mixup, cutmix):
    recipe, meta, objective = built(mixup=mixup, cutmix=cutmix, init_scale=1.0)
    batch = batch_of(recipe, meta, records, rows=rows)
    before, seen = batch["image"].clone(), {}
    objective.class_logits = lambda mixed: seen.setdefault("logits", type(objective).class_logits(objective, mixed))
    state = np.random.get_state()
    np.random.seed(3)
    first = objective.train()(batch, objective.counts(batch))
    np.random.seed(3)
    image, target = objective._mixed(batch["image"], batch["label"], objective.mixup)
    np.random.set_state(state)
    assert torch.equal(batch["image"], before)  # the batch is left as it was
    torch.testing.assert_close(target.sum(1), torch.ones(len(rows)))
    expected = SoftTargetCrossEntropy()(seen["logits"], target)  # the same numpy state mixes the same
    torch.testing.assert_close(first.losses["classification"], expected)
    assert set(first.logs) == {"classification"}
    even = len(rows) // 2 * 2
    assert (even == 0) == torch.equal(image[:even], before[:even])
    assert torch.equal(image[even:], before[even:])  # the odd one out is not mixed, but smoothed
    for i in range(even, len(rows)):
        smooth = torch.full((3,), 0.1 / 3)
        smooth[batch["label"][i]] += 0.9
        torch.testing.assert_close(target[i], smooth)


def test_tower_of_a_vl_run_keeps_its_image_pass(records):
    recipe, meta, objective = built()
    image = batch_of(recipe, meta, records)["image"]
    source = MoMEEncoder(encoder_spec(recipe.config, experts=("image", "text"), fused=True, vocab_size=20))
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.normal_(std=0.05)
    state = {f"encoder.{name}": value for name, value in source.state_dict().items()}
    report = transfer(objective, state, source.spec, objective.encoder.spec)
    assert not [name for name in report.missing if name.startswith("encoder.")]
    with torch.no_grad():
        expected = source.eval()(source.embed_image(image), norm=False).x_BLD
        found = objective.encoder.eval()(objective.encoder.embed_image(image)).x_BLD
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_no_mixing_in_evaluation(records):
    recipe, meta, objective = built(init_scale=1.0)
    batch = batch_of(recipe, meta, records)
    out = objective.eval()(batch, objective.counts(batch))
    expected = F.cross_entropy(objective.class_logits(batch), batch["label"], label_smoothing=0.1)
    torch.testing.assert_close(out.losses["classification"], expected)
    assert "accuracy" in out.logs


@pytest.fixture(scope="module")
def trained(records):
    recipe, meta, objective = built(smoothing=0.0, **PLAIN)
    batch = batch_of(recipe, meta, records)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3, weight_decay=0)
    for _ in range(40):
        loss = loss_of(objective, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return recipe, meta, objective, loss.item()


def test_overfits_one_batch(trained):
    assert trained[3] < 0.05


def test_evaluator(records, trained):
    recipe, meta, objective, _ = trained
    (evaluator,) = recipe.evaluators(records, meta).values()
    evaluator.update(objective.eval(), batch_of(recipe, meta, records))
    evaluator.update(objective, batch_of(recipe, meta, records, rows=(1,)))
    assert evaluator.compute() == {"top1": 100.0, "images": 3, "classes": 3}  # top5 of three classes says nothing
    assert recipe.metric in evaluator.compute()
    assert evaluator.details()[1] == {"sample_id": "1", "score": 1.0}


def test_top_numbers_are_those_of_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 10, generator=generator), torch.randint(10, (50,), generator=generator)

    evaluator = ClassificationEvaluator(10)
    for part in torch.arange(50).split(20):
        batch = {"rows": part, "label": labels[part], "sample_id": [str(i) for i in part.tolist()]}
        evaluator.update(Fixed(logits), batch)
    again = ClassificationEvaluator(10)
    again.load_state_dict(json.loads(json.dumps(evaluator.state_dict())))
    numbers = again.compute()
    for top in (1, 5):
        accuracy = MulticlassAccuracy(10, top_k=top, average="micro")(logits, labels)
        assert numbers[f"top{top}"] == pytest.approx(100 * accuracy.item())
        low, high = again.intervals()[f"top{top}"]
        error = 1.96 * (numbers[f"top{top}"] * (100 - numbers[f"top{top}"]) / 50) ** 0.5  # of a share of 50
        assert [low, high] == pytest.approx([numbers[f"top{top}"] - error, numbers[f"top{top}"] + error], abs=4)


class Fixed(torch.nn.Module):
    """An objective that knows its logits."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def class_logits(self, batch):
        return self.logits[batch["rows"]]


def test_a_picture_on_two_processes_counts_once(monkeypatch):
    logits = torch.eye(6)[[0, 1, 2, 0]]  # the last one is wrong
    parts = [ClassificationEvaluator(6) for _ in range(2)]
    for evaluator, rows in zip(parts, ([0, 1, 2], [2, 3]), strict=True):
        batch = {"rows": torch.tensor(rows), "label": torch.tensor(rows), "sample_id": [str(row) for row in rows]}
        evaluator.update(Fixed(logits), batch)
    monkeypatch.setattr(
        "vlbeit.tasks.classification.evaluator.gather_objects", lambda own: [part.hits for part in parts]
    )
    for evaluator in parts:
        numbers = evaluator.compute()
        assert (numbers["top1"], numbers["images"], numbers["classes"]) == (75.0, 4, 4)
        assert [row["score"] for row in evaluator.details()] == [1.0, 1.0, 1.0, 0.0]


def test_a_subset_is_compared_among_itself_alone():
    """The logits of other classes have no say; labels count within the subset."""
    generator = torch.Generator().manual_seed(1)
    logits, rows = torch.randn(40, 12, generator=generator), [7, 0, 3, 11, 5, 8, 2]
    labels = torch.randint(len(rows), (40,), generator=generator)
    evaluator = ClassificationEvaluator(12, rows)
    batch = {"rows": torch.arange(40), "label": labels, "sample_id": [str(i) for i in range(40)]}
    evaluator.update(Fixed(logits), batch)
    numbers = evaluator.compute()
    for top in (1, 5):
        accuracy = MulticlassAccuracy(7, top_k=top, average="micro")(logits[:, rows], labels)
        assert numbers[f"top{top}"] == pytest.approx(100 * accuracy.item())
    whole = ClassificationEvaluator(12)
    whole.update(Fixed(logits), {**batch, "label": torch.tensor(rows)[labels]})
    assert whole.compute()["top1"] < numbers["top1"], "fewer classes to take it for"
    assert numbers["images"] == 40 and numbers["classes"] == len(labels.unique())


def test_subset_of_a_run_by_name(records, monkeypatch):
    recipe, meta, _ = built(subset=True, **PLAIN)
    monkeypatch.setattr(Colours, "classes", lambda self: ["blue", "red"])
    (evaluator,) = recipe.evaluators(records, meta).values()
    assert evaluator.rows.tolist() == [2, 0] and evaluator.num_classes == 2
    assert recipe.data(records, meta, train=False).records is records
    with pytest.raises(UsageError, match=r"task.subset=true is for `vlbeit evaluate`"):
        recipe.data(records, meta, train=True)
    with pytest.raises(DataError, match=r"has 2 classes.*or task.subset=true to evaluate among these alone"):
        built(**PLAIN)[0].data(records, meta, train=False)
    monkeypatch.setattr(Colours, "classes", lambda self: ["blue", "pink", "red"])
    with pytest.raises(DataError, match=r"classes that the classifier does not know: 1 \(pink\); it knows 3 \(red, gr"):
        recipe.evaluators(records, meta)
    monkeypatch.setattr(Colours, "classes", lambda self: ["blue"])
    with pytest.raises(DataError, match="has one class, blue: there is nothing to tell apart"):
        recipe.evaluators(records, meta)


def test_classes_of_weights_that_do_not_name_them():
    """By their number: the rows of ImageNet classifiers lie in the order of its sorted folders."""
    places, folders = [str(row) for row in range(1000)], ["n01443537", "n01484850"]  # goldfish, great white shark
    assert weights_classes([*folders, "n0"], folders) == [*folders, "n0"]
    names = weights_classes(places, folders)
    assert len(names) == 1000 and names == sorted(names) and names.index("n01443537") == 1
    words = weights_classes([f"word {row}" for row in range(1000)], folders)
    assert words == names
    assert len(weights_classes([str(row) for row in range(21841)], folders)) == 21841
    with pytest.raises(UsageError, match="which classes the 7 rows of this classifier stand for"):
        weights_classes(places[:7], folders)


@pytest.mark.parametrize("variant", ["a", "r"])
def test_robustness_sets_are_subsets_of_imagenet(variant):
    """timm's lists of the 200 classes of ImageNet-A and ImageNet-R, and their rows among the 1000."""
    folder = files("timm.data").joinpath("_info")
    found = folder.joinpath(f"imagenet_{variant}_synsets.txt").read_text().split()
    rows = [int(row) for row in folder.joinpath(f"imagenet_{variant}_indices.txt").read_text().split()]
    assert len(found) == 200
    assert subset_rows(found, weights_classes([str(row) for row in range(1000)], found), "here") == rows


def test_one_class_is_refused(records, monkeypatch):
    monkeypatch.setattr(Colours, "classes", lambda self: ["red"])
    with pytest.raises(DataError, match=r"data.root=data/scenes has one class, red: there is nothing to tell apart"):
        built()[0].meta(records, {})


def test_every_setting_of_the_augmentation_reaches_timm(records):
    recipe, meta, objective = built(
        mixup=0.3, cutmix=0.4, mixup_prob=0.6, switch_prob=0.7, mixup_mode="elem", smoothing=0.2
    )
    mixup = objective.mixup
    assert (mixup.mixup_alpha, mixup.cutmix_alpha, mixup.mix_prob, mixup.switch_prob) == (0.3, 0.4, 0.6, 0.7)
    assert (mixup.mode, mixup.label_smoothing, mixup.num_classes) == ("elem", 0.2, 3)
    assert built(mixup=0.0, cutmix=0.0)[2].mixup is None
    recipe, meta, _ = built(
        erasing=0.5, erasing_mode="const", erasing_count=2, min_scale=0.3, randaugment="rand-m5-n3", color_jitter=0.1
    )
    image = recipe.data(records, meta, train=True).transform.image
    parts = {type(part).__name__: part for part in image._transform.transforms}
    erasing, policy = parts["RandomErasing"], parts["RandAugment"]
    assert (erasing.probability, erasing.per_pixel, erasing.rand_color, erasing.max_count) == (0.5, False, False, 2)
    assert policy.num_layers == 3 and {operation.magnitude for operation in policy.ops} == {5}
    assert parts["RandomResizedCropAndInterpolation"].scale == (0.3, 1.0)
    recipe, meta, _ = built(randaugment="", color_jitter=0.1)
    parts = [
        type(part).__name__ for part in recipe.data(records, meta, train=True).transform.image._transform.transforms
    ]
    assert "ColorJitter" in parts and "RandAugment" not in parts


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_mixing_is_drawn_from_the_seeded_generators(records, mode):
    _, _, objective = built(mixup_mode=mode)
    image, label = torch.rand(8, 3, 32, 32), torch.arange(8) % 3
    state, mixed = np.random.get_state(), []
    for seed in (5, 5, 6):
        np.random.seed(seed)
        mixed.append(objective._mixed(image, label, objective.mixup))
    np.random.set_state(state)
    assert torch.equal(mixed[0][0], mixed[1][0]) and torch.equal(mixed[0][1], mixed[1][1])
    assert not torch.equal(mixed[0][0], mixed[2][0])
    torch.testing.assert_close(mixed[0][1].sum(1), torch.ones(8))


def test_predictor(records, trained):
    recipe, meta, objective, _ = trained
    predict = recipe.predictor(objective, meta)
    found = predict(records[1]["image"])
    assert found[0][0] == "green" and sum(p for _, p in found) == pytest.approx(1) and len(found) == 3
    assert predict(Image.new("RGB", (64, 20), COLOURS[2]), top=1)[0][0] == "blue"
    with pytest.raises(DataError, match=r"none\.png"):
        predict("none.png")
    with pytest.raises(UsageError, match="a classification run takes a picture alone: leave the question out"):
        predict(records[1]["image"], "which colour?")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"smoothing": 1.0}, "task.smoothing=1.0 must be below 1"),
        ({"mixup": -1.0}, "task.mixup=-1.0 must not be negative"),
        ({"crop_pct": 1.5}, r"task.crop_pct=1.5 must lie in \(0, 1\], or null"),
        ({"mixup_prob": 2.0}, r"task.mixup_prob=2.0 must lie in \[0, 1\]"),
        ({"mixup_mode": "all"}, "task.mixup_mode=all is not one of batch, pair, elem"),
        ({"erasing_mode": "noise"}, "task.erasing_mode=noise is not one of pixel, rand, const"),
        ({"erasing_count": 0}, "task.erasing_count=0 must be at least 1"),
    ],
)
def test_settings_are_checked(setting, message):
    with pytest.raises(UsageError, match=message):
        ClassificationSettings(**setting)
