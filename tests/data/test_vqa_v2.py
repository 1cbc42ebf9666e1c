import json

import pytest

from vlbeit.config import DataConfig
from vlbeit.data.json_file import json_rows
from vlbeit.data.records import KINDS
from vlbeit.data.sources import open_records
from vlbeit.data.sources.vqa_v2 import vqa_table
from vlbeit.errors import DataError


def records(root, split, kind="vqa"):
    return open_records(DataConfig(name="vqa_v2", root=str(root)), kind, split)


def edit(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def questions_of(root, part="train2014"):
    return root / f"v2_OpenEnded_mscoco_{part}_questions.json"


def annotations_of(root, part="train2014"):
    return root / f"v2_mscoco_{part}_annotations.json"


def test_training_records(vqa_root):
    train = records(vqa_root, "train")
    assert list(train.column("question_id")) == [10, 11, 20]
    assert train[2] == {
        "id": "20",
        "image": str(vqa_root / "train2014/COCO_train2014_000000000002.jpg"),
        "question": "what is in 2?",
        "question_id": 20,
        "image_id": 2,
        "question_type": "what is",
        "answer_type": "other",
        "answers": ["a20"] * 10,
        "multiple_choice_answer": "a20",
    }
    assert set(train[0]) == set(KINDS["vqa"])


def test_the_other_splits(vqa_root):
    assert list(records(vqa_root, "trainval").column("question_id")) == [10, 11, 20, 30]
    test = records(vqa_root, "test")
    assert (test[0]["answers"], test[0]["answer_type"], len(test)) == ([], "", 2)
    dev = records(vqa_root, "test-dev")  # its images lie in test2015
    assert len(dev) == 1 and dev[0]["image"].endswith("test2015/COCO_test2015_000000000005.jpg")
    with pytest.raises(
        DataError, match=r"no split 'dev'; it has train, val, test, test-dev, trainval, .* joined by \+"
    ):
        records(vqa_root, "dev")
    for official, split in (("train2014", "train"), ("test2015", "test"), ("test-dev2015", "test-dev")):
        assert list(records(vqa_root, official).column("id")) == list(records(vqa_root, split).column("id"))


def test_images_come_once_each(vqa_root):
    assert list(records(vqa_root, "trainval", "images").column("id")) == [
        "COCO_train2014_000000000001.jpg", "COCO_train2014_000000000002.jpg", "COCO_val2014_000000000003.jpg",
    ]  # fmt: skip


def test_an_index_is_made_again_when_a_file_changes(vqa_root):
    assert len(records(vqa_root, "train")) == 3
    edit(questions_of(vqa_root), lambda value: value["questions"].pop())
    edit(annotations_of(vqa_root), lambda value: value["annotations"].pop())
    assert len(records(vqa_root, "train")) == 2


def test_annotation_without_question(vqa_root):
    edit(questions_of(vqa_root), lambda value: value["questions"].pop())
    with pytest.raises(
        DataError, match=r"train2014_annotations\.json: annotations without question .*: 1 \(20\); take"
    ):
        records(vqa_root, "train")


def test_question_without_annotation(vqa_root):
    edit(annotations_of(vqa_root), lambda value: value["annotations"].pop(0))
    with pytest.raises(DataError, match=r"train2014_questions\.json: questions without annotation .*: 1 \(10\); take"):
        records(vqa_root, "train")


def test_question_without_image(vqa_root):
    (vqa_root / "train2014/COCO_train2014_000000000001.jpg").unlink()
    with pytest.raises(DataError, match=r"questions whose image is not in .*train2014: 2 \(10, 11\); complete"):
        records(vqa_root, "train")
    with pytest.raises(DataError, match=r"questions whose image is not in .*train2014: 2 \(10, 11\)"):
        records(vqa_root, "train", "images")


def test_question_id_used_twice(vqa_root):
    edit(questions_of(vqa_root), lambda value: value["questions"].append(value["questions"][0]))
    with pytest.raises(DataError, match=r"question_id used twice: 1 \(10\)"):
        records(vqa_root, "train")


def test_missing_file_and_wrong_file(vqa_root):
    annotations_of(vqa_root, "val2014").unlink()
    with pytest.raises(
        DataError, match=r"v2_mscoco_val2014_annotations\.json does not exist; the split 'val' needs it"
    ):
        records(vqa_root, "val")
    questions_of(vqa_root).write_text(annotations_of(vqa_root).read_text())
    with pytest.raises(DataError, match="has no 'questions': is it the right file"):
        records(vqa_root, "train")


def test_a_damaged_row_is_named(vqa_root):
    edit(annotations_of(vqa_root), lambda value: value["annotations"][1].pop("answers"))
    with pytest.raises(DataError, match=r"annotations\[1\] is not as published \(KeyError: 'answers'\)"):
        records(vqa_root, "train")


def test_an_id_with_a_fraction_is_no_id(vqa_root):
    for path, key in ((questions_of(vqa_root), "questions"), (annotations_of(vqa_root), "annotations")):
        edit(path, lambda value, key=key: value[key][1].update(image_id=value[key][1]["image_id"] + 0.5))
        with pytest.raises(DataError, match=rf"{key}\[1\] is not as published .*image_id \d+\.5 is no integer"):
            records(vqa_root, "train")
        edit(path, lambda value, key=key: value[key][1].update(image_id=int(value[key][1]["image_id"])))


@pytest.mark.parametrize("keep", [0, 1, 20, 60, 100])
def test_truncated_json_is_named_with_its_place(vqa_root, keep):
    path = questions_of(vqa_root)
    path.write_text(path.read_text()[:keep])
    with pytest.raises(DataError, match=r"questions\.json, line 1 column \d+: not JSON"):
        records(vqa_root, "train")


def test_json_rows_reads_what_json_reads(tmp_path):
    rows = [{"a": [1, {"b": "]}"}]}, "text", 3.5, None, []]
    path = tmp_path / "x.json"
    for value in ({"rows": rows}, {"before": {"rows": [9]}, "rows": rows, "after": 1}, {"rows": []}):
        for indent in (None, 2):
            path.write_text(json.dumps(value, indent=indent))
            assert list(json_rows(path, "rows")) == value["rows"]
    for broken in ("[1, 2]", '{"rows": {"a": 1}}', '{"rows": [1 2]}', '{"rows": [1,', '{"rows" [1]}'):
        path.write_text(broken)
        with pytest.raises(DataError, match="not JSON"):
            list(json_rows(path, "rows"))


@pytest.mark.parametrize("name", ["COCO_val2014_000000000007.jpg", "000000000007.jpg", "7.png"])
def test_own_questions_with_own_image_names(tmp_path, draw, name):
    draw(tmp_path / "pictures" / name)
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"questions": [{"question_id": 2, "image_id": 7, "question": "why?"}]}))
    (record,) = [vqa_table(file, None, tmp_path / "pictures")[0]]
    assert record["image"] == str(tmp_path / "pictures" / name) and record["answers"] == []
    with pytest.raises(DataError, match="nowhere does not exist"):
        vqa_table(file, None, tmp_path / "nowhere")


def test_what_no_table_can_hold_is_named(vqa_root):
    edit(questions_of(vqa_root), lambda value: value["questions"][1].update(question="what \ud83d?"))
    with pytest.raises(DataError, match=r"questions\[1\] is not as published \(.*half a letter: .*what \\ud83d\?"):
        records(vqa_root, "train")
    edit(questions_of(vqa_root), lambda value: value["questions"][1].update(question="what?", question_id=2**64))
    with pytest.raises(DataError, match=r"questions\[1\] is not as published \(.*more than 64 bits"):
        records(vqa_root, "train")
    edit(
        annotations_of(vqa_root, "val2014"), lambda value: value["annotations"][0]["answers"][3].update(answer="\udc00")
    )
    with pytest.raises(DataError, match=r"annotations\[0\] is not as published \(.*half a letter"):
        records(vqa_root, "val")
