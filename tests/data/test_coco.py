"""COCO's layout: what a file gives, and what of a bad one is named."""

from __future__ import annotations

import json
import logging
import tracemalloc

import pytest
from PIL import Image

from vlbeit.config import DataConfig
from vlbeit.data.json_file import JsonFile
from vlbeit.data.records import KINDS
from vlbeit.data.sources import open_records, open_source
from vlbeit.errors import DataError

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]


def thing(number, image, category=3, bbox=(2, 3, 10, 5), **more):
    row = {"id": number, "image_id": image, "category_id": category, "bbox": list(bbox), "area": 20.5, "iscrowd": 0}
    return {**row, "segmentation": [[2, 3, 12, 3, 12, 8]], **more}


def write(root, name="train2017", things=(), images=(1, 2), categories=CATEGORIES, folder="annotations"):
    """Pictures of 24x16 pixels and their annotation file."""
    rows = [{"id": i, "file_name": f"{i:012d}.jpg", "width": 24, "height": 16} for i in images]
    (root / name).mkdir(parents=True, exist_ok=True)
    for row in rows:
        Image.new("RGB", (24, 16), (9, 90, 200)).save(root / name / row["file_name"])
    path = root / folder / f"instances_{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    value = {"info": {}, "licenses": [], "images": rows, "annotations": list(things), "categories": categories}
    path.write_text(json.dumps(value))
    return path


def config(root, **more):
    return DataConfig(name="coco", root=str(root), **more)


def records(root, split="train", kind="boxes"):
    return open_records(config(root), kind, split)


@pytest.fixture
def root(tmp_path):
    things = [
        thing(10, 2, 7),
        thing(11, 1, bbox=(0, 0, 24, 16), iscrowd=1, segmentation={"size": [16, 24], "counts": [0, 384]}),
        thing(12, 2, 3, bbox=(1.5, 2, 3, 4), area=None, segmentation=[]),
    ]
    write(tmp_path, things=things, images=(2, 1, 5))
    write(tmp_path, "val2017", [thing(20, 8, 7)], images=(8,))
    return tmp_path


def test_records_in_the_order_of_the_images(root):
    rows = records(root)
    assert [row["image_id"] for row in (rows[i] for i in range(3))] == [2, 1, 5]
    first, crowd, empty = (rows[i] for i in range(3))
    assert set(first) == set(KINDS["boxes"])
    assert first["boxes"] == [[2, 3, 10, 5], [1.5, 2, 3, 4]] and first["labels"] == [1, 0]  # dog has the higher id
    assert first["areas"] == [20.5, 12.0] and first["crowd"] == [False, False]
    assert json.loads(first["outlines"][0]) == [[2, 3, 12, 3, 12, 8]] and first["outlines"][1] == ""
    assert crowd["crowd"] == [True] and json.loads(crowd["outlines"][0])["counts"] == [0, 384]
    assert empty["boxes"] == [] and empty["outlines"] == [] and empty["image"].endswith("train2017/000000000005.jpg")
    assert open_source(config(root)).classes("boxes") == ["cat", "dog"]
    assert records(root, "val")[0]["labels"] == [1]


def test_images_alone_and_the_index_is_kept(root, monkeypatch):
    assert records(root, kind="images")[0]["id"] == "000000000002.jpg"
    records(root)
    monkeypatch.setattr("vlbeit.data.sources.coco_file.JsonFile", None)  # nothing is read twice
    assert len(records(root)) == 3
    with pytest.raises(DataError, match="no classes of labelled records"):
        open_source(config(root)).classes()


def test_other_places(tmp_path):
    write(tmp_path, "train2014", [thing(1, 1)], folder=".")
    write(tmp_path, "mine", [thing(1, 1)])
    assert len(records(tmp_path)) == len(records(tmp_path, "mine")) == 2
    with pytest.raises(DataError, match=r"no instances_val2014.json for the split 'val'; coco reads ROOT"):
        records(tmp_path, "val")
    (tmp_path / "mine").rename(tmp_path / "gone")
    with pytest.raises(DataError, match="mine does not exist; the pictures of"):
        records(tmp_path, "mine")


def test_both_splits_are_of_one_release(tmp_path):
    write(tmp_path, things=[thing(1, 1)])
    write(tmp_path, "val2014", things=[thing(1, 1)])  # pictures of which are in train2017
    with pytest.raises(DataError, match=r"no instances_val2017.json for the split 'val'; .* one release for both"):
        records(tmp_path, "val")


def test_a_picture_whose_header_is_damaged_is_left_to_the_loader(tmp_path, monkeypatch):
    def failing(path):
        raise IndexError("image index out of range")

    write(tmp_path, things=[thing(1, 1)])
    monkeypatch.setattr("vlbeit.data.sources.coco_file.open_header", failing)
    assert len(records(tmp_path)) == 2


def test_evaluation_needs_no_training_split(tmp_path):
    write(tmp_path, "val2017", [thing(1, 1)])
    assert records(tmp_path, "val")[0]["labels"] == [0]
    assert open_source(config(tmp_path)).classes("boxes") == ["cat", "dog"]


def test_boxes_outside_are_cut_and_degenerate_ones_left_out(tmp_path, caplog):
    boxes = {1: (-4, 2, 8, 4), 2: (20, 10, 10.005, 20), 3: (5, 5, 0, 3), 4: (5, 5, 3, -2), 5: (30, 2, 4, 4)}
    boxes |= {6: (20, 2, 4.005, 4)}  # rounding is not worth a word
    write(tmp_path, things=[thing(number, 1, bbox=box) for number, box in boxes.items()])
    with caplog.at_level(logging.WARNING):
        row = records(tmp_path)[0]
    assert row["boxes"] == [[0, 2, 4, 4], [20, 10, 4, 6], [20, 2, 4, 4]]
    assert len(row["labels"]) == len(row["areas"]) == len(row["crowd"]) == len(row["outlines"]) == 3
    assert "instances_train2017.json: 2 boxes reach out of their pictures" in caplog.text
    assert "annotations left out since nothing of their box lies in the picture: 3 (3, 4, 5)" in caplog.text


@pytest.mark.parametrize(
    ("things", "message"),
    [
        ([thing(1, 1), thing(1, 2)], r"annotation ids used twice: 1 \(1\)"),
        ([thing(4, 9), thing(5, 1)], r"annotations whose image_id is none of its images: 1 \(4\)"),
        ([thing(4, 1, category=9)], r"annotations whose category_id is none of its categories: 1 \(4\)"),
        ([{"id": 4, "bbox": [1, 2, 3, 4]}], r"annotations\[0\], id 4, is not as in COCO \(KeyError: 'image_id'\)"),
    ],
)
def test_bad_annotations_are_named(tmp_path, things, message):
    write(tmp_path, things=things)
    with pytest.raises(DataError, match=message):
        records(tmp_path)


def test_bad_images_are_named(tmp_path):
    write(tmp_path, images=(1, 1))
    with pytest.raises(DataError, match=r"image ids used twice: 1 \(1\)"):
        records(tmp_path)
    path = write(tmp_path)
    path.write_text(path.read_text().replace("000000000002.jpg", "000000000001.jpg"))
    with pytest.raises(DataError, match=r"file names of images used twice: 1 \(000000000001.jpg\)"):
        records(tmp_path)
    write(tmp_path, "val2017")
    (tmp_path / "val2017" / "000000000002.jpg").unlink()
    with pytest.raises(DataError, match=r"images that are not in .*val2017: 1 \(000000000002.jpg\); complete the"):
        records(tmp_path, "val")


def test_pictures_of_another_size_are_named(tmp_path):
    write(tmp_path, things=[thing(1, 1)])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (24, 16)).save(tmp_path / "train2017" / "000000000001.jpg", exif=exif)  # as it is stored
    assert len(records(tmp_path)) == 2
    write(tmp_path, "val2017", things=[thing(1, 1)])
    Image.new("RGB", (16, 24)).save(tmp_path / "val2017" / "000000000001.jpg", exif=exif)
    with pytest.raises(DataError, match=r"0001.jpg has 16x24 pixels, .*_val2017.json says 24x16: boxes are in pixels"):
        records(tmp_path, "val")


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([*CATEGORIES, {"id": 9, "name": "cow"}], r"categories that .*train2017.json has not, .*: 1 \(9 'cow'\)"),
        ([{"id": 3, "name": "dog"}, {"id": 7, "name": "cat"}], r"under another name: 2 \(3 'dog', 7 'cat'\)"),
        ([{"id": 3, "name": "cat"}, {"id": 3, "name": "dog"}], r"category ids used twice: 1 \(3\)"),
        ([{"id": 3}], r"categories\[0\], id 3, is not as in COCO \(KeyError: 'name'\)"),
        ([], "has no categories"),
    ],
)
def test_categories_of_val_must_be_those_of_train(root, categories, message):
    write(root, "val2017", categories=categories)
    with pytest.raises(DataError, match=message):
        records(root, "val")


def test_truncated_file(tmp_path):
    path = write(tmp_path, things=[thing(1, 1)])
    path.write_text(path.read_text()[:-40])
    with pytest.raises(DataError, match=r"instances_train2017.json, line 1 column \d+: not JSON"):
        records(tmp_path)


def test_the_objects_of_a_big_file_are_never_all_held(tmp_path):
    path = tmp_path / "big.json"
    things = json.dumps([thing(i, 1) for i in range(3000)])
    path.write_text(f'{{"annotations": {things}, "categories": {json.dumps(CATEGORIES)}}}')
    whole = json.loads
    tracemalloc.start()
    whole(path.read_text())
    all_at_once = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    file = JsonFile(path)  # the categories stand behind the annotations, which must be passed over
    assert [row["name"] for _, row in file.items("categories")] == ["dog", "cat"]
    starts = [start for start, _ in file.items("annotations")]
    assert file.at(starts[5])["id"] == 5
    one_by_one = tracemalloc.get_traced_memory()[1] - tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert one_by_one < all_at_once / 4


def test_scenes_have_boxes(scenes):
    data = DataConfig(name="scenes", root=str(scenes))
    rows = open_records(data, "boxes", "train")
    assert len(rows) == 48 and len(open_records(data, "boxes", "val")) == 6
    assert open_source(data).classes("boxes") == ["circle", "square", "triangle", "cross"]
    row = rows[0]
    assert len(row["boxes"]) == len(row["labels"]) > 0 and row["image"].endswith(row["id"])
