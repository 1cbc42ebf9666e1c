"""The retrieval recipe from end to end on a handful of made-up pairs."""

from __future__ import annotations

import json
import pickle
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file

from vlbeit.config import DataConfig, RunConfig, Settings, TextConfig
from vlbeit.data.loader import EvalLoader
from vlbeit.data.records import ListRecords
from vlbeit.engine.evaluate import run_evaluators
from vlbeit.errors import DataError, UsageError
from vlbeit.models.convert import Hints, convert
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.presets import PRESETS
from vlbeit.models.spec import EncoderSpec
from vlbeit.objectives.contrastive import ContrastRule
from vlbeit.objectives.global_contrast import GlobalContrast
from vlbeit.tasks.retrieval import RECIPE as Retrieval
from vlbeit.tasks.retrieval.objective import RetrievalObjective, retrieval_heads
from vlbeit.tasks.retrieval.task import RetrievalSettings

GOLDEN = Path(__file__).parents[1] / "golden" / "vlmo" / "vlmo_rel_pretrain"
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "grey": (128, 128, 128)}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Four pictures of one colour with two captions each, those of a picture apart from each other."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, colour in COLOURS.items():
        Image.new("RGB", (40, 30), colour).save(folder / f"{name}.png")
    texts = [("It is {}.", name) for name in COLOURS] + [("A wall in {}, seen from the street.", n) for n in COLOURS]
    return ListRecords(
        [
            {
                "id": str(number),
                "image": str(folder / f"{name}.png"),
                "text": text.format(name),
                "picture": str(folder / f"{name}.png"),
            }
            for number, (text, name) in enumerate(texts)
        ]
    )


def config(stage="vl", **task):
    return RunConfig(
        stage=Settings(name=stage),
        task=RetrievalSettings(name="retrieval", randaugment=False, **task),
        model=replace(PRESETS["tiny"], embed_dim=32, depth=3, num_heads=2, fused_layers=1, drop_path=0.0),
        data=DataConfig(image_size=32, workers=0),
        text=TextConfig(vocab_size=200, max_length=12, positions=12),
        global_batch_size=8,
    )


def built(records, **task):
    recipe = Retrieval(config(**task))
    meta = recipe.meta(records, {})
    torch.manual_seed(0)
    return recipe, meta, recipe.objective(meta)


def batch_of(spec, count=None):
    rows = range(len(spec.records) if count is None else count)
    return spec.collate([spec.transform(spec.records[row]) for row in rows])


def evaluated(recipe, meta, objective, records):
    """The evaluator after it has seen the records, and its numbers."""
    spec = recipe.data(records, meta, train=False)
    evaluators = recipe.evaluators(records, meta)
    loader = EvalLoader(spec, batch_size=3, workers=0, max_bad_fraction=1.0)
    return evaluators["retrieval"], run_evaluators(objective, loader, evaluators, Accelerator(cpu=True), 4)


def fitted(records, **task):
    recipe, meta, objective = built(records, **task)
    batch = batch_of(recipe.data(records, meta, train=True))
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3, weight_decay=0)
    for step in range(70):
        torch.manual_seed(step)
        losses = objective(batch, objective.counts(batch)).losses
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    return recipe, meta, objective, {name: loss.item() for name, loss in losses.items()}


@pytest.fixture(scope="module")
def trained(records):
    return fitted(records, matching_weight=1.0, rerank=2)


def test_settings_are_checked():
    for wrong in ({"matching_weight": -1}, {"rerank": -1}, {"min_scale": 0}, {"hflip": 2}):
        with pytest.raises(UsageError, match=rf"task\.{next(iter(wrong))}="):
            RetrievalSettings(**wrong)


def test_samples(records):
    recipe, meta, _ = built(records)
    assert json.loads(json.dumps(meta)) == meta
    spec = recipe.data(records, meta, train=True)
    batch = batch_of(spec)
    assert batch["image"].shape == (8, 3, 32, 32) and batch["sample_id"] == [str(n) for n in range(8)]
    assert batch["picture"][:4].tolist() == batch["picture"][4:].tolist() and len(set(batch["picture"].tolist())) == 4
    plain = recipe.data(records, meta, train=False)
    assert len(plain.records) == 4
    batch = batch_of(plain, 3)
    assert batch["image"].shape == (3, 3, 32, 32) and batch["place"].tolist() == [0, 1, 2]
    assert batch["rows"].tolist() == [0, 4, 1, 5, 2, 6] and batch["text_ids"].shape[0] == 6
    assert (
        batch["text_keep"].sum(1).tolist()
        == batch["text_keep"]
        .long()
        .argmin(1)
        .where(~batch["text_keep"].all(1), torch.tensor(batch["text_ids"].shape[1]))
        .tolist()
    )
    pickle.dumps([spec, plain])


@pytest.mark.parametrize("task", [{}, {"rerank": 2}, {"matching_weight": 0.5}])
@pytest.mark.parametrize("stage", ["vl", "mim"])
def test_every_trainable_parameter_gets_a_gradient(records, task, stage):
    recipe = Retrieval(config(stage, **task))
    meta = recipe.meta(records, {})
    objective = recipe.objective(meta)
    batch = batch_of(recipe.data(records, meta, train=True))
    sum(objective(batch, objective.counts(batch)).losses.values()).backward()
    groups = recipe.param_groups(objective, recipe.config.optim)
    trained = {name for group in groups for name in group["names"]}
    assert trained == {name for name, p in objective.named_parameters() if p.grad is not None}
    kept = {name for name, p in objective.named_parameters() if not p.requires_grad}
    fused = "encoder.blocks.2.experts.fused.mlp.fc1.weight"
    assert (fused in trained) == ("matching_weight" in task) and (fused in kept) == ("rerank" in task)
    assert {f"encoder.rel_pos.{layer}.cross" for layer in range(3)} <= (trained if "matching_weight" in task else kept)


def test_overfits_one_batch(trained):
    assert trained[3]["itc"] < 0.1 and trained[3]["itm"] < 0.5, "another caption of a picture is no wrong one"


def test_cached_gradients_are_those_of_the_whole_batch(records):
    """Two micro-batches of a step, as the engine shows them to the objective, against the step as one."""
    grads = {}
    for size in (8, 4):
        recipe, meta, objective = built(records, matching_weight=1.0, negatives="hardest")
        objective.double()
        pairs = recipe.data(records, meta, train=True)
        torch.manual_seed(1)
        samples = [pairs.transform(pairs.records[row]) for row in range(8)]
        batches = [pairs.collate(samples[start : start + size]) for start in range(0, 8, size)]
        for batch in batches:
            batch["image"] = batch["image"].double()
        with torch.no_grad():
            surveyed = objective.survey(batches, lambda index, b=batches, o=objective: o(b[index], {}).seen)
        assert (surveyed is batches) == (size == 8), "one micro-batch needs no survey"
        parts = [objective.counts(batch) for batch in surveyed]
        counts = {name: sum(part[name] for part in parts).double() for name in parts[0]}
        for batch in surveyed:
            sum(objective(batch, counts).losses.values()).backward()
        grads[size] = {name: p.grad for name, p in objective.named_parameters()}
    for name, grad in grads[8].items():
        torch.testing.assert_close(grads[4][name], grad, rtol=1e-6, atol=1e-9, msg=name)


@torch.no_grad()
def test_golden_vectors_and_match_logits():
    """The dual encoder and the matching head of the reference, on its own weights."""
    facts, io = json.loads(GOLDEN.with_suffix(".json").read_text()), load_file(f"{GOLDEN}.io.safetensors")
    image = {"image_size": (64, 64), "experts": ("image", "text"), "fused_layers": 1}
    text = {"vocab_size": 120, "text_positions": 20}
    encoder = MoMEEncoder(EncoderSpec(facts["embed_dim"], facts["depth"], facts["num_heads"], **image, **text))
    objective = RetrievalObjective(encoder, retrieval_heads(48, "softmax", True), GlobalContrast(ContrastRule(), None))
    weights = convert(load_file(f"{GOLDEN}.weights.safetensors"), Hints(image_size=(64, 64))).state
    objective.load_state_dict({name: weights[name] for name in objective.state_dict()})
    objective.eval()
    ids, keep = io["in.text_ids"], io["in.text_masks"].bool()
    image_BE, text_BE = objective.image_vectors(io["in.image"]), objective.text_vectors(ids, keep)
    torch.testing.assert_close(image_BE, io["out.image.itc"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(text_BE, io["out.text.itc"], rtol=1e-5, atol=1e-5)
    logits = objective.match_logits(ids, keep, encoder.embed_image(io["in.image"]))
    torch.testing.assert_close(logits, io["out.itm.logits_positive"], rtol=1e-5, atol=1e-5)


def test_numbers_of_the_whole_split(records, trained):
    recipe, meta, objective, _ = trained
    evaluator, numbers = evaluated(recipe, meta, objective, records)
    assert numbers["txt_r1"] == numbers["img_r1"] == 100 and numbers["recall_mean"] == 100
    assert numbers["pictures"] == 4 and numbers["captions"] == 8 and 50 < numbers["chance"] < 80
    assert numbers["reranked_img_r1"] == 100
    low, high = evaluator.intervals()["recall_mean"]
    assert low == high == 100
    values, tables = evaluator.report({})
    assert json.dumps(values) and [row["R@1"] for row in tables[0][:2]] == [100, 100]
    assert [row.get("candidates") for row in tables[0]] == [8, 4, 8, 4, None, None]
    details = evaluator.details()
    assert len({row["sample_id"] for row in details}) == len(details) == 12
    assert all(row["score"] == 1 and row["rank"] == 1 and row["reranked_rank"] in (1, 2) for row in details)
    found = {row["sample_id"]: row["first"] for row in details}
    assert found["caption 6"] == f"picture {records[6]['picture']}"


def test_a_picture_that_cannot_be_read_is_counted_and_loses(records, trained, tmp_path, caplog):
    recipe, meta, objective, _ = trained
    rows = [records[row] for row in range(8)]
    for row in (2, 6):
        rows[row]["image"] = str(tmp_path / "gone.png")
    evaluator, numbers = evaluated(recipe, meta, objective, ListRecords(rows))
    assert numbers["unreadable"] == 1 and numbers["pictures"] == 4 and "gone.png does not exist" in caplog.text
    lost = [row for row in evaluator.details() if row["sample_id"].endswith("blue.png")]
    assert lost[0]["score"] == 0 and numbers["txt_r1"] == 75


def test_features_are_computed_once(records, trained, monkeypatch):
    recipe, meta, objective, _ = trained
    seen = {"image_vectors": 0, "text_vectors": 0}
    for name, vectors in [(name, getattr(objective, name)) for name in seen]:

        def counted(x, *rest, name=name, vectors=vectors):
            seen[name] += len(x)
            return vectors(x, *rest)

        monkeypatch.setattr(objective, name, counted)
    evaluated(recipe, meta, objective, records)
    assert seen == {"image_vectors": 4, "text_vectors": 8}


def test_pairs_are_scored_as_the_fused_pass_scores_them(records, trained):
    recipe, meta, objective, _ = trained
    evaluator = recipe.evaluators(records, meta)["retrieval"]
    pairs = np.array([0, 7, 8, 9, 30])  # place * 8 captions + row
    objective.eval()
    with torch.no_grad():
        found = evaluator.scores(objective, pairs)
        spec = recipe.data(records, meta, train=False)
        image = batch_of(spec)["image"]
        for pair, score in zip(pairs.tolist(), found, strict=True):
            ids = torch.tensor([recipe._tokenizer(meta)(records[pair % 8]["text"])])
            picture = objective.encoder.embed_image(image[pair // 8][None])
            mismatch, match = objective.match_logits(ids, None, picture)[0]
            assert score == pytest.approx(float(match - mismatch), abs=1e-5)


def test_vectors_survive_in_the_state(records, trained):
    recipe, meta, objective, _ = trained
    _, numbers = evaluated(recipe, meta, objective, records)
    first, second = (recipe.evaluators(records, meta)["retrieval"] for _ in range(2))
    spec = recipe.data(records, meta, train=False)
    objective.eval()
    samples = [spec.transform(spec.records[row]) for row in range(4)]
    first.update(objective, spec.collate(samples[:1]))
    second.load_state_dict(first.state_dict())
    second.update(objective, spec.collate(samples[1:]))
    assert second.compute() == pytest.approx(numbers)


def test_a_matching_head_that_nobody_trained_is_refused(records):
    recipe, _, objective = built(records, rerank=2)
    with pytest.raises(UsageError, match=r"task\.rerank=2: the run starts without a trained matching head"):
        recipe.prepare(objective, {"val": records}, Accelerator(cpu=True))
    with torch.no_grad():
        objective.heads["match"].weight.normal_()
    recipe.prepare(objective, {"val": records}, Accelerator(cpu=True))
    built(records, rerank=2, matching_weight=1)[0].prepare(objective, {"val": records}, Accelerator(cpu=True))


def test_a_single_pair_or_picture_is_not_trained_on(records):
    recipe, _, objective = built(records)
    alone = {"micro_batch_size": 1, "task": replace(recipe.settings, cache_gradients=False)}
    for more in ({"global_batch_size": 1}, alone):
        with pytest.raises(UsageError, match=r"task=.* needs a global_batch_size and a micro_batch_size of at least 2"):
            Retrieval(replace(recipe.config, **more)).check()
    recipe.check()
    with pytest.raises(DataError, match="of one picture"):
        splits = {"train": ListRecords([records[0], records[4]]), "val": records}
        recipe.prepare(objective, splits, Accelerator(cpu=True))


def test_a_run_without_a_matching_head_says_how_to_get_one(records):
    recipe, _, _ = built(records)
    assert "train with task.matching_weight=1" in recipe.without(["heads.match.weight", "heads.pooler.dense.weight"])
    assert recipe.without(["heads.other"]) == "leave that out"


def test_pictures_of_both_splits_are_said(records, caplog):
    recipe, _, objective = built(records)
    recipe.prepare(objective, {"train": records, "val": ListRecords([records[0], records[4]])}, Accelerator(cpu=True))
    assert "1 of the 1 pictures of data.val_split=val are trained on too" in caplog.text


class ManyPictures:
    """Pairs whose names of pictures are made when they are asked for."""

    def column(self, name):
        assert name == "picture"
        return map(str, range(100_000))


def test_names_of_pictures_are_looked_through_one_by_one(records, caplog):
    recipe, _, _ = built(records)
    tracemalloc.start()
    try:
        recipe._warn_of_pictures(ManyPictures(), ListRecords([{"picture": "7"}, {"picture": "x"}]))
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()
    assert "1 of the 2 pictures of data.val_split=val are trained on too" in caplog.text


def test_the_best_texts_and_pictures(records, trained, tmp_path):
    recipe, meta, objective, _ = trained
    recipe = Retrieval(replace(recipe.config, task=replace(recipe.settings, rerank=0)))
    recipe.config.data.cache = str(tmp_path)
    predictor = recipe.predictor(objective, meta)
    found = predictor(records[2]["image"], "It is red.\n\nIt is blue.\nIt is green.", top=2)
    assert found[0].text == "It is blue." and len(found) == 2 and found[0].similarity > found[1].similarity
    with pytest.raises(UsageError, match="--images DIR"):
        predictor(records[2]["image"])
    folder = records[0]["image"].rpartition("/")[0]
    pictures = predictor.pictures("It is green.", folder, top=9)
    assert pictures[0].picture == records[1]["image"] and len(pictures) == 4
    again = Retrieval(replace(recipe.config, task=replace(recipe.settings, rerank=3))).predictor(objective, meta)
    again.data.cache = str(tmp_path)
    matched = again.pictures("It is green.", folder, top=2)
    assert len(matched) == 2 and matched[0].picture == records[1]["image"] and matched[0].score > matched[1].score
    odds = [float(np.log(row.match / (1 - row.match))) for row in matched]
    expected = [objective.scale * row.similarity + odd for row, odd in zip(matched, odds, strict=True)]
    assert [row.score for row in matched] == pytest.approx(expected, abs=1e-3)
    assert again(records[2]["image"], "It is red.\nIt is blue.", top=1)[0].text == "It is blue."
    assert predictor.texts(records[2]["image"], [" ", "It is blue. ", "It is blue."], top=5)[0].text == "It is blue."
    for wrong, said in (
        ("It is blue.", r"a list of strings: give \[text"),
        (["It is blue.", None], "a list of strings"),
        (["", " "], "no texts"),
    ):
        with pytest.raises(UsageError, match=said):
            predictor.texts(records[2]["image"], wrong)
    with pytest.raises(DataError, match="nowhere is no folder"):
        predictor.pictures("It is blue.", tmp_path / "nowhere")


def test_a_picture_that_is_deleted_while_it_is_searched_is_left_out(records, trained, tmp_path, caplog, monkeypatch):
    recipe, meta, objective, _ = trained
    (tmp_path / "pictures").mkdir()
    paths = [shutil.copy(records[row]["image"], tmp_path / "pictures") for row in range(3)]
    recipe = Retrieval(replace(recipe.config, task=replace(recipe.settings, rerank=3)))
    recipe.config.data.cache = str(tmp_path / "cache")
    predictor = recipe.predictor(objective, meta)
    whole = predictor.pictures("It is green.", tmp_path / "pictures")
    matches = predictor._matches
    monkeypatch.setattr(predictor, "_matches", lambda *given: (Path(paths[0]).unlink(), matches(*given))[1])
    found = predictor.pictures("It is green.", tmp_path / "pictures")
    assert len(whole) == 3 and [row.picture for row in found] == [
        each.picture for each in whole if each.picture != paths[0]
    ]
    assert "1 pictures cannot be read any more and are left out" in caplog.text
