"""Folders that `vlbeit prepare` made, read back: bytes in shards, paths in an index."""

from __future__ import annotations

import json
import os
import pickle

import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from torch.utils.data import DataLoader

from vlbeit.config import DataConfig
from vlbeit.data import index
from vlbeit.data.prepared import ORIGIN, prepared_classes, prepared_records
from vlbeit.data.records import KINDS, ChosenRecords, open_image, take
from vlbeit.data.sources import open_records, open_source
from vlbeit.data_prep import shards
from vlbeit.data_prep.shards import Finding, Folder, Item, Layout
from vlbeit.errors import DataError

COUNT = 21  # two whole row groups and a part of a third


@pytest.fixture(autouse=True)
def small_row_groups(monkeypatch):
    monkeypatch.setattr(shards, "_GROUP_ROWS", 8)


@pytest.fixture
def pictures(tmp_path, draw):
    return [draw(tmp_path / "pictures" / f"{number}.png", color=(number, 0, 0)) for number in range(COUNT)]


def make(out, kind, format, records, classes=("a", "b"), shard_bytes=10**9):
    folder = Folder(out, Layout(kind, format, {}), shard_bytes=shard_bytes)
    items = [
        Item((number,), record, {name: f"train/{name}/{number}.png" for name in ("image", "mask")})
        for number, record in enumerate(records)
    ]
    list(folder.write("train", items, lambda item: Finding(), 2))
    folder.finish(classes)
    return out


def labelled(pictures):
    return [{"id": path.name, "image": path, "label": number % 2} for number, path in enumerate(pictures)]


@pytest.mark.parametrize("format", ["index", "folder", "parquet"])
def test_what_is_written_reads_back(tmp_path, pictures, format):
    root = make(tmp_path / "out", "labelled", format, labelled(pictures), shard_bytes=600)
    assert len(list(root.glob("train-*.parquet"))) > 2
    records = prepared_records(root, "labelled", "train")
    assert len(records) == COUNT and set(records[0]) == set(KINDS["labelled"])
    for number in (20, 3, 0, 8, 7, 15, 16):  # any order, both sides of the borders of row groups
        assert records[number]["label"] == number % 2 and records[number]["id"] == f"{number}.png"
        assert open_image(records[number]["image"]).getpixel((0, 0)) == (number, 0, 0)
    assert isinstance(records[0]["image"], bytes if format == "parquet" else str)
    assert list(records.column("label")) == [number % 2 for number in range(COUNT)]
    assert open_image(records.column("image")[5]).getpixel((0, 0)) == (5, 0, 0)
    assert prepared_classes(root, "labelled") == ["a", "b"] and prepared_classes(root, "masks") is None
    with pytest.raises(IndexError):
        records[COUNT]


def test_where_encoded_pictures_come_from(tmp_path, pictures):
    """Shard, its size and time, and the place in it: through every kind of selection."""
    records = prepared_records(make(tmp_path / "one", "labelled", "parquet", labelled(pictures)), "labelled", "train")
    origins = list(records.column(ORIGIN))
    assert len(set(origins)) == COUNT and origins == list(records.column(ORIGIN))
    assert list(take(records, 5).column(ORIGIN)) == origins[:5]
    assert list(ChosenRecords(records, [7, 2]).column(ORIGIN)) == [origins[7], origins[2]]
    other = prepared_records(make(tmp_path / "two", "labelled", "parquet", labelled(pictures)), "labelled", "train")
    assert not {*origins} & {*other.column(ORIGIN)}
    shard = tmp_path / "one" / "train-00000.parquet"
    os.utime(shard, ns=(0, 0))
    assert not {*origins} & {*records.column(ORIGIN)}


def test_a_folder_of_files_may_be_moved(tmp_path, pictures):
    root = make(tmp_path / "out", "labelled", "folder", labelled(pictures))
    moved = root.rename(tmp_path / "elsewhere")
    assert open_image(prepared_records(moved, "labelled", "train")[2]["image"]).size == (24, 16)


@pytest.mark.parametrize("format", ["index", "parquet"])
def test_pairs_with_masks_and_boxes(tmp_path, pictures, format):
    pairs = [{"id": path.stem, "image": path, "mask": path} for path in pictures]
    record = prepared_records(make(tmp_path / "pairs", "masks", format, pairs), "masks", "train")[9]
    assert open_image(record["mask"]).getpixel((0, 0)) == open_image(record["image"]).getpixel((0, 0)) == (9, 0, 0)
    boxes = {"boxes": [[1.0, 2.0, 3.0, 4.5]], "labels": [1], "areas": [13.5], "crowd": [True], "outlines": [""]}
    rows = [{"id": path.stem, "image": path, "image_id": 7, **boxes} for path in pictures]
    record = prepared_records(make(tmp_path / "boxes", "boxes", format, rows), "boxes", "train")[20]
    assert {name: record[name] for name in boxes} == boxes and record["image_id"] == 7
    assert set(record) == set(KINDS["boxes"])


@pytest.mark.parametrize("format", ["index", "parquet"])
def test_through_the_source_imagefolder(tmp_path, pictures, format):
    root = make(tmp_path / "out", "labelled", format, labelled(pictures))
    config = DataConfig(name="imagefolder", root=str(root))
    assert open_source(config).classes() == ["a", "b"]
    assert open_records(config, "labelled", "train")[1]["label"] == 1
    assert set(open_records(config, "images", "train")[0]) == {"id", "image"}
    with pytest.raises(DataError, match=r"no split 'val', it was prepared with train: .*data.val_split="):
        open_records(config, "labelled", "val")


def test_loader_workers_read_shards_on_their_own(tmp_path, pictures):
    records = prepared_records(make(tmp_path / "out", "labelled", "parquet", labelled(pictures)), "labelled", "train")
    assert records[0]["id"] == "0.png"  # a reader is open before the workers start
    loader = DataLoader([*range(COUNT)], batch_size=None, num_workers=2, collate_fn=lambda i: records[i]["image"][:4])
    assert list(loader) == [b"\x89PNG"] * COUNT
    assert pickle.loads(pickle.dumps(records))[4]["id"] == "4.png"


def test_other_folders_are_none_of_its_business(tmp_path):
    assert prepared_records(tmp_path, "labelled", "train") is None
    assert prepared_classes(tmp_path, "labelled") is None
    assert prepared_records(tmp_path / "nowhere", "labelled", "train") is None


def test_mistakes_are_named(tmp_path, pictures):
    root = make(tmp_path / "out", "labelled", "parquet", labelled(pictures))
    with pytest.raises(DataError, match="was prepared for labelled records, not masks; choose the data= that fits"):
        prepared_records(root, "masks", "train")
    shard = root / "train-00000.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-10])
    with pytest.raises(DataError, match=rf"train-00000.parquet has {len(whole) - 10} bytes instead of {len(whole)}"):
        prepared_records(root, "labelled", "train")
    shard.unlink()
    with pytest.raises(DataError, match=r"train-00000.parquet is missing; copy it again"):
        prepared_records(root, "labelled", "train")
    facts = json.loads((root / "prepared.json").read_text())
    (root / "prepared.json").write_text(json.dumps(facts | {"version": 99}))
    with pytest.raises(DataError, match="has layout 99, this version reads 1"):
        prepared_records(root, "labelled", "train")
    (root / "prepared.json").write_text("{")
    with pytest.raises(DataError, match=r"prepared.json is damaged"):
        prepared_records(root, "labelled", "train")


def test_many_sizes_and_row_groups(tmp_path, monkeypatch):
    """Empty values, row groups cut by bytes, values larger than Parquet's own pages."""
    monkeypatch.setattr(shards, "_GROUP_BYTES", 3 * 2**20)
    monkeypatch.setattr(shards, "_GROUP_ROWS", 64)
    sizes = [0, 1, 5 * 2**20, 3, 0, *range(1000, 1200), 2**20, 2**20 - 1, 2**20 + 1, 7]
    values = [bytes([number % 251]) * size for number, size in enumerate(sizes)]
    rows = [{"id": str(n), "image": value, "mask": value[::2]} for n, value in enumerate(values)]
    root = make(tmp_path / "out", "masks", "parquet", rows, shard_bytes=4 * 2**20)
    records = prepared_records(root, "masks", "train")
    assert [records[n]["image"] for n in range(len(values))] == values
    assert [records[n]["mask"] for n in range(len(values))] == [value[::2] for value in values]
    table = Dataset.from_parquet([str(path) for path in sorted(root.glob("*.parquet"))], cache_dir=str(tmp_path / "c"))
    assert table["image"][:] == values  # an ordinary Parquet file to others


def test_shards_that_another_program_wrote_anew(tmp_path, pictures):
    root = make(tmp_path / "out", "labelled", "parquet", labelled(pictures))
    shard = root / "train-00000.parquet"
    pq.write_table(pq.read_table(shard), shard)  # compressed, with dictionaries
    facts = json.loads((root / "prepared.json").read_text())
    facts["splits"]["train"]["shards"][0]["size"] = shard.stat().st_size
    (root / "prepared.json").write_text(json.dumps(facts))
    with pytest.raises(DataError, match=r"train-00000.parquet is damaged \(its pictures are not stored plainly\)"):
        prepared_records(root, "labelled", "train")


def test_both_sides_agree_on_the_columns():
    assert all(index._TYPES[name] == kind for name, kind in shards._TYPES.items())
    for kind in ("labelled", "masks", "boxes", "vqa"):
        assert set(KINDS[kind]) <= {*shards._TYPES, "image", "mask"}
