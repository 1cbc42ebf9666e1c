"""One annotation file of COCO: rows that are not as they should be, and boxes that do not fit."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vlbeit.data.instances import CUT, Change, Instances, chosen_release
from vlbeit.data.json_file import JsonFile
from vlbeit.errors import DataError

IMAGE = {"id": 1, "file_name": "a.jpg", "width": 24, "height": 16}
ROW = {"id": 4, "image_id": 1, "category_id": 3, "bbox": [2, 3, 10, 5]}


def read(annotations=(), images=(IMAGE,), categories=({"id": 3, "name": "cat"},)) -> Instances:
    value = {"images": list(images), "annotations": list(annotations), "categories": list(categories)}
    return Instances(JsonFile("the file", json.dumps(value).encode()))


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in ROW.items() if name != key}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (without("id"), r"annotations\[0\] is not as in COCO \(KeyError: 'id'\)"),
        (without("category_id"), r"annotations\[0\], id 4, is not as in COCO \(KeyError: 'category_id'\)"),
        (without("bbox"), r"annotations\[0\], id 4, is not as in COCO \(KeyError: 'bbox'\)"),
        ({**ROW, "image_id": [1]}, r"\[0\], id 4, is not as in COCO \(TypeError"),
        ({**ROW, "image_id": 1.5}, r"id 4, is not as in COCO \(1.5 is no whole number"),
        ({**ROW, "image_id": 2**70}, r"id 4, .* is no whole number of 63 bits"),
        ({**ROW, "category_id": None}, r"id 4, is not as in COCO \(TypeError"),
        (
            {**ROW, "bbox": [1, 2, 3]},
            r"id 4, is not as in COCO \(its bbox is \[1, 2, 3\], and should be \[x, y, width, height\]\)",
        ),
        ({**ROW, "bbox": [1, 2, 3, float("nan")]}, r"id 4, .*bbox or area has numbers that are not finite"),
        ({**ROW, "area": float("inf")}, r"id 4, .*bbox or area has numbers that are not finite"),
        ({**ROW, "area": "large"}, r"id 4, is not as in COCO \(could not convert"),
        ({**ROW, "iscrowd": 2}, r"id 4, .*iscrowd is 2, not 0 or 1"),
        ([4, 1, 3], r"annotations\[0\] is not as in COCO \(TypeError"),
        ("4", r"annotations\[0\] is not as in COCO \(TypeError"),
    ],
)
def test_an_annotation_that_is_none_is_named(row, said):
    with pytest.raises(DataError, match=rf"the file: .*{said}"):
        read([row]).check()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": [{**IMAGE, "file_name": None}]}, r"images\[0\], id 1, .*file_name None"),
        ({"images": [{**IMAGE, "width": 0}]}, r"images without width or height: 1 \(1\)"),
        ({"images": [{**IMAGE, "height": "tall"}]}, r"images\[0\], id 1, is not as in COCO \(invalid literal"),
        ({"images": [IMAGE, IMAGE]}, r"image ids used twice: 1 \(1\)"),
        ({"categories": [{"id": 3, "name": "a"}, {"id": 4, "name": "a"}]}, r"names of categories used twice: 1 \(a\)"),
        ({"annotations": [ROW, ROW]}, r"annotation ids used twice: 1 \(4\)"),
    ],
)
def test_a_file_that_contradicts_itself_is_named(changes, said):
    with pytest.raises(DataError, match=rf"the file: {said}"):
        read(**{"annotations": [ROW], **changes}).check()


def test_numbers_may_be_written_as_text():
    record, _ = read([{**ROW, "id": 2**62 + 1, "category_id": "3", "image_id": "1", "iscrowd": "0"}]).record(1, {3: 0})
    assert record["labels"] == [0] and record["crowd"] == [False] and record["image_id"] == 1


def test_a_box_that_was_cut_has_the_area_of_what_is_left():
    rows = [{**ROW, "bbox": [-90, 4, 100, 10]}, {**ROW, "id": 5, "bbox": [-90, 4, 100, 10], "area": 7}]
    record, changes = read(rows).record(1, {3: 0})
    assert record["boxes"] == [[0, 4, 10, 10]] * 2 and record["areas"] == [100, 7]
    assert changes == [Change(4, CUT), Change(5, CUT)]


@pytest.mark.parametrize(
    ("there", "year"),
    [
        ({"train2017", "train2014", "val2014"}, "2017"),
        ({"train2014", "val2017", "val2014"}, "2014"),  # not train2014 with val2017
        ({"train", "val2014"}, ""),
        ({"val2014", "val"}, "2014"),
        (set(), "2017"),
    ],
)
def test_all_splits_are_of_one_release(there, year):
    assert chosen_release(there.__contains__) == year
