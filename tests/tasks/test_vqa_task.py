"""The VQA recipe from end to end on a handful of made-up questions."""

from __future__ import annotations

import json
import logging
import pickle
from dataclasses import replace

import pytest
import torch
from PIL import Image

from vlbeit.config import DataConfig, RunConfig, Settings, TextConfig
from vlbeit.data.records import ListRecords
from vlbeit.errors import DataError, UsageError
from vlbeit.models.presets import PRESETS
from vlbeit.tasks.vqa import RECIPE as VQA
from vlbeit.tasks.vqa.answering import Answering
from vlbeit.tasks.vqa.evaluator import VQAEvaluator
from vlbeit.tasks.vqa.task import VQASettings

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Three pictures of one colour, two questions each, and one question that no vocabulary knows."""
    folder, rows = tmp_path_factory.mktemp("pictures"), []
    for number, (name, colour) in enumerate(COLOURS.items()):
        path = folder / f"{number}.png"
        Image.new("RGB", (40, 30), colour).save(path)
        for question, answer, kind in (("What color is it?", name, "other"), ("Is it red?", "no", "yes/no")):
            answers = ["yes" if kind == "yes/no" and name == "red" else answer] * 9 + ["maybe"]
            rows.append(row(len(rows), path, number, question, answers, kind))
    rows.append(row(len(rows), path, number, "What is it?", [f"rare {i}" for i in range(10)], "other"))
    return ListRecords(rows)


def row(number, path, image_id, question, answers, kind):
    return {
        "id": str(1000 + number),
        "image": str(path),
        "question": question,
        "question_id": 1000 + number,
        "image_id": image_id,
        "question_type": " ".join(question.split()[:2]).lower(),
        "answer_type": kind,
        "answers": answers,
        "multiple_choice_answer": "",
    }


def config(stage="vl", **task):
    settings = {"min_count": 1, "randaugment": False, **task}
    return RunConfig(
        stage=Settings(name=stage),
        task=VQASettings(name="vqa", **settings),
        model=replace(PRESETS["tiny"], embed_dim=32, depth=3, num_heads=2, fused_layers=1),
        data=DataConfig(image_size=32),
        text=TextConfig(vocab_size=200, max_length=12, positions=12),
    )


def batch_of(spec, count=None):
    rows = range(len(spec.records) if count is None else count)
    return spec.collate([spec.transform(spec.records[i]) for i in rows])


def built(records, **task):
    recipe = VQA(config(**task))
    meta = recipe.meta(records, {})
    torch.manual_seed(0)
    return recipe, meta, recipe.objective(meta)


def test_meta_is_json_and_follows_the_records(records):
    recipe = VQA(config(min_count=2))
    meta = recipe.meta(records, {})
    assert meta["answers"] == ["no"]
    assert json.loads(json.dumps(meta)) == meta
    assert recipe.meta(records, {**meta, "answers": ["x", "y"]})["answers"] == ["x", "y"]
    assert VQA(config(min_count=2, answers="own")).meta(records, {"answers": ["x"]})["answers"] == ["no"]


def test_too_high_min_count_names_the_remedy(records):
    with pytest.raises(UsageError, match=r"lower task\.min_count"):
        VQA(config(min_count=100)).meta(records, {})


def test_settings_are_checked():
    with pytest.raises(UsageError, match="min_count=0"):
        VQASettings(min_count=0)


def test_answers_of_a_file(records, tmp_path):
    (tmp_path / "answers.json").write_text('["yes", "no"]')
    assert VQA(config(answers=str(tmp_path / "answers.json"))).meta(records, {"answers": ["x"]})["answers"] == [
        "yes",
        "no",
    ]
    with pytest.raises(UsageError, match=r"task\.answers=all is not auto, own or a file"):
        VQA(config(answers="all")).meta(records, {})


def test_samples_and_targets(records):
    recipe, meta, _ = built(records)
    batch = batch_of(recipe.data(records, meta, train=False))
    assert batch["image"].shape == (7, 3, 32, 32) and batch["sample_id"][0] == "1000"
    assert batch["target"].shape == (7, len(meta["answers"]))
    assert batch["target"][0].tolist() == [float(answer == "red") for answer in meta["answers"]]
    assert batch["text_keep"].dtype == torch.bool and batch["text_keep"].sum(1).min() < batch["text_keep"].shape[1]


def test_training_leaves_out_unknown_answers_and_says_so(records, caplog):
    recipe = VQA(config(min_count=2))
    with caplog.at_level(logging.INFO):
        spec = recipe.data(records, {**recipe.meta(records, {}), "answers": ["red", "no"]}, train=True)
    assert [spec.records[i]["question_id"] for i in range(len(spec.records))] == [1000, 1003, 1005]
    assert list(spec.records.column("question_id")) == [1000, 1003, 1005]
    assert "4 of 7 training questions (57.1 %)" in caplog.text
    pickle.dumps(spec.transform)
    with pytest.raises(DataError, match="none of the 7 training questions"):
        recipe.data(records, {**recipe.meta(records, {}), "answers": ["zebra"]}, train=True)


def test_loss_is_summed_over_answers_and_averaged_over_questions(records):
    recipe, meta, objective = built(records)
    batch = batch_of(recipe.data(records, meta, train=False))
    objective.eval()
    counts = objective.counts(batch)
    assert counts["vqa"] == 7
    out = objective(batch, counts)
    logits = objective.answer_logits(batch)
    expected = torch.nn.BCEWithLogitsLoss()(logits, batch["target"]) * logits.shape[1]
    torch.testing.assert_close(out.losses["vqa"], expected)
    halves = [{k: v[part] for k, v in batch.items()} for part in (slice(0, 3), slice(3, 7))]
    torch.testing.assert_close(sum(objective(half, counts).losses["vqa"] for half in halves), expected)
    torch.testing.assert_close(out.logs["vqa"][0] / out.logs["vqa"][1], expected.detach())
    chosen = logits.argmax(1)
    assert out.logs["score"][0] == sum(batch["target"][i, chosen[i]] for i in range(7))


@pytest.mark.parametrize("fused_layers", [0, 1, 3])
def test_every_trainable_parameter_gets_a_gradient(records, fused_layers):
    run = config()
    run.model.fused_layers = fused_layers
    recipe = VQA(run)
    meta = recipe.meta(records, {})
    objective = recipe.objective(meta)
    batch = batch_of(recipe.data(records, meta, train=True))
    sum(objective(batch, objective.counts(batch)).losses.values()).backward()
    groups = recipe.param_groups(objective, run.optim)
    trained = {name for group in groups for name in group["names"]}
    assert trained == {name for name, p in objective.named_parameters() if p.requires_grad}
    unreached = {name for name, p in objective.named_parameters() if p.requires_grad and p.grad is None}
    assert not unreached
    frozen = {name for name, p in objective.named_parameters() if not p.requires_grad}
    assert all(".experts.image." in name or ".experts.text." in name for name in frozen)
    assert bool(frozen) == (fused_layers > 0)


def test_the_head_alone_learns_faster(records):
    run = config()
    run.optim.head_lr_scale, run.optim.weight_decay = 20.0, 0.01
    recipe = VQA(run)
    scales = {
        name: group["lr_scale"]
        for group in recipe.param_groups(recipe.objective(recipe.meta(records, {})), run.optim)
        for name in group["names"]
    }
    fast = {name for name, scale in scales.items() if scale == 20.0}
    assert fast == {name for name in scales if name.startswith("heads.answer.")}
    assert {scales[name] for name in scales.keys() - fast} == {1.0}


def fitted(records):
    recipe, meta, objective = built(records)
    batch = batch_of(recipe.data(records, meta, train=False), 6)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3, weight_decay=0)
    for _ in range(200):
        loss = sum(objective(batch, objective.counts(batch)).losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return recipe, meta, objective, loss.item()


@pytest.fixture(scope="module")
def trained(records):
    return fitted(records)


def test_overfits_one_batch(trained):
    assert trained[3] < 0.1


def test_evaluator(records, trained, monkeypatch):
    recipe, meta, objective, _ = trained
    monkeypatch.setattr("vlbeit.tasks.vqa.task.open_records", lambda data, kind, split: records)
    (evaluator,) = recipe.evaluators(records, meta).values()
    objective.eval()
    spec = recipe.data(records, meta, train=False)
    evaluator.update(objective, batch_of(spec))
    evaluator.update(objective, batch_of(spec, 2))  # seen twice, counted once
    numbers = evaluator.compute()
    assert list(numbers) == ["overall", "yes/no", "other", "questions", "blind"]
    assert numbers["questions"] == 7 and numbers["yes/no"] == 100.0
    assert 75.0 <= numbers["other"] <= 82.5  # three of four, and at most 30 % of the rare one
    assert recipe.metric in numbers and numbers["blind"] < 70
    rows = evaluator.details()
    assert [r["question_id"] for r in rows] == list(range(1000, 1007)) and rows[0] == {
        "question_id": 1000,
        "answer": "red",
        "score": 1.0,
        "answer_type": "other",
        "question_type": "what color",
    }
    assert evaluator.compute() == numbers


def test_evaluator_state_goes_through_json(records, trained):
    recipe, meta, objective, _ = trained
    first = VQAEvaluator(records, Answering(meta["answers"]), lambda: None)
    first.update(objective.eval(), batch_of(recipe.data(records, meta, train=False)))
    second = VQAEvaluator(records, Answering(meta["answers"]), lambda: None)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.compute() == first.compute() and "blind" not in second.compute()


def test_an_unanswered_question_scores_nothing(records):
    evaluator = VQAEvaluator(records, Answering(["no"]), lambda: None)
    evaluator.load_state_dict({"predictions": {"1001": "no"}})
    assert evaluator.compute()["questions"] == 7
    assert {row["question_id"]: row["score"] for row in evaluator.details()}[1003] == 0.0


def test_blind_is_left_out_without_training_records(records, caplog):
    recipe = VQA(config())
    recipe.config.data.root = "nowhere"
    assert recipe._blind_guess is None and recipe._blind_guess is None
    assert caplog.text.count("no blind baseline") == 1 and "nowhere" in caplog.text


def test_predictor(records, trained):
    recipe, meta, objective, _ = trained
    predict = recipe.predictor(objective, meta)
    answers = predict(records[0]["image"], "What color is it?", top=2)
    assert [type(part) for part in answers[0]] == [str, float] and len(answers) == 2
    assert answers[0][0] == "red" and 0.5 < answers[0][1] <= 1 and answers[0][1] >= answers[1][1]
    assert predict(Image.new("RGB", (50, 20), COLOURS["green"]), "what COLOR is it?")[0][0] == "green"
    assert len(predict(records[0]["image"], "Is it red?", top=1000)) == len(meta["answers"])
    with pytest.raises(UsageError, match="needs a question"):
        predict(records[0]["image"])
    with pytest.raises(DataError, match=r"none\.png"):
        predict("none.png", "Is it red?")


def test_answer_file(records, trained, tmp_path):
    recipe, meta, objective, _ = trained
    sheet = recipe.submission(records, meta)
    spec = recipe.data(records, meta, train=False)
    answers = sheet.answer(objective.eval(), batch_of(spec, 6))
    with pytest.raises(DataError, match=r"without an answer: 1 \(1006\)"):
        sheet.write(tmp_path / "answers.json", answers)
    assert not (tmp_path / "answers.json").exists()
    assert sheet.write(tmp_path / "answers.json", sheet.answer(objective, batch_of(spec))) == 7
    written = json.loads((tmp_path / "answers.json").read_text())
    assert written[0] == {"question_id": 1000, "answer": "red"}
    twice = ListRecords([{**records[i], "id": str(i), "question_id": 1000 + i // 2} for i in range(3)])
    with pytest.raises(DataError, match=r"stand for two questions: 1 \(1000\)"):
        recipe.submission(twice, meta)


def test_questions_without_annotations_can_be_answered(records, trained):
    recipe, meta, objective, _ = trained
    hidden = ListRecords([{**records[i], "answers": [], "answer_type": "", "question_type": ""} for i in range(3)])
    batch = batch_of(recipe.data(hidden, meta, train=False))
    assert not batch["target"].any()
    evaluator = VQAEvaluator(hidden, Answering(meta["answers"]), lambda: None)
    evaluator.update(objective.eval(), batch)
    with pytest.raises(DataError, match="no human answers"):
        evaluator.compute()


def test_padding_does_not_change_an_answer(records, trained):
    recipe, meta, objective, _ = trained
    batch = batch_of(recipe.data(records, meta, train=False))
    together = objective.eval().answer_logits(batch)
    for i in range(len(together)):
        length = int(batch["text_keep"][i].sum())
        alone = {"image": batch["image"][i : i + 1]}
        alone |= {name: batch[name][i : i + 1, :length] for name in ("text_ids", "text_keep")}
        torch.testing.assert_close(objective.answer_logits(alone)[0], together[i], rtol=1e-4, atol=1e-4)


def test_answers_of_all_processes_are_merged(records, monkeypatch):
    """Two processes that both answered question 1003, as a sampler that pads would have them."""
    parts = [{key: "no" for key in range(1000, 1004)}, {key: "no" for key in range(1003, 1007)}]
    monkeypatch.setattr("vlbeit.tasks.vqa.evaluator.gather_objects", lambda own: parts)
    assert VQAEvaluator(records, Answering(["no"]), lambda: None).compute()["questions"] == 7


def test_images_that_are_trained_and_evaluated_on_are_named(records, caplog):
    task = VQA(config())
    with caplog.at_level(logging.WARNING):
        task.prepare(None, {"val": records}, None)
        others = ListRecords([{**records[row], "image_id": 90 + row} for row in range(len(records))])
        task.prepare(None, {"train": records, "val": others}, None)
        assert caplog.text == ""
        task.prepare(
            None, {"train": records, "val": ListRecords([records[0], records[1], records[2], others[3]])}, None
        )
    assert "2 of the 3 images of data.val_split=val are trained on too (data.train_split=train): " in caplog.text
    assert "rest_val" not in caplog.text  # only VQA v2 has it
