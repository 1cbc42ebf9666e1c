"""data=vqa: one's own tables, folders of tables, data sets in the layout of the hub."""

from __future__ import annotations

import csv
import json
import logging
import pickle
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Image
from PIL import Image as Picture

from vlbeit import hub
from vlbeit.config import DataConfig
from vlbeit.data import picture_sizes
from vlbeit.data.layout import NativeGrids
from vlbeit.data.records import KINDS, ChosenRecords, FieldColumn, JoinedRecords, open_image
from vlbeit.data.sources import open_records, open_source
from vlbeit.errors import DataError, UsageError
from vlbeit.tasks.vqa.blind import ShuffledPictures

PICTURES = 20


@pytest.fixture
def folder(tmp_path, draw):
    for number in range(PICTURES):
        draw(tmp_path / "pictures" / f"{number}.png", color=(number, 0, 0))
    return tmp_path


def config(root, **keys):
    return DataConfig(name="vqa", root=str(root), **keys)


def lines(numbers=range(PICTURES), answers=True, each=2):
    """Rows of `each` questions about every picture."""
    return [
        {"image": f"{n}.png", "question": f"is it {i}?", **({"answers": "yes|no"} if answers else {})}
        for n in numbers
        for i in range(each)
    ]


def write_csv(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def stored(folder, rows, images=None):
    """An Arrow table with the pictures in it, as `datasets` writes them; or as plain bytes."""
    data = [(folder / "pictures" / row["image"]).read_bytes() for row in rows]
    column = data if images == "bytes" else [{"bytes": value, "path": "x.png"} for value in data]
    rest = {name: [row[name] for row in rows] for name in rows[0] if name != "image"}
    return pa.table({"image": column, **rest})


def test_one_table_is_split_by_picture(folder):
    given = config(write_csv(folder / "my.csv", lines()), images=str(folder / "pictures"))
    train, val = (open_records(given, "vqa", split) for split in ("train", "val"))
    assert (len(train), len(val)) == (36, 4)
    assert not {*train.column("image")} & {*val.column("image")}
    assert set(train[0]) == set(KINDS["vqa"]) and train[0]["answers"] == ["yes", "no"] * 5
    assert {*train.column("question_id")} | {*val.column("question_id")} == {*range(1, 41)}
    pictures = open_records(given, "images", "val")
    assert len(pictures) == 2 and set(pictures[0]) == {"id", "image"} and pictures[0]["id"].endswith(".png")
    other = open_records(config(folder / "my.csv", images=str(folder / "pictures"), split_seed=1), "vqa", "val")
    assert {*other.column("image")} != {*val.column("image")}
    more = open_records(config(folder / "my.csv", images=str(folder / "pictures"), held_out=0.5), "vqa", "val")
    assert len(more) == 20


@pytest.mark.parametrize("images", ["struct", "bytes"])
def test_sizes_of_pictures_in_a_table_are_read_once(folder, images, monkeypatch):
    for number in range(0, PICTURES, 2):
        (folder / "pictures" / f"{number}.png").write_bytes((folder / "pictures" / "1.png").read_bytes())
    wide = Picture.new("RGB", (80, 40))
    wide.save(folder / "pictures" / "3.png")
    pq.write_table(stored(folder, lines(), images), folder / "my.parquet")
    train = open_records(config(folder / "my.parquet", held_out=2), "vqa", "train")
    rows = ChosenRecords(train, [row for row in range(len(train)) if row % 3])  # as those that can be answered
    sizes = [open_image(rows[row]["image"]).size for row in range(len(rows))]
    read, original = [], picture_sizes.picture_size
    monkeypatch.setattr(picture_sizes, "picture_size", lambda value: read.append(value) or original(value))
    grids, cache = NativeGrids(8, (4, 4)), folder / "cache"
    for _ in range(2):
        assert grids.of(rows, cache) == [grids.grid((height, width)) for width, height in sizes]
    assert len(read) == len({*rows.column("image_id")}) and len({*read}) < len(rows)
    other = ShuffledPictures(rows)
    shuffled = [open_image(other[row]["image"]).size for row in range(len(other))]
    assert grids.of(other, cache) == [grids.grid((height, width)) for width, height in shuffled]
    joined = JoinedRecords([rows, rows])
    assert isinstance(joined.column("image"), FieldColumn), "not all bytes at once"
    assert grids.of(joined, cache) == 2 * grids.of(rows, cache)


def test_a_changed_table_is_read_again(folder):
    given = config(write_csv(folder / "pictures/my.csv", lines()))
    assert len(open_records(given, "vqa", "train")) == 36
    write_csv(folder / "pictures/my.csv", lines(each=3))
    assert len(open_records(given, "vqa", "train")) == 54


@pytest.mark.parametrize("names", [("train", "val"), ("training", "validation")])
def test_a_folder_of_tables(folder, names):
    write_jsonl(folder / f"{names[0]}.jsonl", lines(range(15)))
    write_jsonl(folder / f"{names[1]}.jsonl", lines(range(15, 20)))
    given = config(folder, images=str(folder / "pictures"))
    assert [len(open_records(given, "vqa", split)) for split in ("train", "val")] == [30, 10]
    with pytest.raises(DataError, match=r"has no split .test.; it has train, val: set data.train_split=, "):
        open_records(given, "vqa", "test")


def test_a_folder_without_a_table_to_evaluate_on(folder):
    write_jsonl(folder / "train.jsonl", lines(range(15)))
    write_jsonl(folder / "test.jsonl", lines(range(15, 20), answers=False))
    given = config(folder, images=str(folder / "pictures"))
    assert [len(open_records(given, "vqa", split)) for split in ("train", "val", "test")] == [26, 4, 10]
    whole = config(folder, images=str(folder / "pictures"), val_split="test")
    assert len(open_records(whole, "vqa", "train")) == 30


def test_a_column_that_names_the_split(folder):
    rows = [{**row, "split": "dev" if number < 6 else "train"} for number, row in enumerate(lines())]
    given = config(write_csv(folder / "my.csv", rows), images=str(folder / "pictures"))
    assert [len(open_records(given, "vqa", split)) for split in ("train", "val")] == [34, 6]


@pytest.mark.parametrize("images", ["struct", "bytes"])
def test_pictures_inside_a_parquet_file(folder, images):
    pq.write_table(stored(folder, lines(), images), folder / "my.parquet")
    val = open_records(config(folder / "my.parquet"), "vqa", "val")
    assert (
        len(val) == 4
        and len({open_image(record["image"]).getpixel((0, 0)) for record in map(val.__getitem__, range(4))}) == 2
    )
    train = pickle.loads(pickle.dumps(open_records(config(folder / "my.parquet"), "vqa", "train")))
    shown = [open_image(value).getpixel((0, 0))[0] for value in train.column("image")]
    assert len(shown) == 36 and shown == [(number - 1) // 2 for number in train.column("question_id")]
    assert len(open_records(config(folder / "my.parquet"), "images", "train")) == 18


def test_a_data_set_in_the_layout_of_the_hub(folder, monkeypatch):
    home = folder / "set"
    (home / "data").mkdir(parents=True)
    pq.write_table(stored(folder, lines(range(15))), home / "data/train-00000-of-00001.parquet")
    pq.write_table(stored(folder, lines(range(15, 20))), home / "data/validation-00000-of-00001.parquet")
    given = config(f"hub:{home}")
    assert [len(open_records(given, "vqa", split)) for split in ("train", "val")] == [30, 10]
    assert open_image(open_records(given, "vqa", "val")[9]["image"]).getpixel((0, 0)) == (19, 0, 0)
    table = Dataset.from_list([{"question": "what?", "image": str(folder / "pictures/3.png")}]).cast_column(
        "image", Image()
    )
    DatasetDict({"test": table}).save_to_disk(folder / "saved")
    [record] = open_records(config(f"hub:{folder / 'saved'}"), "vqa", "test")
    assert record["answers"] == [] and open_image(record["image"]).getpixel((0, 0)) == (3, 0, 0)


def test_names_of_the_hub(folder, monkeypatch):
    assert [hub._place(name) for name in ("a/b", "a/b/c", "b", f"{folder}", f"{folder}/c")] == [
        ("a/b", None), ("a/b", "c"), ("b", None), (str(folder), None), (str(folder), "c"),
    ]  # fmt: skip
    monkeypatch.setattr(hub, "_answers", lambda endpoint: False)
    with pytest.raises(DataError, match="hub:nobody/nothing cannot be loaded by the datasets library: "):
        open_records(config("hub:nobody/nothing"), "vqa", "train")


def test_questions_without_answers(folder):
    given = config(write_csv(folder / "my.csv", lines(answers=False)), images=str(folder / "pictures"))
    assert len(open_records(given, "vqa", "test")) == 40
    with pytest.raises(DataError, match="has no split 'train'; it has test: none of its questions has an answer"):
        open_records(given, "vqa", "train")


def test_rows_that_are_no_use_are_refused_or_left_out(folder, caplog):
    rows = [*lines(), {"image": "99.png", "question": "is it?", "answers": "no"}]
    rows += [{"image": "0.png", "question": " ", "answers": "no"}]
    write_csv(folder / "my.csv", rows)
    images = str(folder / "pictures")
    with pytest.raises(DataError) as refused:
        open_records(config(folder / "my.csv", images=images), "vqa", "train")
    assert f"picture is missing: 1 (my.csv, line 42: {images}/99.png), question is empty: 1 (my.csv, line 43)" in str(
        refused.value
    )
    assert "2 of 42 rows are no use" in str(refused.value) and "`vlbeit prepare vqa --from" in str(refused.value)
    with caplog.at_level(logging.WARNING):
        assert len(open_records(config(folder / "my.csv", images=images, max_bad_fraction=0.05), "vqa", "train")) == 36
    assert "they are left out" in caplog.text


def test_mistakes_are_named(folder):
    path = write_csv(folder / "my.csv", lines())
    with pytest.raises(UsageError, match=r"my.csv has no column q: it has image, question, answers; name it"):
        open_records(config(path, columns=["question:q"]), "vqa", "train")
    with pytest.raises(UsageError, match=r"data.columns=\[qestion:q\] is not MEANING:COLUMN; did you mean question:q"):
        open_source(config(path, columns=["qestion:q"])).check()
    with pytest.raises(DataError, match=r"my.csv: 20 pictures are too few to hold out 20 .*data.held_out="):
        open_records(config(path, images=str(folder / "pictures"), held_out=20), "vqa", "train")
    with pytest.raises(DataError, match=r"has no split 'test'; it has train, val"):
        open_records(config(path, images=str(folder / "pictures")), "vqa", "test")
    with pytest.raises(DataError, match="does not exist"):
        open_records(config(folder / "nowhere.csv"), "vqa", "train")


def both(given):
    return [open_records(given, "vqa", split) for split in ("train", "val")]


@pytest.mark.parametrize("where", ["files", "hub"])
def test_no_picture_is_in_two_tables(folder, caplog, where):
    parts = {"train": lines(range(16)), "val": lines(range(15, 20))}
    if where == "files":
        for split, rows in parts.items():
            write_jsonl(folder / f"{split}.jsonl", rows)
        given = config(folder, images=str(folder / "pictures"))
    else:
        (folder / "set").mkdir()
        for split, rows in parts.items():
            pq.write_table(stored(folder, rows), folder / f"set/{split}-00000-of-00001.parquet")
        given = config(f"hub:{folder / 'set'}")
    with pytest.raises(DataError, match=r"2 of 42 rows are no use: picture is in val too: 2 \("):
        both(given)
    with caplog.at_level(logging.WARNING):
        train, val = both(replace(given, max_bad_fraction=0.1))
    assert (len(train), len(val)) == (30, 10) and "picture is in val too: 2" in caplog.text
    assert not {*train.column("image_id")} & {*val.column("image_id")}
    shown = [open_image(val[row]["image"]).getpixel((0, 0))[0] for row in range(10)]
    assert shown == [number for number in range(15, 20) for _ in range(2)]


def test_tables_with_and_without_pictures_and_answers(folder):
    rows = [{"image": row["image"], "q": row["question"], "a": row["answers"]} for row in lines(range(16))]
    pq.write_table(stored(folder, rows, "bytes"), folder / "train.parquet")
    write_csv(folder / "val.csv", [{**row, "image": f"pictures/{row['image']}"} for row in rows[:2]])
    write_csv(folder / "test.csv", [{"image": f"pictures/{n}.png", "q": "what?"} for n in (17, 18)])
    given = config(folder, columns=["question:q,answers:a"], max_bad_fraction=0.1)
    train, val = both(given)
    assert len(train) == 32 and open_image(train[31]["image"]).getpixel((0, 0)) == (15, 0, 0)
    assert [record["image"] for record in map(val.__getitem__, range(2))] == [str(folder / "pictures/0.png")] * 2
    assert [*open_records(given, "vqa", "test").column("answers")] == [[], []]


def test_a_picture_that_was_missing_is_seen_when_it_is_there(folder, caplog, draw):
    for missing in (3, 4):
        (folder / f"pictures/{missing}.png").unlink()
    rows = [{**row, "image": f"pictures/{row['image']}"} for row in lines()]
    given = config(write_csv(folder / "my.csv", rows), max_bad_fraction=0.2)
    for _ in range(2):  # said every time
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert sum(map(len, both(given))) == 36
        assert "4 of 40 rows are no use: picture is missing: 4" in caplog.text
    for number, found in ((4, 38), (3, 40)):
        draw(folder / f"pictures/{number}.png", color=(number, 0, 0))
        caplog.clear()
        assert sum(map(len, both(given))) == found
    assert "no use" not in caplog.text
    (folder / "pictures/4.png").unlink()
    (folder / "pictures/5.png").unlink()
    write_csv(folder / "my.csv", rows)
    assert sum(map(len, both(given))) == 36


def test_an_index_is_written_once_for_all_splits(folder, monkeypatch):
    given = config(write_csv(folder / "my.csv", lines()), images=str(folder / "pictures"))
    train, _ = both(given)
    monkeypatch.setattr("vlbeit.data.sources.vqa.Survey", None)
    again, _ = both(given)
    assert [*again.column("id")] == [*train.column("id")]


def test_letters_that_no_file_can_hold_are_faults_of_their_rows(folder, caplog):
    rows = lines()
    for place, (name, value) in enumerate((("question", "what \ud800?"), ("answers", "\udfff"), ("image", "\ud801.png"),
                                           ("id", "q\udc80"), ("image", "a\0.png")), 5):  # fmt: skip
        rows[place] = {**rows[place], name: value}
    rows = [{"id": f"q{number}", **row} for number, row in enumerate(rows)]
    given = config(write_jsonl(folder / "my.jsonl", rows), images=str(folder / "pictures"), max_bad_fraction=0.2)
    with caplog.at_level(logging.WARNING):
        assert sum(map(len, both(given))) == 35
    assert "text has half a letter: 4 (my.jsonl, line 6: what \\ud800? what" in caplog.text
    assert "picture is missing: 1 (my.jsonl, line 10: a\\0.png)" in caplog.text
