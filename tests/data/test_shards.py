import io
import json
import os
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlbeit.config import DataConfig
from vlbeit.data import shard_store
from vlbeit.data.records import IncompleteError
from vlbeit.data.sources import open_records
from vlbeit.data_prep import coco_captions
from vlbeit.errors import DataError, MissingSplitError, UsageError

SPLITS = {"train": 11, "val": 31}  # number of the first picture


@pytest.fixture
def opened(tmp_path):
    def opened(root, kind="pairs", split="train", **changes):
        config = DataConfig(name="shards", root=str(root), cache=str(tmp_path / "cache"), **changes)
        return open_records(config, kind, split)

    return opened


def numbers(made, records):
    return [made.number_in(records[index]["image"]) for index in range(len(records))]


def texts(records):
    return [records[index]["text"] for index in range(len(records))]


# ---- tar


def test_img2datasets_layout_is_read_as_it_is(tmp_path, made, opened):
    made.write_tars(tmp_path / "sbu", [5, 4, 3])
    train, val = opened(tmp_path / "sbu"), opened(tmp_path / "sbu", split="val")
    assert numbers(made, train) == list(range(9)) and numbers(made, val) == [9, 10, 11]
    assert texts(train) == [f"text {number}" for number in range(9)] == list(train.column("text"))
    assert train[0] | {"image": b""} == {
        "id": "00000/000000000",
        "image": b"",
        "text": "text 0",
        "picture": f"{tmp_path}/sbu/00000.tar#000000000",
    }
    assert numbers(made, opened(tmp_path / "sbu", "images")) == list(range(9))
    assert opened(tmp_path / "sbu", "text")[3] == {"id": "00000/000000003", "text": "text 3"}


def test_counts_come_from_the_stats_and_indexes_are_made_when_they_are_needed(tmp_path, made, opened):
    made.write_tars(tmp_path / "sbu", [5, 4, 3])
    records = opened(tmp_path / "sbu")
    assert not list((tmp_path / "cache").rglob("*.idx"))
    records[6]
    assert len(list((tmp_path / "cache").rglob("*.idx"))) == 1
    again = opened(tmp_path / "sbu")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.idx")}
    assert numbers(made, again)[6] == 6
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_members_may_have_folders_several_texts_and_other_endings(tmp_path, made, opened):
    members = {
        "a/one.png": made.picture(1),
        "a/one.caption": "first",
        "a/one.cls": "7",
        "b/one.jpeg": made.picture(2),
        "b/one.json": json.dumps({"captions": ["second", "", "third"]}),
        ".hidden": "x",
        "c/bild ä.webp": made.picture(3),
        "c/bild ä.TXT": "\ufefffourth\n",
    }
    made.write_tar(tmp_path / "x.tar", members)
    records = opened(tmp_path / "x.tar", val_split="train")
    found = [(row["id"], made.number_in(row["image"]), row["text"]) for row in (records[n] for n in range(4))]
    assert found == [
        ("x/a/one", 1, "first"), ("x/b/one", 2, "second"), ("x/b/one#1", 2, "third"), ("x/c/bild ä", 3, "fourth"),
    ]  # fmt: skip
    assert len({records[n]["picture"] for n in range(4)}) == 3
    assert records[1]["picture"] == records[2]["picture"]
    assert numbers(made, opened(tmp_path / "x.tar", "images", val_split="train")) == [1, 2, 3]


def test_what_a_sample_lacks_is_told_with_its_reason(tmp_path, made, opened):
    members = made.pair_members([1]) | {
        "2.jpg": made.picture(2),
        "3.txt": "three",
        "4.jpg": made.picture(4),
        "4.txt": " ",
        "4.json": "{",
    }
    made.write_tar(tmp_path / "x.tar", members)
    (tmp_path / "x_stats.json").write_text('{"successes": 6}')
    records = opened(tmp_path / "x.tar", val_split="train")
    reasons = []
    for index in range(1, 6):
        with pytest.raises(IncompleteError) as error:
            records[index]
        reasons.append((error.value.reason, error.value.record["id"]))
        assert "x.tar" in str(pickle.loads(pickle.dumps(error.value)))
    assert reasons == [
        ("no caption", "x/2"), ("no picture", "x/3"), ("no caption", "x/4"),
        ("not in its shard", "x/4"), ("not in its shard", "x/5"),
    ]  # fmt: skip
    assert len(opened(tmp_path / "x.tar", "images", val_split="train")) == 6


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut in a member", "at byte 2,048 unexpected end of data; copy"),
        ("cut between members", "at byte 2,048 empty header; copy"),
        ("cut in a header", "at byte 2,048 truncated header; copy"),
        ("rotten header", "at byte 2,048 bad checksum; copy"),
        ("gzip", "compressed and cannot be read by offset; unpack"),
        ("text", "at byte 0 .*; copy"),
        ("empty", "at byte 0 .*; copy"),
    ],
)
def test_a_damaged_tar_is_one_line(tmp_path, made, opened, how, message):
    import gzip

    members = {f"{n}.{ending}": "x" * 100 for n in range(4) for ending in ("jpg", "txt")}
    path = made.write_tar(tmp_path / "x.tar", members)
    data = path.read_bytes()
    damaged = {
        "cut in a member": data[:1600], "cut between members": data[:2048], "cut in a header": data[:2200],
        "rotten header": data[:2060] + b"x" + data[2061:], "gzip": gzip.compress(data),
        "text": b"no tar " * 200, "empty": b"",
    }  # fmt: skip
    path.write_bytes(damaged[how])
    with pytest.raises(DataError, match=r"x\.tar is .*" + message):
        opened(path, val_split="train")


def test_joined_tars_are_one_line_with_a_remedy_that_helps(tmp_path, made, opened):
    path = made.write_tar(tmp_path / "x.tar", made.pair_members([1]))
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(DataError) as error:
        opened(path, val_split="train")
    assert str(error.value) == (
        f"{path} goes on behind its end mark at byte 3,072, as tars that were joined by `cat`: write one tar of the "
        "files that `tar --ignore-zeros -x` finds in it"
    )


def test_a_disk_that_fails_is_no_fault_of_the_cache(tmp_path, made, opened, monkeypatch):
    made.write_tar(tmp_path / "x.tar", made.pair_members([1, 2]))

    class Failing(io.BytesIO):
        def read(self, *size):
            if self.tell() >= 1024:
                raise OSError(5, "Input/output error")
            return super().read(*size)

    rows = shard_store.tar_rows
    monkeypatch.setattr(shard_store, "tar_rows", lambda file, name: rows(Failing(file.read()), name))
    with pytest.raises(DataError, match=r"x\.tar cannot be read: Input/output error; copy or download it again"):
        opened(tmp_path / "x.tar", val_split="train")


def test_repeated_keys_are_samples_of_their_own(tmp_path, made, opened):
    members = [
        ("x.jpg", made.picture(1)), ("x.txt", b"one"), ("x.jpg", made.picture(2)), ("x.txt", b"two"),
        ("y.jpg", made.picture(3)), ("y.txt", b"three"), ("x.jpg", made.picture(4)), ("x.txt", b"four"),
        ("1.5.jpg", made.picture(5)), ("1.5.txt", b"five"), ("1.6.jpg", made.picture(6)), ("1.6.txt", b"six"),
    ]  # fmt: skip
    made.write_tar(tmp_path / "a" / "x.tar", members)
    table = pa.table({"id": ["k"] * 3, "image": [made.picture(n) for n in range(3)], "caption": [["c", "d"]] * 3})
    (tmp_path / "b").mkdir()
    pq.write_table(table, tmp_path / "b" / "x.parquet")
    records = opened(str(tmp_path / "{a,b}/x.*"), val_split="train")
    assert numbers(made, [records[n] for n in range(4)]) == [1, 2, 3, 4]
    assert [records[n]["text"] for n in range(4)] == ["one", "two", "three", "four"]
    with pytest.raises(IncompleteError, match=r"1 has no picture") as error:
        records[4]
    assert error.value.record["text"] == "", "texts and pictures are told by the same rule"
    names = list(records.column("id"))
    assert names == [
        "a/x/x", "a/x/x@1", "a/x/y", "a/x/x@3", "a/x/1", "b/x/k", "b/x/k#1", "b/x/k@1", "b/x/k@1#1", "b/x/k@2",
        "b/x/k@2#1",
    ]  # fmt: skip
    pictures = list(records.column("picture"))
    assert len(set(pictures)) == 8 and pictures[5] == pictures[6] != pictures[7]


def test_a_vanished_and_a_changed_shard_are_named(tmp_path, made, opened):
    folder = made.write_tars(tmp_path / "sbu", [3, 3, 3])
    records = opened(folder)
    records[0]
    (folder / "00001.tar").unlink()
    with pytest.raises(DataError, match=r"00001\.tar is gone"):
        records[4]
    os.truncate(folder / "00000.tar", 700)
    with pytest.raises(DataError, match=r"00000\.tar was changed"):
        records[1]


# ---- Parquet


@pytest.mark.parametrize(("image", "caption", "struct"), [("image", "text", True), ("jpg", "caption", False)])
def test_parquet_of_others_is_read_by_row_groups(tmp_path, made, opened, image, caption, struct):
    for shard in range(3):
        path = tmp_path / "hf" / f"train-{shard:05d}-of-00003.parquet"
        made.write_parquet(path, range(shard * 25, shard * 25 + 25), image=image, caption=caption, struct=struct)
    made.write_parquet(tmp_path / "hf" / "validation-00000-of-00001.parquet", [900], image=image, caption=caption)
    records = opened(tmp_path / "hf")
    assert not list((tmp_path / "cache").rglob("*.idx")), "the footers tell how many rows there are"
    assert numbers(made, records) == list(range(75)) and texts(records) == [f"text {n}" for n in range(75)]
    assert numbers(made, opened(tmp_path / "hf", val_split="validation", split="validation")) == [900]
    assert opened(tmp_path / "hf", "text")[70] == {"id": "train-00002-of-00003/000000020", "text": "text 70"}


def test_lists_of_captions_are_counted(tmp_path, made, opened):
    made.write_parquet(tmp_path / "x.parquet", range(3), texts=[["a", "b"], [], ["c"]])
    records = opened(tmp_path / "x.parquet", val_split="train")
    assert len(records) == 4
    assert [records[n]["text"] for n in (0, 1, 3)] == ["a", "b", "c"]
    with pytest.raises(IncompleteError, match="no caption"):
        records[2]
    assert numbers(made, opened(tmp_path / "x.parquet", "images", val_split="train")) == [0, 1, 2]


def test_captions_of_one_file_are_of_one_picture(tmp_path, made, opened):
    """One of them is no wrong text of the picture for the other."""
    (tmp_path / "1.png").write_bytes(made.picture(1))
    for number, paths in enumerate((["1.png", "./1.png", "2.png"], ["1.png", str(tmp_path / "1.png")])):
        table = pa.table({"image": paths, "caption": [str(row) for row in range(len(paths))]})
        pq.write_table(table, tmp_path / f"{number}.parquet")
    records = opened(tmp_path, val_split="train")
    one, two = str(tmp_path / "1.png"), str(tmp_path / "2.png")
    assert list(records.column("picture")) == [one, one, two, one, one]
    assert len(set(records.column("id"))) == 5 and records[1]["picture"] == records[1]["image"] == one


def test_few_row_groups_are_kept(tmp_path, made, opened, monkeypatch):
    made.write_parquet(tmp_path / "x.parquet", range(100), group=10)
    size = pq.read_table(tmp_path / "x.parquet", columns=["image"]).nbytes
    monkeypatch.setattr(shard_store, "DECODED", size // 4)
    records = opened(tmp_path / "x.parquet", val_split="train")
    assert 10 < records.near_samples() < 40
    groups = records._store._groups
    for index in range(0, 100, 5):
        records[index]
        assert groups._held <= size // 4 + size // 10
    assert groups._held == sum(value.nbytes for value in groups._kept.values()) <= size // 4


def test_documents_are_text(tmp_path, made, opened):
    table = pa.table({"id": ["p", "q"], "title": ["P", "Q"], "text": ["first text", "second"]})
    for name in ("train-00000", "val-00000"):
        pq.write_table(table, tmp_path / f"{name}.parquet")
    records = opened(tmp_path, "text")
    assert records[1] == {"id": "train-00000/q", "text": "second"}
    assert records.column("text")[:] == ["first text", "second"]
    with pytest.raises(DataError, match=r"train-00000\.parquet has no column of a picture.*title"):
        opened(tmp_path, "pairs")


def test_chunks_of_the_order_are_row_groups(tmp_path, made, opened):
    folder = tmp_path / "hf"
    folder.mkdir()
    rows = pa.table({"image": [made.picture(n) for n in range(12)], "caption": ["c"] * 12})
    with pq.ParquetWriter(folder / "0.parquet", rows.schema) as file:
        for start, count in ((0, 2), (2, 5), (7, 5)):
            file.write_table(rows.slice(start, count))
    made.write_parquet(folder / "1.parquet", range(6), texts=[["a", "b"], [], ["c"], [], ["d"] * 3, ["e"]], group=3)
    made.write_parquet(folder / "2.parquet", range(5), group=2)
    counted = opened(folder, val_split="train")._counted
    assert [each.samples for each in counted] == [12, 9, 5]
    assert [each.chunks for each in counted] == [[2, 7, 12], [4, 9], 2]


def test_a_limit_keeps_the_order_and_what_is_near(tmp_path, made, opened):
    folder = made.write_tars(tmp_path / "sbu", [4, 4, 4, 2])
    whole, records = opened(folder, val_split="train"), opened(folder, val_split="train", limit=6, open_shards=1)
    assert len(records) == len(records.order) == 6 and numbers(made, records) == list(range(6))
    assert records.near(5) == range(4, 6) and list(records.column("text")) == [f"text {n}" for n in range(6)]
    rows = [records.order.place(3, position)[1] for position in range(6)]
    assert sorted(rows) == list(range(6))
    assert records.identity != whole.identity and records.first(4).identity == whole.first(4).identity


# ---- which shards


def test_splits_by_name_by_folder_and_held_out(tmp_path, made, opened, caplog):
    made.write_tars(tmp_path / "a" / "train", [2, 2])
    made.write_tars(tmp_path / "a" / "val", [3], first=50)
    assert numbers(made, opened(tmp_path / "a")) == [0, 1, 2, 3]
    assert numbers(made, opened(tmp_path / "a", split="val")) == [50, 51, 52]
    made.write_tars(tmp_path / "b", [4, 4, 4, 4])
    assert len(opened(tmp_path / "b", held_out=5)) == len(opened(tmp_path / "b", held_out=0.5)) == 8
    caplog.set_level("INFO")
    assert numbers(made, opened(tmp_path / "b", split="val")) == [12, 13, 14, 15]
    assert "has no split 'val': 00003 is held out for it, 4 samples" in caplog.text
    with pytest.raises(MissingSplitError, match="1 shard and no split 'val'"):
        opened(tmp_path / "b" / "00000.tar", split="val")
    assert len(opened(tmp_path / "b" / "00000.tar")) == 4
    with pytest.raises(DataError, match="no shards of the split"):
        opened(tmp_path / "a", split="test")


def test_patterns_and_braces(tmp_path, made, opened):
    made.write_tars(tmp_path / "b", [2] * 12)
    names = str(tmp_path / "b" / "{00003..00010}.tar")
    assert numbers(made, opened(names, val_split="train")) == list(range(6, 22))
    assert numbers(made, opened(str(tmp_path / "b" / "0000[12].tar"), val_split="train")) == [2, 3, 4, 5]
    assert numbers(made, opened(str(tmp_path / "b" / "{00002,00000}.tar"), val_split="train")) == [0, 1, 4, 5]
    with pytest.raises(DataError, match=r"00012\.tar does not exist"):
        opened(str(tmp_path / "b" / "{00010..00012}.tar"))
    with pytest.raises(UsageError, match="counts down"):
        opened(str(tmp_path / "b" / "{5..3}.tar"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no file ends in \.tar or \.parquet"):
        opened(tmp_path / "empty")


def test_records_go_to_another_process_without_their_handles(tmp_path, made, opened):
    records = opened(made.write_tars(tmp_path / "sbu", [3, 3, 3]))
    numbers(made, records)
    assert numbers(made, pickle.loads(pickle.dumps(records))) == numbers(made, records)


def test_texts_are_read_in_pieces_and_one_by_one(tmp_path, made, opened):
    records = opened(made.write_tars(tmp_path / "sbu", [5, 4, 3, 1]))
    column, whole = records.column("text"), [f"text {number}" for number in range(12)]
    assert [column[n] for n in range(12)] == whole and column[-1] == "text 11"
    for start, stop, step in ((3, 7, 1), (0, 12, 5), (11, 2, -3), (7, 7, 1)):
        assert column[start:stop:step] == whole[start:stop:step]
    assert list(column.sample(6)) == whole[:6]


def test_records_know_whether_they_are_others(tmp_path, made, opened):
    folder = made.write_tars(tmp_path / "sbu", [3, 3, 3])
    first = opened(folder).identity
    assert first == opened(folder).identity != opened(folder, "images").identity
    os.utime(folder / "00000.tar", (1, 1))
    assert opened(folder).identity != first


# ---- prepared folders


@pytest.mark.parametrize("form", ["parquet", "folder", "index"])
def test_a_prepared_folder_is_streamed_as_its_own_source_reads_it(tmp_path, made, opened, form):
    root = tmp_path / "coco"
    names = {split: [f"COCO_{split}2014_{n:012d}.jpg" for n in (first, first + 1)] for split, first in SPLITS.items()}
    images = []
    for split, files in names.items():
        (root / f"{split}2014").mkdir(parents=True)
        for name in files:
            number = int(name[-6:-4])
            (root / f"{split}2014" / name).write_bytes(made.picture(number))
            images.append(
                {
                    "filename": name, "split": split, "cocoid": number, "imgid": number,
                    "sentences": [{"raw": f"{text} {number}"} for text in ("one", "two")],
                }
            )  # fmt: skip
    (root / "dataset_coco.json").write_text(json.dumps({"dataset": "coco", "images": images}))
    coco_captions.prepare(tmp_path / "out", from_=[str(root)], format=form)
    for kind in ("pairs", "images", "text"):
        config = DataConfig(name="coco_captions", root=str(tmp_path / "out"), cache=str(tmp_path / "cache"))
        own, stream = open_records(config, kind, "train"), opened(tmp_path / "out", kind)
        found, wanted = ([records[n] for n in range(len(records))] for records in (stream, own))
        assert [row | {"id": ""} for row in found] == [row | {"id": ""} for row in wanted] and len(found) > 1
        assert len({row["id"] for row in found}) == len(found)
    assert len(opened(tmp_path / "out", split="val")) == 4
    with pytest.raises(MissingSplitError, match="has no split 'test'"):
        opened(tmp_path / "out", split="test")
