"""Parts of val, joined splits, Visual Genome."""

from __future__ import annotations

import json
import logging

import pytest

from vlbeit.config import DataConfig
from vlbeit.data.records import JoinedRecords, ListRecords
from vlbeit.data.sources import open_records
from vlbeit.data.vqa_v2_splits import held_out_images, split_parts, without_genome
from vlbeit.errors import DataError


def records(root, split, kind="vqa", **keys):
    return open_records(DataConfig(name="vqa_v2", root=str(root), **keys), kind, split)


@pytest.mark.parametrize(
    ("split", "parts"),
    [
        ("trainval", ["train", "val"]),
        ("train+trainable_val+vg", ["train", "trainable_val", "vg"]),
        ("train2014 + val2014", ["train", "val"]),
        ("test-dev2015", ["test-dev"]),
        ("trainable_val+rest_val", ["trainable_val", "rest_val"]),
    ],
)
def test_names_of_splits(split, parts):
    assert split_parts(split) == parts


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("train+train2014", "questions of train twice: name each once"),
        ("val+rest_val", "questions of rest_val twice, as val holds it too"),
        ("trainval+trainable_val", "trainable_val twice"),
        ("test-dev+test", "test-dev twice, as test holds it too"),
        ("train+", "no split ''"),
        ("train,val", "no split 'train,val'"),
    ],
)
def test_splits_that_name_a_question_twice_or_nothing(split, message):
    with pytest.raises(DataError, match=message):
        split_parts(split)


def test_a_vocabulary_is_not_counted_in_visual_genome():
    assert without_genome("train+trainable_val+vg") == "train+trainable_val" and without_genome("vg") == "vg"


def test_held_out_images_depend_on_the_seed_and_their_numbers_alone():
    images = list(range(1, 20_001))
    held_out = held_out_images(images, 0)
    assert len(held_out) == 1000 and held_out == sorted(set(held_out)) and set(held_out) < set(images)
    assert held_out_images(reversed(images * 3), 0) == held_out  # order and how often an image is asked about
    assert len({*held_out_images(images, 1)} & {*held_out}) < 150
    assert {*held_out_images(images, 0, 500)} < {*held_out}  # a smaller part is a part of the larger
    assert len(held_out_images(images, 0, 0.25)) == 5000
    assert len(held_out_images(range(200), 0)) == 20 and len(held_out_images(range(3), 0)) == 1
    assert [int(image) for image in held_out_images(range(12), 0, 4)] == [3, 7, 9, 11]  # for all times
    assert len(held_out_images(range(20), 0, 0.01)) == 1
    for held, known in ((3, range(3)), (0, range(1)), (0.9, range(2))):
        with pytest.raises(DataError, match="one part would be empty"):
            held_out_images(known, 0, held)


@pytest.fixture
def many(vqa_root, draw):
    """The root with 19 more images in val, two questions each."""
    for name, key in (
        ("OpenEnded_mscoco_val2014_questions", "questions"),
        ("mscoco_val2014_annotations", "annotations"),
    ):
        path = vqa_root / f"v2_{name}.json"
        value = json.loads(path.read_text())
        (row,) = value[key]
        value[key] += [row | {"question_id": 10 * i + n, "image_id": i} for i in range(101, 120) for n in (0, 1)]
        path.write_text(json.dumps(value))
    for image in range(101, 120):
        draw(vqa_root / f"val2014/COCO_val2014_{image:012d}.jpg", (image, 0, 0))
    return vqa_root


def test_val_is_divided_by_image(many):
    val, trainable, rest = (records(many, split) for split in ("val", "trainable_val", "rest_val"))
    assert (len(val), len(trainable), len(rest)) == (39, 39 - len(rest), len(rest))
    held_out = set(rest.column("image_id"))
    assert held_out == {*held_out_images(val.column("image_id"), 0)} and len(held_out) == 2
    assert not held_out & set(trainable.column("image_id"))
    assert {*trainable.column("id"), *rest.column("id")} == {*val.column("id")}
    assert rest[0]["image_id"] in held_out and rest[0]["answers"] == ["a30"] * 10
    other = records(many, "rest_val", split_seed=1)
    assert set(other.column("image_id")) != held_out
    assert len({*records(many, "rest_val", held_out=5).column("image_id")}) == 5
    assert len(records(many, "rest_val", "images")) == 2


def test_joined_splits(many):
    train, trainable = records(many, "train"), records(many, "trainable_val")
    both = records(many, "train+trainable_val")
    assert list(both.column("id")) == [*train.column("id"), *trainable.column("id")]
    assert [both[row]["id"] for row in range(len(both))] == list(both.column("id"))
    assert both[len(train) - 1] == train[len(train) - 1] and both[len(train)] == trainable[0]
    pictures = records(many, "train+rest_val", "images")
    assert len(pictures) == 4 and pictures[0]["id"] == "COCO_train2014_000000000001.jpg"
    assert [pictures[row]["image"] for row in range(4)] == pictures.column("image")


def test_joined_records_end_where_they_end():
    joined = JoinedRecords([ListRecords([{"id": "a"}]), ListRecords([]), ListRecords([{"id": "b"}, {"id": "c"}])])
    assert [joined[row]["id"] for row in range(3)] == joined.column("id") == ["a", "b", "c"]
    for row in (3, -1):
        with pytest.raises(IndexError):
            joined[row]


def test_visual_genome(genome_root):
    genome = records(genome_root, "vg")
    assert [row["id"] for row in map(genome.__getitem__, range(3))] == ["vg-70", "vg-80", "vg-81"]
    assert genome[0] == {
        "id": "vg-70",
        "image": str(genome_root / "VG_100K/7.jpg"),
        "question": "What color?",
        "question_id": -70,
        "image_id": -7,
        "question_type": "none of the above",
        "answer_type": "other",
        "answers": ["dark blue"] * 10,
        "multiple_choice_answer": "dark blue",
    }
    assert (genome[1]["answers"][0], genome[1]["answer_type"], genome[1]["image_id"]) == ("2", "number", 1)
    assert (genome[2]["answers"][0], genome[2]["answer_type"]) == ("no", "yes/no")


def test_visual_genome_tells_nothing_of_val(genome_root, caplog):
    with caplog.at_level(logging.INFO):
        assert list(records(genome_root, "train+vg").column("question_id")) == [10, 11, 20, -70, -80, -81]
    assert "1 of 4 questions of Visual Genome are left out: their pictures are COCO's of val or test" in caplog.text
    # whoever trains on val anyway may have them
    assert -90 in records(genome_root, "train+val+vg").column("question_id")
    (genome_root / "image_data.json").unlink()
    assert -90 in records(genome_root, "train+vg").column("question_id")
    assert "no picture of Visual Genome is known as one of COCO's, which image_data.json tells" in caplog.text


def test_damaged_visual_genome(genome_root):
    path = genome_root / "question_answers.json"
    value = json.loads(path.read_text())
    (genome_root / "VG_100K/8.jpg").unlink()
    with pytest.raises(DataError, match=r"image is not in .*VG_100K or .*VG_100K_2: 2 \(80, 81\); complete"):
        records(genome_root, "vg")
    path.write_text(json.dumps([*value[:1], *value[:1]]))
    with pytest.raises(DataError, match=r"qa_id used twice: 1 \(70\)"):
        records(genome_root, "vg")
    path.write_text(json.dumps([{"id": 7, "qas": [{"qa_id": 1, "question": "why?"}]}]))
    with pytest.raises(DataError, match=r"item\[0\] is not as published \(KeyError: 'answer'\)"):
        records(genome_root, "vg")
    path.write_text(json.dumps(value)[:100])
    with pytest.raises(DataError, match=r"line 1 column .*not JSON"):
        records(genome_root, "vg")
    path.unlink()
    with pytest.raises(DataError, match=r"question_answers\.json does not exist; the split 'vg' needs it"):
        records(genome_root, "vg")


def test_annotation_of_another_image(vqa_root):
    path = vqa_root / "v2_mscoco_train2014_annotations.json"
    value = json.loads(path.read_text())
    value["annotations"][1]["image_id"] = 2
    path.write_text(json.dumps(value))
    with pytest.raises(DataError, match=r"annotations that name another image_id than .*: 1 \(11\); take both"):
        records(vqa_root, "train")
