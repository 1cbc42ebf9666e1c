"""`vlbeit prepare coco`: zips and folders, boxes that do not fit, ids that point to nothing."""

from __future__ import annotations

import json
import zipfile
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlbeit.cli import main
from vlbeit.config import DataConfig
from vlbeit.data.prepared import prepared_classes, prepared_records
from vlbeit.data.records import open_image
from vlbeit.data.sources import open_records, open_source
from vlbeit.data_prep import coco, scenes
from vlbeit.errors import DataError, UsageError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("VLBEIT_CACHE", str(tmp_path_factory.mktemp("cache")))


def box(number: int, image: int, bbox: list[float], category: int = 18, **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": category, "bbox": bbox, "area": 12.5, "iscrowd": 0, **more}


ANNOTATIONS = {
    "train2017": [
        box(1, 9, [1, 2, 10.5, 3]),
        box(2, 9, [0, 0, 24, 16], 3, iscrowd=1, segmentation={"counts": [1, 2], "size": [16, 24]}),
        box(3, 25, [20, 10, 9, 9], segmentation=[[20, 10, 24, 10, 24, 16]]),  # reaches out: cut
        box(4, 25, [3, 3, 0, 5]),  # no width
        box(5, 25, [30, 3, 4, 5]),  # outside
        box(7, 30, [20, 0, 9, 5], area=None, iscrowd="0"),  # cut: its area is that of what is left
    ],
    "val2017": [box(6, 5, [0, 0, 5, 5])],
}
IMAGES = {"train2017": (9, 25, 30, 31), "val2017": (5,)}  # 31 has no box


def instances(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "info": {}, "licenses": [],
        "images": [{"id": i, "file_name": f"{i:012d}.jpg", "width": 24, "height": 16} for i in IMAGES[name]],
        "annotations": ANNOTATIONS[name],
        "categories": [{"id": 18, "name": "dog", "supercategory": "animal"}, {"id": 3, "name": "car"}],
        **changes,
    }  # fmt: skip


@pytest.fixture
def root(tmp_path, make_picture) -> Path:
    root = tmp_path / "coco2017"
    (root / "annotations").mkdir(parents=True)
    for name, images in IMAGES.items():
        (root / name).mkdir()
        for number in images:
            (root / name / f"{number:012d}.jpg").write_bytes(make_picture(number))
        (root / f"annotations/instances_{name}.json").write_text(json.dumps(instances(name)))
    return root


def zipped(root: Path) -> Path:
    """The three zips as they are published, in a folder."""
    folder = root.parent / "zips"
    folder.mkdir()
    for name, zip_name in (("train2017",) * 2, ("val2017",) * 2, ("annotations", "annotations_trainval2017")):
        with zipfile.ZipFile(folder / f"{zip_name}.zip", "w", zipfile.ZIP_DEFLATED) as file:
            for child in sorted((root / name).iterdir()):
                file.write(child, f"{name}/{child.name}")
    return folder


def prepare(out: Path, *sources: Path, **options):
    lines: list[str] = []
    following = coco.prepare(out, from_=[",".join(map(str, sources))], report=lines.append, **options)
    return json.loads((out / "prepared.json").read_text()), lines, following


@pytest.mark.parametrize("form", ["folder as index", "folder as parquet", "zips as parquet", "zips as folder"])
def test_boxes(tmp_path, root, form):
    source, format = form.split(" as ")
    out = tmp_path / "out"
    facts, lines, following = prepare(out, zipped(root) if source == "zips" else root, format=format)
    assert facts["format"] == format
    assert prepared_classes(out, "boxes") == ["car", "dog"]  # by ascending id
    records = prepared_records(out, "boxes", "train")
    first, second, third, fourth = (records[i] for i in range(4))
    image = first.pop("image")
    assert open_image(image).size == (24, 16) and isinstance(image, bytes) == (format == "parquet")
    assert first == {
        "id": "000000000009.jpg", "image_id": 9, "boxes": [[1, 2, 10.5, 3], [0, 0, 24, 16]], "labels": [1, 0],
        "areas": [12.5, 12.5], "crowd": [False, True], "outlines": ["", '{"counts":[1,2],"size":[16,24]}'],
    }  # fmt: skip
    assert second["boxes"] == [[20, 10, 4, 6]] and second["outlines"] == ["[[20,10,24,10,24,16]]"]
    assert third["boxes"] == [[20, 0, 4, 5]] and third["areas"] == [20] and third["crowd"] == [False]
    assert fourth["boxes"] == fourth["labels"] == [] and fourth["image_id"] == 31
    assert facts["splits"]["train"]["classes"] == {"car": 1, "dog": 3}  # boxes
    bad = [json.loads(line) for line in (out / "bad.jsonl").read_text().splitlines()]
    assert [(row["id"][-6:], row["what"], row["left_out"]) for row in bad] == [
        ("25.jpg", "box cut at the edge of the picture: annotation 3", False),
        ("25.jpg", "box without width or height left out: annotation 4", False),
        ("25.jpg", "box outside the picture left out: annotation 5", False),
        ("30.jpg", "box cut at the edge of the picture: annotation 7", False),
    ]
    words = "vlbeit train stage=mim task=detection init=beit_base_patch16_224_pt22k data=coco"
    assert following == f"{words} data.root={out} run=runs/{out.name}-detection"
    assert "  box outside the picture left out: 1" in lines


def test_as_the_source_reads_it_unprepared(tmp_path, root):
    prepare(tmp_path / "out", root)
    plain, made = (DataConfig(name="coco", root=str(path)) for path in (root, tmp_path / "out"))
    assert open_source(plain).classes("boxes") == open_source(made).classes("boxes")
    for split in ("train", "val"):
        records, same = (open_records(config, "boxes", split) for config in (plain, made))
        assert [records[i] for i in range(len(records))] == [same[i] for i in range(len(same))]


def test_two_steps_of_training(tmp_path, root, capsys):
    with chdir(tmp_path):
        assert main(["prepare", "coco", "--from", str(zipped(root)), "--out", "data/coco"]) == 0
        following = capsys.readouterr().out.splitlines()[-1]
        own, init = "data=coco data.root=data/coco run=runs/coco-detection", "init=beit_base_patch16_224_pt22k"
        assert following == f"next: vlbeit train stage=mim task=detection {init} {own}"
        small = ["model=tiny", "data.image_size=32", "steps=2", "data.workers=0", "global_batch_size=2"]
        assert main([*following.replace(init, "init=none").split()[2:], *small, "micro_batch_size=2"]) == 0
        lines = (tmp_path / "runs/coco-detection/metrics.jsonl").read_text().splitlines()
        assert "evaluation" in json.loads(lines[-1])


def test_the_zips_by_name(tmp_path, root):
    zips = sorted(zipped(root).iterdir())
    assert prepare(tmp_path / "out", *zips)[0]["splits"]["val"]["records"] == 1
    with pytest.raises(UsageError, match=r"is no zip"):
        prepare(tmp_path / "out2", *zips[:2], root / "annotations/instances_val2017.json")


def test_pictures_that_are_missing_broken_or_of_another_size(tmp_path, root, make_picture):
    (root / "train2017/000000000009.jpg").unlink()
    (root / "train2017/000000000025.jpg").write_bytes(make_picture(size=(12, 16)))
    (root / "train2017/000000000030.jpg").write_bytes(make_picture(mode="CMYK"))
    facts, *_ = prepare(tmp_path / "out", root)
    bad = [json.loads(line) for line in (tmp_path / "out/bad.jsonl").read_text().splitlines()]
    assert {(row["id"][-6:], row["what"]) for row in bad if row["left_out"]} == {
        ("09.jpg", "picture is missing"), ("25.jpg", "another size than in the annotations: 12x16, annotations 24x16"),
    }  # fmt: skip
    assert facts["splits"]["train"]["records"] == 2 and facts["bad"]["CMYK"] == 1


@pytest.mark.parametrize(("orientation", "size", "kept"), [(6, (24, 16), 4), (3, (24, 16), 4), (6, (16, 24), 3)])
def test_boxes_are_those_of_the_picture_as_it_is_stored(tmp_path, root, orientation, size, kept):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size).save(root / "train2017/000000000009.jpg", exif=exif)
    assert prepare(tmp_path / "out", root)[0]["splits"]["train"]["records"] == kept


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"annotations": [box(7, 1234, [0, 0, 5, 5])]}, r"annotations whose image_id is none of its images: 1 \(7\)"),
        ({"annotations": [box(7, 9, [0, 0, 5, 5], 99)]}, r"whose category_id is none of its categories: 1 \(7\)"),
        ({"annotations": [box(7, 9, [0, 0, 5, 5])] * 2}, r"annotation ids used twice: 1 \(7\)"),
        ({"images": instances("train2017")["images"] * 2}, r"image ids used twice: 4 \(9, 25, 30, ...\)"),
        ({"annotations": [{"id": 7, "image_id": 9, "bbox": [0, 0, 5, 5]}]}, r"id 7, .*KeyError: 'category_id'"),
        ({"annotations": [box(7, 9, [0, 0, 5])]}, r"annotations\[0\], id 7, is not as in COCO"),
        ({"images": [{"id": 9}]}, r"images\[0\], id 9, is not as in COCO \(KeyError: 'file_name'\)"),
        ({"categories": []}, r"has no categories"),
    ],
)  # fmt: skip
def test_annotations_that_contradict_themselves(tmp_path, root, changes, said):
    (root / "annotations/instances_train2017.json").write_text(json.dumps(instances("train2017", **changes)))
    with pytest.raises(DataError, match=rf"instances_train2017.json.*{said}"):
        prepare(tmp_path / "out", root)


def test_other_mistakes(tmp_path, root, capsys):
    val = root / "annotations/instances_val2017.json"
    val.write_text(json.dumps(instances("val2017", categories=[{"id": 18, "name": "cat"}])))
    with pytest.raises(DataError, match=r"instances_val2017.json has other categories than train"):
        prepare(tmp_path / "out", root)
    val.write_text("{")
    with pytest.raises(DataError, match=r"instances_val2017.json, line 1 column 2: not JSON"):
        prepare(tmp_path / "out", root)
    val.unlink()
    assert list(prepare(tmp_path / "out", root)[0]["splits"]) == ["train"]
    (root / "train2017").rename(root / "pictures")
    with pytest.raises(DataError, match=r"instances_train2017.json is there, but no train2017/ or train2017.zip"):
        prepare(tmp_path / "out2", root)
    assert main(["prepare", "coco", "--from", str(root / "val2017"), "--out", str(tmp_path / "out2")]) == 1
    assert "no instances_train2017.json in any" in capsys.readouterr().err


def test_both_splits_are_of_one_release(tmp_path, root):
    for child in [*root.rglob("*val2017*")]:
        child.rename(child.with_name(child.name.replace("2017", "2014")))
    with pytest.raises(DataError, match=r"instances_train2017.json beside instances_val2014.json; releases share"):
        prepare(tmp_path / "out", root)


def test_zips_that_are_not_needed_are_left_shut(tmp_path, root):
    folder = zipped(root)
    for name in ("unlabeled2017.zip", "train2014.zip"):
        (folder / name).write_bytes(b"PK half of it")
    assert list(prepare(tmp_path / "out", folder)[0]["splits"]) == ["train", "val"]


def test_the_layout_of_the_built_in_scenes(tmp_path):
    scenes.prepare(tmp_path / "scenes", images=10, size=32)
    facts, *_ = prepare(tmp_path / "out", tmp_path / "scenes", check="full")
    assert facts["splits"]["train"]["records"] == 8 and facts["splits"]["train"]["left_out"] == 0
    assert facts["classes"] == list(scenes.SHAPES)
