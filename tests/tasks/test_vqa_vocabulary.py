"""The keys of vocabulary and targets, and what is stored of them."""

from __future__ import annotations

import json
import logging

import pytest

from vlbeit.compose import compose, from_values
from vlbeit.config import DataConfig
from vlbeit.data.records import ListRecords
from vlbeit.errors import DataError, UsageError
from vlbeit.tasks.vqa.task import VQASettings
from vlbeit.tasks.vqa.vocabulary import VocabularyChoice, coverage_lines


def rows(*answers):
    return ListRecords([{"answers": list(humans), "multiple_choice_answer": (humans or [""])[0]} for humans in answers])


TRAIN = rows(*[["red"] * 10] * 3, *[["t-shirt"] * 10] * 2, ["zebra"] * 10)
VAL = rows(*[["zebra"] * 10] * 2, *[["green"] * 10] * 2)
SPLITS = {"train": TRAIN, "val": VAL}


def choice(inherited=None, split="train", **keys):
    return VocabularyChoice(VQASettings(name="vqa", **keys), DataConfig(train_split=split), inherited)


@pytest.fixture
def opened(monkeypatch):
    """Splits that were opened, which are given by name."""
    names = []

    def open_records(data, kind, split):
        assert kind == "vqa" and data.limit is None
        names.append(split)
        return SPLITS[split]

    monkeypatch.setattr("vlbeit.tasks.vqa.vocabulary.open_records", open_records)
    return names


def test_the_training_split_is_counted(opened):
    meta = choice(min_count=2).meta(TRAIN)
    assert meta["answers"] == ["red", "t shirt"] and not opened
    assert meta["vocabulary"] == {
        "source": "own", "splits": ["train"], "min_count": 2, "max_answers": None, "targets": "raw", "answers": 2,
        "training": {"questions": 6, "majority": 5, "raw": 3, "normalized": 5, "differing": 2},
    }  # fmt: skip
    assert json.loads(json.dumps(meta)) == meta
    assert coverage_lines(meta["vocabulary"]) == [
        "vocabulary: 2 answers, with the majority answer of 5 of 6 training questions (83.33 %)",
        "task.targets=raw: matched raw, as published, the answers of 3 (50.00 %) questions give a target, normalized "
        "those of 5 (83.33 %); 2 questions have other targets in the two ways",
    ]


def test_other_splits_are_counted_in_their_order(opened):
    published = choice(min_count=2, vocabulary_splits=["train", "val"]).meta(TRAIN)
    assert published["answers"] == ["red", "t shirt", "zebra", "green"] and opened == ["train", "val"]
    assert published["vocabulary"]["splits"] == ["train", "val"]
    assert published["vocabulary"]["training"]["questions"] == 6
    assert choice(min_count=2, vocabulary_splits=["val", "train"]).meta(TRAIN)["answers"][0] == "zebra"
    with pytest.raises(UsageError, match=r"min_count=5 of the 4 questions of val: lower task\.min_count"):
        choice(min_count=5, vocabulary_splits=["val"]).meta(TRAIN)


def test_questions_without_human_answers_are_not_counted(opened, monkeypatch):
    monkeypatch.setitem(SPLITS, "val", rows(*[[]] * 5, *[["zebra"] * 10] * 2))
    published = choice(min_count=2, vocabulary_splits=["train", "val"]).meta(TRAIN)
    assert published["answers"] == ["red", "t shirt", "zebra"]


def test_visual_genome_is_not_counted(opened):
    both = rows(*TRAIN.column("answers"), *[["sky"] * 10] * 9)
    meta = choice(min_count=2, split="train+vg").meta(both)
    assert meta["answers"] == ["red", "t shirt"] and opened == ["train"]
    assert meta["vocabulary"]["training"]["questions"] == 15


def test_the_most_frequent_answers(opened):
    assert choice(min_count=1, max_answers=2).meta(TRAIN)["answers"] == ["red", "t shirt"]
    assert choice(min_count=1, max_answers=1).meta(TRAIN)["answers"] == ["red"]
    with pytest.raises(UsageError, match="max_answers=0"):
        VQASettings(max_answers=0)


def test_answers_of_init_and_of_a_file(tmp_path):
    meta = choice(["x", "red"]).meta(TRAIN)
    assert meta["answers"] == ["x", "red"] and meta["vocabulary"]["source"] == "init"
    (tmp_path / "answers.json").write_text('["zebra"]')
    meta = choice(["x"], answers=str(tmp_path / "answers.json")).meta(TRAIN)
    assert meta["answers"] == ["zebra"] and meta["vocabulary"]["source"] == str(tmp_path / "answers.json")
    assert "min_count" not in meta["vocabulary"]


def test_another_order_of_the_same_answers_is_named(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="vlbeit")
    (tmp_path / "theirs.json").write_text('["red", "zebra", "t shirt"]')
    choice(min_count=1, init_answers=str(tmp_path / "theirs.json")).meta(TRAIN)
    assert "in another order, from row 1 on ('zebra' there, 't shirt' here)" in caplog.text
    caplog.clear()
    (tmp_path / "theirs.json").write_text('["red", "t shirt", "zebra"]')
    choice(min_count=1, init_answers=str(tmp_path / "theirs.json")).meta(TRAIN)
    assert "in another order" not in caplog.text


def test_targets_and_the_key_of_release_0_1():
    with pytest.raises(UsageError, match="targets=both is not one of raw, normalized"):
        VQASettings(targets="both")
    values = {"stage": {"name": "vl"}, "task": {"name": "vqa", "normalize_targets": True}}
    assert from_values(values, "config.json").task.targets == "normalized"
    assert values["task"] == {"name": "vqa", "normalize_targets": True}  # the caller's own stay as they are
    values["task"]["normalize_targets"] = False
    assert from_values(values, "config.json").task.targets == "raw"
    with pytest.raises(DataError, match="normalise_targets"):
        from_values({**values, "task": {"name": "vqa", "normalise_targets": True}}, "config.json")
    with pytest.raises(UsageError, match=r"unknown key 'task\.normalize_targets'.*task\.targets"):
        compose(["task=vqa", "task.normalize_targets=true"])
