"""The classification recipe on a handful of made-up pictures: objective, mixing, evaluator, predictor."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

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
    assert evaluator.compute() == {"top1": 100.0, "images": 3}  # top5 of three classes says nothing
    assert recipe.metric in evaluator.compute()
    assert evaluator.details()[1] == {"sample_id": "1", "score": 1.0}


def test_top_numbers_are_those_of_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 10, generator=generator), torch.randint(10, (50,), generator=generator)

    class Stub(torch.nn.Module):
        def class_logits(self, batch):
            return logits[batch["rows"]]

    evaluator = ClassificationEvaluator(10)
    for part in torch.arange(50).split(20):
        batch = {"rows": part, "label": labels[part], "sample_id": [str(i) for i in part.tolist()]}
        evaluator.update(Stub(), batch)
    again = ClassificationEvaluator(10)
    again.load_state_dict(json.loads(json.dumps(evaluator.state_dict())))
    numbers = again.compute()
    for top in (1, 5):
        accuracy = MulticlassAccuracy(10, top_k=top, average="micro")(logits, labels)
        assert numbers[f"top{top}"] == pytest.approx(100 * accuracy.item())


def test_predictor(records, trained):
    recipe, meta, objective, _ = trained
    predict = recipe.predictor(objective, meta)
    found = predict(records[1]["image"])
    assert found[0][0] == "green" and sum(p for _, p in found) == pytest.approx(1) and len(found) == 3
    assert predict(Image.new("RGB", (64, 20), COLOURS[2]), top=1)[0][0] == "blue"
    with pytest.raises(DataError, match=r"none\.png"):
        predict("none.png")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"smoothing": 1.0}, "task.smoothing=1.0 must be below 1"),
        ({"mixup": -1.0}, "task.mixup=-1.0 must not be negative"),
        ({"crop_pct": 1.5}, r"task.crop_pct=1.5 must lie in \(0, 1\], or null"),
        ({"mixup_prob": 2.0}, r"task.mixup_prob=2.0 must lie in \[0, 1\]"),
    ],
)
def test_settings_are_checked(setting, message):
    with pytest.raises(UsageError, match=message):
        ClassificationSettings(**setting)
