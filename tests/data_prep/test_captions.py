"""`vlbeit prepare coco_captions|flickr30k|visual_genome`: official files in folders and archives, splits, leakage."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from vlbeit.cli import main
from vlbeit.config import DataConfig
from vlbeit.data.prepared import prepared_records
from vlbeit.data.records import open_image
from vlbeit.data.sources import open_records
from vlbeit.data_prep import coco_captions, flickr30k, visual_genome
from vlbeit.errors import DataError, UsageError

SPLITS = {9: "train", 25: "train", 42: "val", 73: "test", 74: "restval"}  # COCO's id -> Karpathy's split
TWO = ["A dog\n runs. ", "Dog  outside"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("VLBEIT_CACHE", str(tmp_path_factory.mktemp("cache")))


def karpathy(names: dict[str, str], texts: list[str] = TWO, **ids: dict[str, int]) -> dict[str, Any]:
    """Karpathy's JSON of pictures, file name -> split."""
    images = [
        {
            "filename": name, "split": split, "imgid": place, "sentids": [],
            "sentences": [{"raw": text, "tokens": []} for text in texts],
            **{key: values[name] for key, values in ids.items()},
        }
        for place, (name, split) in enumerate(names.items())
    ]  # fmt: skip
    return {"dataset": "some", "images": images}


def coco_json(**changes: Any) -> dict[str, Any]:
    names = {f"COCO_{'train' if SPLITS[i] == 'train' else 'val'}2014_{i:012d}.jpg": i for i in SPLITS}
    return karpathy({name: SPLITS[i] for name, i in names.items()}, cocoid=names) | changes


@pytest.fixture
def root(tmp_path, make_picture) -> Path:
    """The layout in which ViLT and VLMo ask for COCO."""
    root = tmp_path / "coco"
    (root / "karpathy").mkdir(parents=True)
    for number, split in SPLITS.items():
        folder = "train2014" if split == "train" else "val2014"
        (root / folder).mkdir(exist_ok=True)
        (root / folder / f"COCO_{folder}_{number:012d}.jpg").write_bytes(make_picture(number))
    (root / "karpathy/dataset_coco.json").write_text(json.dumps(coco_json()))
    return root


def prepare(function, out: Path, *sources: Path, **options: Any) -> tuple[dict[str, Any], list[str], str]:
    lines: list[str] = []
    following = function.prepare(out, from_=[",".join(map(str, sources))], report=lines.append, **options)
    return json.loads((out / "prepared.json").read_text()), lines, following


def zips(root: Path) -> list[Path]:
    """The folders of pictures as zips, and the JSON."""
    for folder in ("train2014", "val2014"):
        with zipfile.ZipFile(root.parent / f"{folder}.zip", "w") as file:
            for child in sorted((root / folder).iterdir()):
                file.write(child, f"{folder}/{child.name}")
    return [root.parent / "train2014.zip", root.parent / "val2014.zip", root / "karpathy/dataset_coco.json"]


@pytest.mark.parametrize("form", ["folder as index", "folder as parquet", "folder as folder", "zips as parquet"])
def test_coco_with_karpathys_splits(tmp_path, root, form):
    source, format = form.split(" as ")
    out = tmp_path / "out"
    facts, lines, following = prepare(
        coco_captions, out, *(zips(root) if source == "zips" else [root]), format=format, check="full"
    )
    assert {split: part["records"] for split, part in facts["splits"].items()} == {"train": 6, "val": 2, "test": 2}
    assert "dataset_coco.json: pictures: train 3, val 1, test 1 (train with restval, 1, as usual); " in lines[0]
    records = prepared_records(out, "pairs", "train")
    found = [records[i] for i in range(len(records))]
    assert [record["id"] for record in found] == ["9#0", "9#1", "25#0", "25#1", "74#0", "74#1"]
    assert [record["picture"] for record in found[::2]] == ["coco-9", "coco-25", "coco-74"]
    assert {record["text"] for record in found} == {"A dog runs.", "Dog outside"}  # white space as one blank
    assert open_image(found[0]["image"]).size == (24, 16)
    assert isinstance(found[0]["image"], bytes) == (format == "parquet")
    assert following == (
        f"vlbeit train stage=vl task=retrieval init=vlmo_base_patch16_224 data=coco_captions data.root={out} "
        f"run=runs/out-retrieval"
    )


def test_a_picture_is_stored_once(tmp_path, root):
    facts, _, _ = prepare(coco_captions, tmp_path / "out", root, format="parquet")
    pictures = sum(path.stat().st_size for path in root.rglob("*.jpg"))
    assert sum(part["bytes"] for part in facts["splits"].values()) == pictures
    (shard,) = facts["splits"]["train"]["shards"]
    assert shard["rows"] == 3  # of pictures


@pytest.mark.parametrize("name", ["coco_captions", "pairs"])
def test_kinds_that_the_sources_give(tmp_path, root, name):
    prepare(coco_captions, tmp_path / "out", root, format="parquet")
    config = DataConfig(name=name, root=str(tmp_path / "out"))
    pairs, images, texts = (open_records(config, kind, "train") for kind in ("pairs", "images", "text"))
    assert (len(pairs), len(images), len(texts)) == (6, 3, 6)  # each picture once
    assert images[2]["image"] == pairs[4]["image"] == pairs[5]["image"] and set(images[0]) == {"id", "image"}
    assert texts[1] == {"id": "9#1", "text": "Dog outside"} and list(pairs.column("picture"))[4] == "coco-74"
    with pytest.raises(DataError, match=r"no split 'rest', it was prepared with train, val, test"):
        open_records(config, "pairs", "rest")


def test_pictures_of_2017(tmp_path, root, make_picture):
    """The release of 2017 has the same pictures under shorter names."""
    other = tmp_path / "coco2017/train2017"
    other.mkdir(parents=True)
    for number in SPLITS:
        (other / f"{number:012d}.jpg").write_bytes(make_picture(number))
    facts, _, _ = prepare(coco_captions, tmp_path / "out", root / "karpathy", other)
    assert facts["splits"]["train"]["records"] == 6
    facts, _, _ = prepare(coco_captions, tmp_path / "both", root, other)  # both there: each once
    assert facts["splits"]["train"]["records"] == 6 and not facts["bad"]


def test_official_captions(tmp_path, root):
    (root / "karpathy/dataset_coco.json").unlink()
    for split in ("train", "val"):
        names = [path.name for path in sorted((root / f"{split}2014").iterdir())]
        images = [{"id": int(name[-16:-4]), "file_name": name} for name in names]
        captions = [
            {"id": 10 * row["id"] + k, "image_id": row["id"], "caption": f"caption {k}"}
            for row in images
            for k in (0, 1)
        ]
        found = {"images": images, "annotations": captions[::-1]}
        (root / f"captions_{split}2014.json").write_text(json.dumps(found))
    facts, lines, _ = prepare(coco_captions, tmp_path / "out", root)
    assert {split: part["records"] for split, part in facts["splits"].items()} == {"train": 4, "val": 6}
    assert lines[0].startswith("no dataset_coco.json: the splits are captions_train2014.json, captions_val2014.json")
    (root / "captions_train2014.json").unlink()
    with pytest.raises(DataError, match=r"no dataset_coco\.json and no captions_train2014\.json in any"):
        prepare(coco_captions, tmp_path / "other", root)


def test_what_is_wrong_is_named_and_left_out(tmp_path, root, make_picture):
    (root / "val2014/COCO_val2014_000000000074.jpg").unlink()
    (root / "train2014/COCO_train2014_000000000009.jpg").write_bytes(b"no picture")
    data = coco_json()
    data["images"][1]["sentences"][0]["raw"] = "  "
    data["images"][2]["sentences"] = []
    (root / "karpathy/dataset_coco.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match=r"the split 'val' has no record that can be used: 42: no caption"):
        prepare(coco_captions, tmp_path / "out", root)
    bad = [json.loads(line) for line in (tmp_path / "out/unfinished.jsonl").read_text().splitlines()[1:]]
    named = [(row["id"], row["what"].partition(":")[0], row["left_out"]) for line in bad for row in line.get("bad", [])]
    assert named == [
        ("9", "cannot be read", True), ("25", "caption without text left out", False),
        ("74", "picture is missing", True), ("42", "no caption", True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": [{"filename": "a.jpg"}]}, r"dataset_coco\.json, picture 1: KeyError: 'sentences'"),
        ({"images": [{"filename": "a.jpg", "split": "all", "sentences": []}]}, r"picture 1: KeyError: 'all'"),
        ({"images": [{"filename": "a.jpg", "split": "val", "sentences": []}]}, r"a\.jpg has no cocoid"),
        (
            {"images": [{"filename": "a.jpg", "split": "val", "sentences": [], "cocoid": 7}] * 2},
            r"pictures named twice: 2 \(",
        ),
    ],
)
def test_files_that_are_not_karpathys(tmp_path, root, change, message):
    (root / "karpathy/dataset_coco.json").write_text(json.dumps(coco_json(**change)))
    with pytest.raises(DataError, match=message):
        prepare(coco_captions, tmp_path / "out", root)


def test_no_picture_at_all(tmp_path, root):
    with pytest.raises(DataError, match=r"none of the 3 pictures of train is there, such as COCO_train2014_0*9\.jpg"):
        prepare(coco_captions, tmp_path / "out", root / "karpathy")


def test_flickr30k_out_of_a_tar(tmp_path, make_picture):
    names = {"36979.jpg": "train", "65567.jpg": "val", "81641.jpg": "test", "134206.jpg": "train"}
    (tmp_path / "dataset_flickr30k.json").write_text(json.dumps(karpathy(names, [f"text {k}" for k in range(5)])))
    with tarfile.open(tmp_path / "flickr30k-images.tar.gz", "w:gz") as tar:
        for number, name in enumerate(["134206.jpg", "81641.jpg", "36979.jpg", "65567.jpg", "readme.txt"]):
            info = tarfile.TarInfo(f"flickr30k-images/{name}")
            data = make_picture(number)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    facts, _, _ = prepare(flickr30k, tmp_path / "out", tmp_path)  # a folder with the archive inside
    assert facts["format"] == "parquet"
    records = open_records(DataConfig(name="flickr30k", root=str(tmp_path / "out")), "pairs", "train")
    assert [records[i]["id"] for i in (0, 4, 5)] == ["134206#0", "134206#4", "36979#0"]  # as the tar has them
    assert records[0]["picture"] == "flickr-134206" and records[0]["image"] == make_picture(0)
    again, lines, _ = prepare(flickr30k, tmp_path / "out", tmp_path)
    assert again == facts and f"{tmp_path / 'out'}: already there" in lines


def test_a_stopped_preparation_goes_on(tmp_path, monkeypatch, root):
    whole, _, _ = prepare(coco_captions, tmp_path / "whole", root, format="parquet")
    from vlbeit.data_prep import shards

    monkeypatch.setattr(shards, "_ROWS", 1)  # a shard a picture
    add, calls = shards._Shard.add, Counter[str]()

    def stop(self, item, finding):
        calls["add"] += 1
        if calls["add"] == 3:
            raise KeyboardInterrupt
        return add(self, item, finding)

    monkeypatch.setattr(shards._Shard, "add", stop)
    with pytest.raises(Exception, match=r"holds 4 records in whole shards"):
        prepare(coco_captions, tmp_path / "out", root, format="parquet")
    facts, lines, _ = prepare(coco_captions, tmp_path / "out", root, format="parquet")
    assert "train: goes on behind 4 records" in lines
    assert [part["records"] for part in facts["splits"].values()] == [6, 2, 2]
    found = [prepared_records(tmp_path / name, "pairs", "train") for name in ("whole", "out")]
    assert [found[0][i] for i in range(6)] == [found[1][i] for i in range(6)] and whole["bad"] == facts["bad"]


# ---- Visual Genome


@pytest.fixture
def genome(tmp_path, make_picture) -> Path:
    root = tmp_path / "vg"
    (root / "VG_100K").mkdir(parents=True)
    regions, pictures = [], []
    of_coco = {1: 42, 2: 73, 3: 9, 4: None, 5: None, 6: None}  # 42 and 73 are Karpathy's val and test
    of_flickr = {5: 81641}  # of Flickr30k's test
    for number, coco in of_coco.items():
        (root / f"VG_100K/{number}.jpg").write_bytes(make_picture(number))
        found = [{"region_id": 10 * number + k, "image_id": number, "phrase": f"part {k}"} for k in range(3)]
        regions.append({"id": number, "regions": found if number != 6 else []})
        pictures.append({"image_id": number, "url": "", "coco_id": coco, "flickr_id": of_flickr.get(number)})
    (root / "region_descriptions.json").write_text(json.dumps(regions))
    (root / "image_data.json").write_text(json.dumps(pictures))
    return root


def test_visual_genome_without_the_pictures_that_others_test_on(tmp_path, genome):
    (genome / "dataset_coco.json").write_text(json.dumps(coco_json()))
    facts, lines, following = prepare(visual_genome, tmp_path / "out", genome)
    assert lines[:2] == [
        "dataset_coco.json: its val and test have 2 pictures",
        "Visual Genome: 3 pictures with descriptions; left out since other data sets test on them: 2 pictures with 6 "
        "descriptions",
    ]
    records = open_records(DataConfig(name="visual_genome", root=str(tmp_path / "out")), "pairs", "train")
    assert [records[i]["picture"] for i in range(0, 9, 3)] == ["coco-9", "vg-4", "vg-5"]  # coco-9 is COCO's name too
    assert records[2] == records[2] | {"id": "3#2", "text": "part 2"} and list(facts["splits"]) == ["train"]
    assert following == f"vlbeit train stage=vl data.mix=[coco,visual_genome:{tmp_path / 'out'}]"


def test_visual_genome_leaves_flickr30ks_pictures_out_too(tmp_path, genome):
    (tmp_path / "dataset_coco.json").write_text(json.dumps(coco_json()))
    (tmp_path / "dataset_flickr30k.json").write_text(json.dumps(karpathy({"81641.jpg": "test", "9.jpg": "train"})))
    both = f"{tmp_path / 'dataset_coco.json'},{tmp_path / 'dataset_flickr30k.json'}"
    prepare(visual_genome, tmp_path / "out", genome, leave_out=both)
    assert len(prepared_records(tmp_path / "out", "images", "train")) == 2
    facts, _, following = prepare(visual_genome, tmp_path / "all", genome, leave_out="none", held_out=2)
    assert [part["records"] for part in facts["splits"].values()] == [9, 6] and "data=visual_genome" in following


def test_visual_genome_asks_what_to_leave_out(tmp_path, genome):
    with pytest.raises(UsageError, match=r"give --leave-out dataset_coco\.json .* or --leave-out none"):
        prepare(visual_genome, tmp_path / "out", genome)
    (genome / "image_data.json").unlink()
    with pytest.raises(DataError, match=r"no image_data\.json in any"):
        prepare(visual_genome, tmp_path / "out", genome)


def test_on_the_command_line(tmp_path, root, capsys):
    out = tmp_path / "made"
    assert main(["prepare", "coco_captions", "--from", str(root), "--out", str(out), "--check", "none"]) == 0
    assert "next: vlbeit train stage=vl task=retrieval" in capsys.readouterr().out
    assert main(["prepare", "coco_captions", "--from", str(root / "nothing"), "--out", str(tmp_path / "x")]) == 1
    assert "does not exist; give --from folders, archives or JSON files" in capsys.readouterr().err
