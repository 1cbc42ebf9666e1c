"""The NLVR2 recipe from end to end on a handful of made-up pairs; its forward pass beside VLMo's."""

from __future__ import annotations

import json
import logging
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from vlbeit.config import DataConfig, RunConfig, Settings, TextConfig
from vlbeit.data.records import ImageError, ListRecords
from vlbeit.data.stand_in import stand_in
from vlbeit.errors import DataError, UsageError
from vlbeit.models.convert import Hints, convert
from vlbeit.models.encoder import MoMEEncoder, join
from vlbeit.models.heads import Heads
from vlbeit.models.presets import PRESETS
from vlbeit.models.spec import EncoderSpec
from vlbeit.models.transfer import transfer
from vlbeit.tasks.nlvr2 import RECIPE as NLVR2
from vlbeit.tasks.nlvr2.evaluator import NLVR2Evaluator
from vlbeit.tasks.nlvr2.objective import NLVR2Objective, pair_heads
from vlbeit.tasks.nlvr2.task import NLVR2Settings

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30)}
GOLDEN = Path(__file__).parents[1] / "golden" / "vlmo"


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """All pairs of a red and a green picture, and two sentences about each."""
    folder, rows = tmp_path_factory.mktemp("pictures"), []
    for name, colour in COLOURS.items():
        Image.new("RGB", (40, 30), colour).save(folder / f"{name}.png")
    for pair, (left, right) in enumerate((a, b) for a in COLOURS for b in COLOURS):
        for number, (text, label) in enumerate(
            [("Both pictures are red.", left == right == "red"), ("The left picture is green.", left == "green")]
        ):
            rows.append(row(f"dev-0-{pair}-{number}", folder / f"{left}.png", folder / f"{right}.png", text, label))
    return ListRecords(rows)


def row(key, left, right, text, label):
    sentence = "-".join((*key.split("-")[:2], key.split("-")[3]))
    pictures = {"image_0": str(left), "image_1": str(right)}
    return {"id": key, **pictures, "text": text, "label": int(label), "sentence": sentence}


def config(**task):
    return RunConfig(
        stage=Settings(name="vl"),
        task=NLVR2Settings(name="nlvr2", **{"randaugment": False, **task}),
        model=replace(PRESETS["tiny"], embed_dim=32, depth=3, num_heads=2, fused_layers=1),
        data=DataConfig(image_size=32),
        text=TextConfig(vocab_size=200, max_length=12, positions=12),
    )


def batch_of(spec, count=None):
    rows = range(len(spec.records) if count is None else count)
    return spec.collate([spec.transform(spec.records[i]) for i in rows])


def built(records, **task):
    recipe = NLVR2(config(**task))
    meta = recipe.meta(records, {})
    torch.manual_seed(0)
    return recipe, meta, recipe.objective(meta)


@torch.no_grad()
def test_both_pictures_give_what_a_pass_of_vlmo_gives() -> None:
    """Weights, inputs and pooled tokens of the reference; its third type is a copy of the second one."""
    stem = GOLDEN / "vlmo_rel_pretrain"
    facts = json.loads(stem.with_suffix(".json").read_text())
    side, depth = facts["image_size"], facts["depth"]
    weights, tensors = load_file(f"{stem}.weights.safetensors"), load_file(f"{stem}.io.safetensors")
    source = EncoderSpec(
        embed_dim=facts["embed_dim"],
        depth=depth,
        num_heads=facts["num_heads"],
        image_size=(side, side),
        experts=("image", "text"),
        fused_layers=depth - facts["vlffn_start"],
        vocab_size=facts["vocab_size"],
        text_positions=facts["max_text_len_of_initckpt"],
    )
    target = replace(source, token_types=3)
    objective = NLVR2Objective(MoMEEncoder(target), Heads(pair_heads(48))).eval()
    report = transfer(objective, convert(weights, Hints(image_size=(side, side))).state, source, target)
    assert "encoder.type_embed.weight" in report.resized and {name.split(".")[1] for name in report.missing} == {"pair"}
    batch = {
        "image_0": tensors["in.image"],
        "image_1": tensors["in.image"].flip(0),
        "text_ids": tensors["in.text_ids"],
        "text_keep": tensors["in.text_masks"].bool(),
    }
    pooled = tensors["out.fused.pooled"]
    text = objective.encoder.embed_text(batch["text_ids"], batch["text_keep"])
    other = objective.encoder(join(text, objective.encoder.embed_image(batch["image_1"])))
    right = objective.heads["pooler"](other.x_BLD)
    torch.testing.assert_close(right[1], pooled[1], rtol=1e-5, atol=1e-5)  # the middle row is its own mirror image
    expected = objective.heads["pair"](torch.cat([pooled, right], dim=-1))
    torch.testing.assert_close(objective.pair_logits(batch), expected, rtol=1e-5, atol=1e-5)
    objective.encoder.type_embed.weight[2] += torch.linspace(-1, 1, 48)
    assert not torch.allclose(objective.pair_logits(batch), expected, atol=1e-3), "the right picture has its own type"


def test_samples(records):
    recipe, meta, _ = built(records)
    batch = batch_of(recipe.data(records, meta, train=False))
    assert batch["image_0"].shape == batch["image_1"].shape == (8, 3, 32, 32)
    assert batch["label"].tolist() == [1, 0, 0, 0, 0, 1, 0, 1] and batch["text_keep"].dtype == torch.bool
    left, right = batch["image_0"], batch["image_1"]
    assert torch.equal(left[2], right[4]) and not torch.equal(left[2], right[2])
    pickle.dumps(recipe.data(records, meta, train=True).transform)
    assert json.loads(json.dumps(meta)) == meta and meta["classes"] == ["false", "true"]
    assert recipe.data(records, meta, train=False).layout.lengths == [7, 8] * 4


def test_training_leaves_out_what_has_no_label(records, caplog):
    recipe, meta, objective = built(records)
    hidden = ListRecords([{**records[i], "label": -1 if i % 2 else 1} for i in range(8)])
    with caplog.at_level(logging.INFO):
        spec = recipe.data(hidden, meta, train=True)
    assert len(spec.records) == 4 and "4 of 8 statements have no label" in caplog.text
    batch = batch_of(recipe.data(hidden, meta, train=False))
    assert objective.counts(batch)["nlvr2"] == 4
    none = ListRecords([{**records[0], "label": -1}])
    with pytest.raises(DataError, match="no statement of the split 'train' has a label"):
        recipe.data(none, meta, train=True)
    with pytest.raises(DataError, match="no statement of the split 'val' has a label"):
        recipe.evaluators(none, meta)


def test_long_statements_are_said(records, caplog):
    recipe, meta, _ = built(records)
    long = ListRecords([{**records[0], "text": "red " * 30}, records[1]])
    recipe.data(long, meta, train=True)
    assert "1 of 2 statements are cut to text.max_length=12 tokens" in caplog.text


def test_loss_is_the_mean_over_statements(records):
    recipe, meta, objective = built(records)
    batch = batch_of(recipe.data(records, meta, train=False))
    objective.eval()
    counts = objective.counts(batch)
    out = objective(batch, counts)
    logits = objective.pair_logits(batch)
    expected = torch.nn.functional.cross_entropy(logits, batch["label"])
    torch.testing.assert_close(out.losses["nlvr2"], expected)
    halves = [{k: v[part] for k, v in batch.items()} for part in (slice(0, 3), slice(3, 8))]
    torch.testing.assert_close(sum(objective(half, counts).losses["nlvr2"] for half in halves), expected)
    assert out.logs["accuracy"][0] == (logits.argmax(1) == batch["label"]).sum() and out.logs["accuracy"][1] == 8


def test_padding_and_neighbours_change_nothing(records):
    recipe, meta, objective = built(records)
    batch = batch_of(recipe.data(records, meta, train=False))
    together = objective.eval().pair_logits(batch)
    for i in range(len(together)):
        alone = {name: batch[name][i : i + 1] for name in ("image_0", "image_1", "text_ids", "text_keep")}
        torch.testing.assert_close(objective.pair_logits(alone)[0], together[i], rtol=1e-4, atol=1e-5)
        padded = alone | {
            "text_ids": torch.nn.functional.pad(alone["text_ids"], (0, 3), value=1),
            "text_keep": torch.nn.functional.pad(alone["text_keep"], (0, 3)),
        }
        torch.testing.assert_close(objective.pair_logits(padded)[0], together[i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fused_layers", [0, 1, 3])
def test_every_trainable_parameter_gets_a_gradient(records, fused_layers):
    run = config()
    run.model.fused_layers = fused_layers
    recipe = NLVR2(run)
    meta = recipe.meta(records, {})
    objective = recipe.objective(meta)
    batch = batch_of(recipe.data(records, meta, train=True))
    sum(objective(batch, objective.counts(batch)).losses.values()).backward()
    trained = {name for group in recipe.param_groups(objective, run.optim) for name in group["names"]}
    assert trained == {name for name, p in objective.named_parameters() if p.requires_grad}
    assert not {name for name, p in objective.named_parameters() if p.requires_grad and p.grad is None}
    assert objective.encoder.type_embed.weight.grad.abs().sum(1).min() > 0, "all three types learn"


@pytest.fixture(scope="module")
def trained(records):
    recipe, meta, objective = built(records)
    batch = batch_of(recipe.data(records, meta, train=False))
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3, weight_decay=0)
    for _ in range(60):
        loss = sum(objective(batch, objective.counts(batch)).losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return recipe, meta, objective.eval(), loss.item()


def test_overfits_one_batch(records, trained):
    recipe, meta, objective, loss = trained
    assert loss < 0.1
    (evaluator,) = recipe.evaluators(records, meta).values()
    evaluator.update(objective, batch_of(recipe.data(records, meta, train=False)))
    numbers = evaluator.compute()
    assert numbers == {
        "accuracy": 100.0, "consistency": 100.0, "majority": 62.5, "judged_true": 37.5, "statements": 8.0,
        "sentences": 2.0,
    }  # fmt: skip
    assert recipe.metric in numbers


def test_predictor(records, trained):
    recipe, meta, objective, _ = trained
    predict = recipe.predictor(objective, meta)
    red, green = records[0]["image_0"], records[2]["image_1"]
    rows = predict([red, red], "both PICTURES are red.")
    assert rows[0][0] == "true" and rows[0][1] > 0.5 and sum(value for _, value in rows) == pytest.approx(1)
    assert predict((red, Image.open(green)), "Both pictures are red.", top=1)[0][0] == "false"
    assert predict([green, red], "the left picture is green.")[0][0] == "true"
    assert predict([red, green], "the left picture is green.")[0][0] == "false"
    for wrong in ((red, "text"), ([red], "text"), ([red, red], None), ([red, red], " ")):
        with pytest.raises(UsageError, match="needs two pictures and a statement"):
            predict(*wrong)
    with pytest.raises(ImageError, match=r"none\.png"):
        predict([red, "none.png"], "both are red")


def judged(records, true):
    evaluator = NLVR2Evaluator(records)
    evaluator.load_state_dict({"seen": true})
    return evaluator


def test_accuracy_and_consistency_are_counted_as_the_official_script_does(records):
    """Sentence 0: right of three pairs of four; sentence 1: of all four."""
    true = {records[i]["id"]: 0.9 if records[i]["label"] else 0.1 for i in range(8)}
    evaluator = judged(records, {**true, "dev-0-3-0": 0.7})
    numbers = evaluator.compute()
    assert (numbers["accuracy"], numbers["consistency"]) == (87.5, 50.0)
    rows = {each["sample_id"]: each for each in evaluator.details()}
    assert rows["dev-0-3-0"] == {
        "sample_id": "dev-0-3-0", "sentence": "dev-0-0", "prediction": "True", "probability": 0.7, "label": "False",
        "score": 0.0,
    }  # fmt: skip
    low, high = evaluator.intervals()["accuracy"]
    assert (low, high) == (75.0, 100.0), "sentences are drawn, not statements"
    unseen = judged(records, {key: value for key, value in true.items() if key != "dev-0-0-1"})
    assert unseen.compute()["accuracy"] == 87.5, "what was not seen is wrong"
    again = judged(records, json.loads(json.dumps(evaluator.state_dict()))["seen"])
    assert again.compute() == numbers


def test_dev_and_test_are_told_apart(records):
    both = [records[i] for i in range(8)]
    both += [row(each["id"].replace("dev", "test1"), "a", "b", each["text"], each["label"]) for each in both]
    true = {each["id"]: float(each["label"]) for each in both if each["id"].startswith("dev")}
    numbers = judged(ListRecords(both), true).compute()
    assert (numbers["accuracy_dev"], numbers["accuracy_test1"], numbers["accuracy"]) == (100.0, 0.0, 50.0)
    assert (numbers["consistency_dev"], numbers["consistency_test1"]) == (100.0, 0.0)


def test_judgements_of_all_processes_are_merged(records, monkeypatch):
    true = {records[i]["id"]: float(records[i]["label"]) for i in range(8)}
    parts = [dict(list(true.items())[:5]), dict(list(true.items())[4:])]
    monkeypatch.setattr("vlbeit.tasks.nlvr2.evaluator.gather_objects", lambda own: parts)
    assert NLVR2Evaluator(records).compute()["accuracy"] == 100.0


def test_a_picture_that_cannot_be_read_is_replaced_alone(records, tmp_path):
    broken = {**records[0], "image_1": str(tmp_path / "none.png")}
    found = stand_in(broken)
    assert found["image_0"] == broken["image_0"] and isinstance(found["image_1"], bytes)
    recipe, meta, _ = built(records)
    assert recipe.data(records, meta, train=False).transform(found)["image_1"].abs().max() < 0.02


def test_what_is_exported(records):
    recipe, meta, objective = built(records)
    offered = recipe.exported(objective.eval(), meta)
    for batch, text in ((1, 2), (3, 12)):
        assert offered.call(offered.example({"batch": batch, "text": text})).shape == (batch, 2)
    assert offered.facts["classes"] == ["false", "true"] and set(offered.axes) == set(
        offered.example({"batch": 1, "text": 2})
    )


def test_settings_are_checked():
    with pytest.raises(UsageError, match=r"task\.hflip=2"):
        NLVR2Settings(hflip=2)
