"""Which question goes to which split: no picture is in two, and the same ones are held out every time."""

from __future__ import annotations

import random

import pytest

from vlbeit.data.vqa_rows import Question, own_answers
from vlbeit.data.vqa_splits import Placed, Rule, Survey, described, split_of, table_files
from vlbeit.errors import DataError


def question(picture, *, split="", answer="x", own_id="", image_id="", fault="", place="t"):
    record = {"question": "what?", "answers": own_answers([answer] if answer else [])}
    return Question(place, split, own_id, image_id, f"/{picture}", hash(picture) & (2**62), f"{picture}", record, fault)


def place(questions, rule=None) -> list[Placed]:
    questions = [q._replace(image_key=int(q.image_name)) for q in questions]
    return list(Survey(questions, rule or Rule(0.1)).place(questions))


def splits(questions, rule=None):
    """Pictures by split."""
    found: dict[str, set[str]] = {}
    for placed in place(questions, rule):
        assert not placed.fault
        found.setdefault(placed.split, set()).add(placed.question.image_name)
    return found


PICTURES = [question(number // 3) for number in range(300)]


def test_a_tenth_of_the_pictures_is_held_out_with_all_their_questions():
    found = splits(PICTURES)
    assert len(found["train"]) == 90 and len(found["val"]) == 10 and not found["train"] & found["val"]


def test_seed_and_names_alone_decide():
    found = splits(PICTURES)["val"]
    mixed = PICTURES.copy()
    random.Random(0).shuffle(mixed)
    assert splits(mixed)["val"] == found == splits(PICTURES, Rule(0.1))["val"]
    assert splits(PICTURES, Rule(0.1, seed=1))["val"] != found
    fewer = splits([q for q in PICTURES if int(q.image_name) < 50], Rule(10))["val"]
    assert found & {str(number) for number in range(50)} <= fewer  # more pictures move none of the old ones out


def test_a_number_of_pictures_or_other_names():
    assert len(splits(PICTURES, Rule(7))["val"]) == 7
    found = splits(PICTURES, Rule(0.5, val="check"))
    assert len(found["val"]) == 50 and set(found) == {"train", "val"}  # nothing else is ever held out
    assert set(splits(PICTURES, Rule(0))) == {"train"}
    assert set(splits(PICTURES, Rule(0.1, val="train"))) == {"train"}
    with pytest.raises(DataError, match="1 pictures are too few to hold out 1 for 'val'"):
        splits([question(1), question(1)])


def test_named_splits_stay_and_val_is_held_out_where_there_is_none():
    named = [question(1, split="training"), question(2, split="Validation"), question(3, split="test")]
    assert splits(named) == {"train": {"1"}, "val": {"2"}, "test": {"3"}}
    found = splits([*(question(n, split="train") for n in range(20)), question(20, split="test")])
    assert (len(found["train"]), len(found["val"]), found["test"]) == (18, 2, {"20"})
    assert splits([question(1, split="test")]) == {"test": {"1"}}
    assert splits([question(1, split="Fold 1/2"), question(2, split="fold 1/2 ")]) == {"fold_1_2": {"1", "2"}}
    assert len(splits([question(n, split="train" if n else "") for n in range(9)], Rule(0))["train"]) == 9


def test_a_picture_that_two_splits_name_stays_where_it_is_measured():
    rows = [question(1, split="train"), question(1, split="val"), question(2, split="train"), question(1, split="test")]
    assert [(p.split, p.fault) for p in place(rows, Rule(0))] == [
        ("test", "picture is in test too: 1"), ("test", "picture is in test too: 1"), ("train", ""), ("test", ""),
    ]  # fmt: skip


def test_ids_of_their_own_and_by_number():
    rows = [question(n, own_id=own) for n, own in enumerate(("7", "008", "10"))]
    assert [(p.id, p.record["question_id"]) for p in place(rows, Rule(0))] == [("7", 7), ("8", 8), ("10", 10)]
    rows = [question(n, own_id=own) for n, own in enumerate(("7", "x8", "9" * 30))]
    assert [(p.id, p.record["question_id"]) for p in place(rows, Rule(0))] == [("7", 1), ("x8", 2), ("9" * 30, 3)]
    rows = [question(5), question(3), question(5)]
    assert [(p.id, p.record["question_id"], p.record["image_id"]) for p in place(rows, Rule(0))] == [
        ("1", 1, 1), ("2", 2, 2), ("3", 3, 1),
    ]  # fmt: skip
    rows = [question(5, image_id="70"), question(3, image_id="60")]
    assert [p.record["image_id"] for p in place(rows, Rule(0))] == [70, 60]
    rows[1] = question(3, image_id="6b")
    assert [p.record["image_id"] for p in place(rows, Rule(0))] == [1, 2]


def test_ids_used_twice_and_answers_that_are_missing():
    rows = [question(picture, own_id=own) for picture, own in ((1, "7"), (2, "7"), (1, "9"))]
    rows.insert(2, question(3, own_id="8", answer=""))
    assert [p.fault for p in place(rows, Rule(0))] == ["", "question_id is used twice: 7", "answers are empty", ""]
    rows = [question(1, own_id="7", split="train"), question(2, own_id="7", split="val", answer="")]
    assert [p.fault for p in place(rows)] == ["", ""]  # each split counts for itself, and val has none at all


def test_questions_without_any_answer_are_the_split_test():
    assert set(splits([question(n, answer="") for n in range(9)])) == {"test"}


def test_bad_rows_are_counted_and_go_with_the_first_split():
    rows = [question(1), question(2, fault="picture is missing: b.jpg", place="t, line 3"), question(3)]
    survey = Survey([q._replace(image_key=int(q.image_name)) for q in rows], Rule(0.5))
    assert survey.splits == ["train", "val"]
    assert (survey.rows, dict(survey.bad)) == (3, {"picture is missing": ["t, line 3: b.jpg"]})
    assert [(p.split in ("train", "val"), p.fault, p.record is None) for p in place(rows, Rule(0.5))][1] == (
        True, "picture is missing: b.jpg", True,
    )  # fmt: skip
    assert described({"a": ["1"], "b": ["1", "2", "3", "4"]}) == "b: 4 (1; 2; 3; ...), a: 1 (1)"


def test_tables_that_name_no_splits_are_refused():
    with pytest.raises(DataError, match="the table has no row below its heading"):
        place([])
    with pytest.raises(DataError, match="25 different splits, such as 's0': another column names the split"):
        place([question(n, split=f"s{n}") for n in range(25)])


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("train.csv", "val.csv"), {"train": ["train.csv"], "val": ["val.csv"]}),
        (("my_train.csv", "validation-0.csv"), {"train": ["my_train.csv"], "val": ["validation-0.csv"]}),
        (("train.csv", "old_train.csv", "notes.txt"), {"train": ["train.csv"]}),
        (
            ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet"),
            {"train": ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]},
        ),
        (("questions.csv",), {"": ["questions.csv"]}),
        (("check.csv", "train.csv"), {"check": ["check.csv"], "train": ["train.csv"]}),
    ],
)  # fmt: skip
def test_tables_of_a_folder_by_their_names(tmp_path, names, found):
    for name in names:
        (tmp_path / name).touch()
    named = {split: [path.name for path in paths] for split, paths in table_files(tmp_path, ["check"]).items()}
    assert named == found


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a.csv", "b.csv"), r"no table that is named after a split, such as train.csv; it has a.csv, b.csv"),
        ((), r"it has no file ending in .csv, .tsv"),
        (("train.csv", "train.jsonl"), r"more than one table for the split 'train': train.csv and train.jsonl"),
        (("my_train.csv", "your_train.jsonl"), r"more than one table for the split 'train'"),
    ],
)
def test_folders_that_do_not_tell(tmp_path, names, message):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=message):
        table_files(tmp_path)


def test_words_in_the_names_of_files():
    assert [split_of(name) for name in ("train", "x-DEV", "Testing_2", "training set", "trainer", "latest")] == [
        "train", "val", "test", "train", "", "",
    ]  # fmt: skip
