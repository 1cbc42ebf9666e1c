"""How VQA reads pictures and questions: sizes, batches, long questions, flips, runs that answer together."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from PIL import Image

from vlbeit import chain
from vlbeit.config import DataConfig, RunConfig, Settings, TextConfig
from vlbeit.data.collate import collate
from vlbeit.data.loader import EvalLoader, TrainLoader
from vlbeit.data.records import ListRecords
from vlbeit.data.text import train_wordpiece
from vlbeit.errors import UsageError
from vlbeit.models.presets import PRESETS
from vlbeit.tasks.vqa import RECIPE as VQA
from vlbeit.tasks.vqa.task import VQASettings

SIZES = [(40, 30), (30, 40), (40, 40), (60, 20)]  # width, height
QUESTIONS = ["what color is it", "is it red", "is the dog left of the cat or is it on the other side of it"]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    """Sizes of pictures are kept there."""
    monkeypatch.setenv("VLBEIT_CACHE", str(tmp_path))


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Eight pictures of four shapes, three questions each; those of one picture are not side by side."""
    folder, rows = tmp_path_factory.mktemp("pictures"), []
    for number in range(8):
        colour = (25 * number, 255 - 30 * number, 100)
        Image.new("RGB", SIZES[number % 4], colour).save(folder / f"{number}.png")
    for kind, question in enumerate(QUESTIONS):
        for number in range(8):
            rows.append(
                {
                    "id": str(len(rows)),
                    "image": str(folder / f"{number}.png"),
                    "question": question,
                    "question_id": len(rows),
                    "image_id": number,
                    "question_type": "what",
                    "answer_type": "other",
                    "answers": [("red", "yes", "left")[kind]] * 10,
                    "multiple_choice_answer": ("red", "yes", "left")[kind],
                }
            )
    return ListRecords(rows)


def config(stage="vl", positions="relative", resize="square", max_length=10, **task):
    return RunConfig(
        stage=Settings(name=stage),
        task=VQASettings(name="vqa", **{"min_count": 1, "randaugment": False, **task}),
        model=replace(PRESETS["tiny"], embed_dim=32, depth=3, num_heads=2, fused_layers=1, positions=positions),
        data=DataConfig(image_size=64, resize=resize),
        text=TextConfig(vocab_size=200, max_length=max_length, positions=24),
    )


def built(records, seed=0, **keys):
    recipe = VQA(config(**keys))
    meta = recipe.meta(records, {})
    torch.manual_seed(seed)
    objective = recipe.objective(meta)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return recipe, meta, objective.eval()


def shapes(batches):
    return {tuple(batch["image"].shape[2:]) for batch in batches}


def test_native_pictures_are_trained_on_in_batches_of_one_grid(records):
    recipe, meta, objective = built(records, resize="native")
    spec = recipe.data(records, meta, train=True)
    loader = TrainLoader(spec, seed=0, global_batch_size=8, micro_batch_size=4, workers=0, max_bad_fraction=0)
    batches = [batch for step in loader.steps(0, 3) for batch in step]
    assert sorted(int(name) for batch in batches for name in batch["sample_id"]) == list(range(24))
    assert {(48, 64), (64, 48), (64, 64)} <= shapes(batches) <= {(48, 64), (64, 48), (64, 64), (16, 64)}
    for batch in batches:
        objective(batch, objective.counts(batch)).losses["vqa"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.parameters() if p.requires_grad)


@pytest.mark.parametrize("resize", ["square", "pad", "native"])
@pytest.mark.parametrize("positions", ["relative", "absolute"])
def test_batches_of_evaluation_answer_as_one_question_at_a_time(records, resize, positions):
    recipe, meta, objective = built(records, resize=resize, positions=positions)
    spec = recipe.data(records, meta, train=False)
    batches = list(EvalLoader(spec, batch_size=6, workers=0, max_bad_fraction=0))
    assert len(shapes(batches)) == (4 if resize == "native" else 1)
    predict = recipe.predictor(objective, meta)
    found = {}
    for batch in batches:
        found |= dict(zip(batch["sample_id"], recipe._answering(meta)(objective, batch), strict=True))
    assert len(found) == 24
    for index in range(24):
        record, probabilities = records[index], found[str(index)]
        alone = dict(predict(record["image"], record["question"], top=9))
        torch.testing.assert_close(
            torch.tensor([alone[answer] for answer in meta["answers"]]), probabilities, rtol=1e-4, atol=1e-5
        )


def test_batches_of_evaluation_have_little_padding(records):
    recipe, meta, _ = built(records)
    spec = recipe.data(records, meta, train=False)
    padding = []
    for one in (spec, spec._replace(layout=type(spec.layout)())):
        batches = EvalLoader(one, batch_size=6, workers=0, max_bad_fraction=0)
        padding.append(sum(int((~batch["text_keep"]).sum()) for batch in batches))
    assert padding[0] < padding[1]


def test_long_questions_are_read_whole_by_relative_positions(records, caplog):
    recipe, meta, objective = built(records)
    with caplog.at_level(logging.INFO):
        spec = recipe.data(records, meta, train=False)
    assert "8 of 24 evaluated questions have more than text.max_length=10 tokens (at most 18)" in caplog.text
    sample = spec.transform(records[16])
    assert len(sample["text_ids"]) == 18  # 16 words, and the two that frame them
    objective.answer_logits(collate([sample]))
    caplog.clear()
    with caplog.at_level(logging.INFO):
        recipe.data(records, meta, train=False)
    assert not caplog.text, "a run that evaluates every epoch says it once"


def test_questions_beyond_the_positions_are_cut_and_counted(records, caplog):
    recipe, meta, objective = built(records, positions="absolute")
    with caplog.at_level(logging.INFO):
        spec = recipe.data(records, meta, train=True)
    assert "8 of 24 training questions are cut to 10 tokens (text.max_length), such as question 16 of 18" in caplog.text
    assert len(spec.transform(records[16])["text_ids"]) == 10
    longer = ListRecords([{**records[0], "question": "is it red " * 20}])
    recipe, meta, objective = built(records)
    with caplog.at_level(logging.INFO):
        spec = recipe.data(longer, meta, train=False)
    assert "1 of 1 evaluated questions are cut to 24 tokens (text.positions" in caplog.text
    objective.answer_logits(collate([spec.transform(longer[0])]))


def test_lengths_of_texts():
    words = train_wordpiece(lambda: QUESTIONS, 100, 6)
    assert words.lengths(QUESTIONS) == [len(words._encode(text)) + 2 for text in QUESTIONS]
    assert max(words.lengths(iter(QUESTIONS))) > 6 and words.lengths([""]) == [2]


@pytest.mark.parametrize(("sides", "said"), [("keep", "as published"), ("swap", "exchanged"), ("skip", "never")])
def test_questions_of_sides_are_counted(records, caplog, sides, said):
    recipe, meta, _ = built(records, hflip=0.5, hflip_sides=sides)
    with caplog.at_level(logging.INFO):
        recipe.data(records, meta, train=True)
    assert "8 of 24 training questions or their answers speak of left or right" in caplog.text and said in caplog.text


def test_who_takes_which_size():
    with pytest.raises(UsageError, match=r"data\.resize=wide is not one of"):
        config(resize="wide")
    run = replace(config(resize="native"), task=None, stage=Settings(name="vl"))
    with pytest.raises(UsageError, match=r"data\.resize=native is not for stage=vl, which takes square"):
        chain.recipe_of(run)
    run = config(resize="native")
    run.model.image_tower = "timm:resnet18"
    with pytest.raises(UsageError, match="takes one: use square or pad"):
        VQA(run).check()
    with pytest.raises(UsageError, match="cannot be exported"):
        VQA(config(resize="native")).exported(None, {"tokenizer": {}})
    assert not chain._is_shared("data.resize"), "the runs before see square pictures"


def test_runs_that_answer_together(records):
    recipe, meta, objective = built(records, test_flip=True)
    assert recipe.noted() == {"test_flip": True}
    other, theirs, member = built(records, seed=1)
    recipe.join(meta, {"runs/b": (other.config, theirs, member)})
    assert recipe.noted() == {"test_flip": True, "ensemble": ["runs/b"]}
    batch = next(iter(EvalLoader(recipe.data(records, meta, train=False), batch_size=6, workers=0, max_bad_fraction=0)))
    together = recipe._answering(meta)(objective, batch)
    each = [VQA(recipe.config)._answering(meta)(model, batch) for model in (objective, member)]
    torch.testing.assert_close(together, sum(each) / 2)
    assert not torch.allclose(*each)


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({"resize": "pad"}, "data.resize is pad, here square"),
        ({"positions": "absolute"}, "longest question in tokens is 10, here 24"),
    ],
)
def test_runs_that_see_other_batches_are_refused(records, keys, name):
    recipe, meta, _ = built(records)
    other, theirs, member = built(records, **keys)
    with pytest.raises(UsageError, match=rf"--with runs/b: its {name}: they cannot be averaged"):
        recipe.join(meta, {"runs/b": (other.config, theirs, member)})
    recipe, meta, member = built(records)
    words = ListRecords([{**records[i], "question": "quite another text"} for i in range(24)])
    with pytest.raises(UsageError, match="its tokenizer is"):
        recipe.join(meta, {"runs/b": (recipe.config, built(words)[1], member)})
    with pytest.raises(UsageError, match="not one that answers questions"):
        recipe.join(meta, {"runs/b": (recipe.config, meta, torch.nn.Linear(1, 1))})
