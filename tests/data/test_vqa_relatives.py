"""OK-VQA, A-OKVQA, TextVQA and VizWiz in the layouts of their official files."""

from __future__ import annotations

import json

import pytest

from vlbeit.config import DataConfig
from vlbeit.data.records import KINDS
from vlbeit.data.sources import open_records
from vlbeit.errors import DataError


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def records(name, root, split, kind="vqa", **keys):
    return open_records(DataConfig(name=name, root=str(root), **keys), kind, split)


def humans(*answers):
    return [{"answer": answer, "answer_confidence": "yes"} for answer in answers]


@pytest.fixture
def okvqa(tmp_path, draw):
    for part, number in (("train2014", 1), ("val2014", 2)):
        draw(tmp_path / part / f"COCO_{part}_{number:012d}.jpg")
        question = {"image_id": number, "question": "What sport is this?", "question_id": number * 10}
        write(tmp_path / f"OpenEnded_mscoco_{part}_questions.json", {"info": {}, "questions": [question]})
        answers = [
            {"answer_id": n, "raw_answer": "racing", "answer_confidence": "yes", "answer": "race"} for n in range(1, 11)
        ]
        annotation = {
            "image_id": number, "question_id": number * 10, "question_type": "four", "answer_type": "other",
            "answers": answers, "confidence": 3,
        }  # fmt: skip
        write(tmp_path / f"mscoco_{part}_annotations.json", {"info": {}, "annotations": [annotation]})
    return tmp_path


def test_okvqa(okvqa):
    [record] = records("okvqa", okvqa, "val")
    assert record == {
        "id": "20", "image": str(okvqa / "val2014/COCO_val2014_000000000002.jpg"), "question": "What sport is this?",
        "question_id": 20, "image_id": 2, "question_type": "four", "answer_type": "other", "answers": ["race"] * 10,
        "multiple_choice_answer": "",
    }  # fmt: skip
    assert [record["id"] for record in records("okvqa", okvqa, "train", "images")] == [
        "COCO_train2014_000000000001.jpg"
    ]
    with pytest.raises(DataError, match="okvqa has no split 'test'; it has train, val"):
        records("okvqa", okvqa, "test")
    (okvqa / "mscoco_val2014_annotations.json").unlink()
    with pytest.raises(DataError, match=r"mscoco_val2014_annotations.json does not exist; okvqa reads ROOT/OpenEnded"):
        records("okvqa", okvqa, "val")


@pytest.fixture
def aokvqa(tmp_path, draw):
    for split in ("train", "val", "test"):
        draw(tmp_path / "coco" / f"{split}2017" / "000000299207.jpg")
        item = {
            "split": split,
            "image_id": 299207,
            "question_id": "22MexNkBPpdZGX6sxbxVBH",
            "question": "What is he by?",
        }
        item["choices"] = ["skateboarder", "train", "delivery", "cab"]
        if split != "test":
            item |= {"correct_choice_idx": 3, "direct_answers": ["ride"] * 9 + ["The Bus"], "rationales": ["a"]}
        write(tmp_path / f"aokvqa_v1p0_{split}.json", [item, {**item, "question_id": "second"}])
    return tmp_path


def test_aokvqa(aokvqa):
    images = str(aokvqa / "coco")
    train = records("aokvqa", aokvqa, "train", images=images)
    assert len(train) == 2 and train[0] == {
        "id": "22MexNkBPpdZGX6sxbxVBH", "image": f"{images}/train2017/000000299207.jpg", "question": "What is he by?",
        "question_id": 1, "image_id": 299207, "question_type": "what is", "answer_type": "other",
        "answers": ["ride"] * 9 + ["The Bus"], "multiple_choice_answer": "cab",
    }  # fmt: skip
    test = records("aokvqa", aokvqa, "test", images=images)
    assert (test[1]["answers"], test[1]["answer_type"], test[1]["id"]) == ([], "", "second")
    assert len(records("aokvqa", aokvqa, "train", "images", images=images)) == 1
    with pytest.raises(DataError, match=r"train2017 does not exist; .*or data.images=DIR/train2017"):
        records("aokvqa", aokvqa, "train")


@pytest.fixture
def textvqa(tmp_path, draw):
    for split, number in (("train", 0), ("val", 34602), ("test", 39602)):
        image = f"{number % 9}f54c91397f2fe05"
        draw(tmp_path / ("test_images" if split == "test" else "train_images") / f"{image}.jpg")
        item = {"question_id": number, "question": "what brand is it?", "image_id": image, "set_name": split}
        item["answers"] = [] if split == "test" else ["Dakota", "dakota digital", "unanswerable"] * 3 + ["nous"]
        write(tmp_path / f"TextVQA_0.5.1_{split}.json", {"dataset_type": split, "data": [item]})
    return tmp_path


def test_textvqa(textvqa):
    [record] = records("textvqa", textvqa, "val")
    assert record["image"] == str(textvqa / "train_images/6f54c91397f2fe05.jpg")
    assert (record["question_id"], record["image_id"]) == (34602, 0x6F54C91397F2FE05)
    assert (
        record["answers"][:3] == ["Dakota", "dakota digital", "unanswerable"]
        and record["question_type"] == "what brand"
    )
    [record] = records("textvqa", textvqa, "test")
    assert (record["answers"], record["question_type"], set(record)) == ([], "", set(KINDS["vqa"]))


@pytest.fixture
def vizwiz(tmp_path, draw):
    for split in ("train", "val", "test"):
        name = f"VizWiz_{split}_00000007.jpg"
        draw(tmp_path / split / name)
        item = {"image": name, "question": "What is this?"}
        if split != "test":
            item |= {
                "answers": humans("unanswerable", "night time", "no"),
                "answer_type": "unanswerable",
                "answerable": 0,
            }
        write(tmp_path / "Annotations" / f"{split}.json", [item])
    return tmp_path


def test_vizwiz(vizwiz):
    [record] = records("vizwiz", vizwiz, "train")
    assert record == {
        "id": "VizWiz_train_00000007.jpg", "image": str(vizwiz / "train/VizWiz_train_00000007.jpg"),
        "question": "What is this?", "question_id": 7, "image_id": 7, "question_type": "what is",
        "answer_type": "unanswerable", "answers": ["unanswerable", "night time", "no"], "multiple_choice_answer": "",
    }  # fmt: skip
    assert records("vizwiz", vizwiz, "test")[0]["answer_type"] == ""
    assert len(records("vizwiz", vizwiz, "val", "images")) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda items: items * 2, r"question_id used twice: 1 \(VizWiz_train_00000007.jpg\); remove the copies"),
        (
            lambda items: [{**items[0], "image": "VizWiz_train_8.jpg"}],
            r"questions whose picture is not in .*/train: 1 \(VizWiz_train_8.jpg\); complete the folder",
        ),
        (lambda items: [{"image": "a.jpg"}], r"item 1 is not as in vizwiz \(ValueError: a.jpg has no number"),
        (lambda items: [{**items[0], "question": 1, "answers": [3]}], r"item 1 is not as in vizwiz \(TypeError"),
        (lambda items: {"data": items}, r"train.json is not a JSON list; is it the right file\?"),
    ],
)  # fmt: skip
def test_damaged_files_are_named(vizwiz, change, message):
    path = vizwiz / "Annotations/train.json"
    write(path, change(json.loads(path.read_text())))
    with pytest.raises(DataError, match=message):
        records("vizwiz", vizwiz, "train")
    path.write_text("[{")
    with pytest.raises(DataError, match=r"train.json is not JSON: .*; get the file again"):
        records("vizwiz", vizwiz, "train")


def test_what_no_table_can_hold_is_named(tmp_path, draw):
    draw(tmp_path / "train/a_1.jpg")
    row = {"image": "a_1.jpg", "question": "what \ud800?", "answers": humans("yes")}
    write(tmp_path / "Annotations/train.json", [row])
    with pytest.raises(DataError, match=r"item 1 is not as in vizwiz \(ValueError: text has half a letter: "):
        records("vizwiz", tmp_path, "train")
