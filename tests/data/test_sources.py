import json
import os
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, Features, Image, Value

from vlbeit.config import DataConfig
from vlbeit.data.records import KINDS, ChosenRecords, IncompleteError, open_image
from vlbeit.data.sources import open_records, open_source
from vlbeit.data_prep.scenes import prepare
from vlbeit.errors import DataError, UsageError


def config(name, root, **changes):
    return DataConfig(name=name, root=str(root), **changes)


def ids(records):
    return list(records.column("id"))


@pytest.fixture
def image_root(tmp_path, draw):
    root = tmp_path / "pictures"
    for name in ("train/cat/a.jpg", "train/cat/more/b.PNG", "train/dog/c.jpeg", "val/dog/d.jpg"):
        draw(root / name)
    (root / "train/cat/notes.txt").write_text("no image")
    (root / "train/.hidden").mkdir()
    return root


def files_below(root: Path):
    return {path: path.stat().st_mtime_ns for path in root.rglob("*")}


def test_imagefolder(image_root):
    source = config("imagefolder", image_root)
    train = open_records(source, "labelled", "train")
    assert open_source(source).classes() == ["cat", "dog"]
    assert ids(train) == ["cat/a.jpg", "cat/more/b.PNG", "dog/c.jpeg"]
    assert list(train.column("label")) == [0, 0, 1]
    assert open_image(train[1]["image"]).size == (24, 16)
    assert open_records(source, "labelled", "val")[0]["label"] == 1  # by the classes of the training split
    assert ids(open_records(source, "images", "train")) == ids(train)
    assert ids(open_records(config("imagefolder", image_root, limit=2), "images", "train")) == ids(train)[:2]


def test_indexes_follow_the_files_and_never_lie_in_the_root(image_root, draw, cache):
    source = config("imagefolder", image_root)
    before = files_below(image_root)
    assert len(open_records(source, "labelled", "train")) == 3
    assert files_below(image_root) == before and list(cache.glob("imagefolder*.arrow"))
    draw(image_root / "train/cat/more/z.jpg")
    assert len(open_records(source, "labelled", "train")) == 4
    (image_root / "train/ant").mkdir()  # moves every label by one, also those of the unchanged split
    assert open_records(source, "labelled", "val")[0]["label"] == 2


def test_imagefolder_without_classes_gives_images_only(tmp_path, draw):
    draw(tmp_path / "flat/train/x.jpg")
    source = config("imagefolder", tmp_path / "flat")
    assert ids(open_records(source, "images", "train")) == ["x.jpg"]
    with pytest.raises(DataError, match=r"no class folders; imagefolder reads ROOT/train/CLASS"):
        open_records(source, "labelled", "train")


def test_imagefolder_to_evaluate_on_alone(image_root, draw, tmp_path):
    """A val without a train, and ROOT/CLASS/*.jpg as ImageNet-A and -R come: the classes are those of what is there."""
    (image_root / "train").rename(tmp_path / "elsewhere")
    source = config("imagefolder", image_root)
    assert open_source(source).classes() == ["dog"]
    assert list(open_records(source, "labelled", "val").column("label")) == [0]
    with pytest.raises(DataError, match=r"no folder 'train' \(it has val\).*data.val_split=. evaluates on ROOT/CLASS/"):
        open_records(source, "labelled", "train")
    flat = config("imagefolder", tmp_path / "elsewhere", val_split=".")
    (tmp_path / "elsewhere/README.txt").write_text("as in the archive of ImageNet-R")
    assert open_source(flat).classes() == ["cat", "dog"]
    held_out = open_records(flat, "labelled", ".")
    assert ids(held_out) == ["cat/a.jpg", "cat/more/b.PNG", "dog/c.jpeg"]
    assert list(held_out.column("label")) == [0, 0, 1]


def test_imagefolder_mistakes(image_root, draw, tmp_path):
    with pytest.raises(DataError, match=r"no folder 'test' \(it has train, val\).*ROOT/train/CLASS"):
        open_records(config("imagefolder", image_root), "images", "test")
    draw(image_root / "val/bird/x.jpg")
    with pytest.raises(DataError, match=r"class folders that the training split has not: 1 \(bird\)"):
        open_records(config("imagefolder", image_root), "labelled", "val")
    (tmp_path / "empty/train/cat").mkdir(parents=True)
    with pytest.raises(DataError, match=r"empty/train: class folders without a picture: 1 \(cat\); fill them"):
        open_records(config("imagefolder", tmp_path / "empty"), "labelled", "train")


@pytest.mark.parametrize("name", [b"caf\xe9.jpg", b"caf\xe9/b.jpg"])
def test_a_name_that_is_not_utf8_is_named(image_root, draw, name):
    path = image_root / "train/cat" / os.fsdecode(name)
    path.parent.mkdir(exist_ok=True)
    draw(path, color="red")
    for kind in ("images", "labelled"):
        with pytest.raises(DataError, match=r"caf\\xe9[./].*jpg has a name that is not UTF-8; rename it") as error:
            open_records(config("imagefolder", image_root), kind, "train")
        assert str(error.value).encode()  # it can be printed
    (path.parent / os.fsdecode(b"caf\xe9.txt")).touch()  # no picture: it does not matter
    path.unlink()
    open_records(config("imagefolder", image_root), "labelled", "train")


def test_a_missing_root_and_a_kind_that_a_source_has_not(image_root, tmp_path):
    with pytest.raises(DataError, match=r"data.root=.*nowhere does not exist; set data.root="):
        open_records(config("imagefolder", tmp_path / "nowhere"), "images", "train")
    with pytest.raises(UsageError, match=r"data=imagefolder gives images, labelled, not vqa; .*data=vqa, data=vqa_v2"):
        open_records(config("imagefolder", image_root), "vqa", "train")
    with pytest.raises(UsageError, match="did you mean imagefolder"):
        open_records(config("imagefoldr", image_root), "images", "train")


def test_a_cache_that_cannot_be_written(image_root, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"set data\.cache=DIR"):
        open_records(config("imagefolder", image_root, cache=str(tmp_path / "file/cache")), "images", "train")


def test_text(tmp_path):
    (tmp_path / "train.txt").write_text("one line\n\n  another  \n", encoding="utf-8")
    (tmp_path / "val.txt").write_text("held out\n")
    train = open_records(config("text", tmp_path), "text", "train")
    assert [train[0], train[1]] == [{"id": "train.txt:1", "text": "one line"}, {"id": "train.txt:3", "text": "another"}]
    assert list(open_records(config("text", tmp_path), "text", "val").column("text")) == ["held out"]
    assert len(open_records(config("text", tmp_path / "train.txt"), "text", "train")) == 2
    with pytest.raises(DataError, match=r"is one file.*no split 'val'.*data.val_split=train"):
        open_records(config("text", tmp_path / "train.txt"), "text", "val")


def test_text_of_many_files_and_not_utf8(tmp_path):
    for number in range(2):
        (tmp_path / f"wiki_train_{number}.txt").write_text(f"text {number}\n")
    (tmp_path / "constraint.txt").write_text("has the letters of train in its name\n")
    assert list(open_records(config("text", tmp_path), "text", "train").column("text")) == ["text 0", "text 1"]
    with pytest.raises(DataError, match=r"no file for the split 'val'; text reads"):
        open_records(config("text", tmp_path), "text", "val")
    (tmp_path / "wiki_train_1.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match=r"wiki_train_1.txt is not UTF-8"):
        open_records(config("text", tmp_path), "text", "train")


def test_text_table(tmp_path):
    DatasetDict({"train": Dataset.from_dict({"text": ["a", None, "b"]})}).save_to_disk(tmp_path / "table")
    train = open_records(config("text", tmp_path / "table"), "text", "train")
    assert list(train.column("text")) == ["a", "b"] and train[1]["text"] == "b"
    with pytest.raises(DataError, match=r"no split 'val'; it has train"):
        open_records(config("text", tmp_path / "table"), "text", "val")


@pytest.fixture
def pairs_root(tmp_path, draw):
    root = tmp_path / "captions"
    rows = [{"image": "img/a.jpg", "caption": ["first", "second"]}, {"image": "img/b.jpg", "caption": "third"}]
    for row in rows:
        draw(root / row["image"])
    rows.append({"image": "img/a.jpg", "caption": "fourth"})
    (root / "captions_train.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    return root


def test_pairs_from_json_lines(pairs_root):
    source = config("pairs", pairs_root)
    pairs = open_records(source, "pairs", "train")
    assert list(pairs.column("text")) == ["first", "second", "third", "fourth"]
    assert pairs[1]["image"] == str(pairs_root / "img/a.jpg") and open_image(pairs[1]["image"])
    assert len(set(ids(pairs))) == 4
    assert ids(open_records(source, "images", "train")) == ["img/a.jpg", "img/b.jpg"]
    assert list(open_records(source, "text", "train").column("text")) == list(pairs.column("text"))
    assert len(open_records(config("pairs", pairs_root / "captions_train.jsonl"), "pairs", "train")) == 4


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": "x.jpg", "caption"', r"line 2: not JSON: Expecting ':' delimiter at column 29"),
        ('{"caption": "c"}', "line 2: image must be the path of a picture"),
        ('{"image": 3, "caption": "c"}', "line 2: image must be the path of a picture"),
        ('{"image": "x.jpg", "caption": 3}', "line 2: caption must be a text or a list of texts"),
        ('["x.jpg", "c"]', "line 2: no JSON object but"),
    ],
)
def test_pairs_with_a_bad_line(pairs_root, line, message):
    file = pairs_root / "val.jsonl"
    file.write_text('{"image": "img/a.jpg", "caption": "c"}\n' + line + "\n")
    with pytest.raises(DataError, match=rf"val\.jsonl, {message}.*pairs reads train\.jsonl"):
        open_records(config("pairs", pairs_root), "pairs", "val")


def test_a_missing_caption_is_a_broken_sample_in_every_layout(pairs_root):
    """No caption, null, an empty text, an empty list: named and counted, never trained as an empty text."""
    lacking: list[dict] = [{}, {"caption": None}, {"caption": " "}, {"caption": []}, {"caption": [""]}]
    rows = [{"image": "img/a.jpg", **more} for more in ({"caption": ["one", "", "two"]}, *lacking)]
    (pairs_root / "lines").mkdir()
    (pairs_root / "lines/train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (pairs_root / "cells").mkdir()
    cells = ["image,caption", "img/a.jpg,one", "img/b.jpg,two", *["img/a.jpg,"] * 4, "img/a.jpg,  "]
    (pairs_root / "cells/train.csv").write_text("\n".join(cells))
    lists = [row.get("caption") if isinstance(row.get("caption"), list) else [row.get("caption")] for row in rows]
    table = Dataset.from_dict({"image": ["img/a.jpg"] * 6, "caption": lists})
    table.save_to_disk(pairs_root / "table")
    for name in ("lines", "cells", "table"):
        place = config("pairs", pairs_root / name, images=str(pairs_root), max_bad_fraction=0.8)
        pairs = open_records(place, "pairs", "train")
        assert list(pairs.column("text")) == ["one", "two", *[""] * 5], name
        assert pairs[1]["text"] == "two" and open_image(pairs[1]["image"])
        for row in range(2, 7):
            with pytest.raises(IncompleteError, match=rf"{name}.*{pairs.column('id')[row]} has no caption"):
                pairs[row]
        assert list(ChosenRecords(pairs, [1, 3]).column("text")) == ["two", ""]
        assert len(open_records(place, "images", "train")) in (1, 2, 6)
        with pytest.raises(IncompleteError):
            open_records(place, "text", "train")[3]


def test_pairs_from_csv_in_another_folder_than_the_pictures(pairs_root, tmp_path):
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/train.csv").write_text('image;caption\nimg/a.jpg;"one; and more"\nimg/b.jpg;two\n')
    (tmp_path / "lists/validation.tsv").write_text("caption\timage\nthree\timg/b.jpg\n")
    place = config("pairs", tmp_path / "lists", images=str(pairs_root))
    train, val = (open_records(place, "pairs", split) for split in ("train", "val"))
    assert list(train.column("text")) == ["one; and more", "two"] and train[1]["image"] == str(pairs_root / "img/b.jpg")
    assert train[1]["id"] == "img/b.jpg#3.0" and val[0]["text"] == "three"
    with pytest.raises(DataError, match=r"img/a\.jpg.*add them.*set data\.images= .* \(now .*/lists\)"):
        open_records(config("pairs", tmp_path / "lists"), "pairs", "train")
    with pytest.raises(DataError, match=r"data\.images=/nowhere is no folder"):
        open_records(config("pairs", tmp_path / "lists", images="/nowhere"), "pairs", "train")
    with pytest.raises(UsageError, match=r"data=imagefolder has no use for data\.images=x: leave it out"):
        open_records(config("imagefolder", tmp_path, images="x"), "images", "train")


def test_text_from_csv(tmp_path):
    (tmp_path / "train.csv").write_text('id,text\n1,"a, b"\n2, \n3,c\n')
    train = open_records(config("text", tmp_path), "text", "train")
    assert [*train.column("text")] == ["a, b", "c"] and train[1]["id"] == "train.csv:4"


def test_pairs_with_a_missing_image(pairs_root):
    (pairs_root / "img/b.jpg").unlink()
    with pytest.raises(DataError, match=r"captions_train\.jsonl: images that do not exist: 1 \(.*b\.jpg\); add them"):
        open_records(config("pairs", pairs_root), "pairs", "train")
    assert len(open_records(config("pairs", pairs_root), "text", "train")) == 4  # its text is still there


def test_pairs_from_a_datasets_table(tmp_path, draw):
    files = [str(draw(tmp_path / f"{name}.png", color)) for name, color in (("a", "red"), ("b", "blue"))]
    table = Dataset.from_dict({"image": files, "caption": [["x", "y"], []], "width": [1, 2]})
    table = table.cast_column("image", Image())
    table.save_to_disk(tmp_path / "saved")
    table.to_parquet(tmp_path / "parquet/train-00000-of-00001.parquet")
    for root in (tmp_path / "saved", tmp_path / "parquet"):
        pairs = open_records(config("pairs", root), "pairs", "train")
        assert list(pairs.column("text")) == ["x", "y", ""] and list(pairs.column("id")) == ["0.0", "0.1", "1.0"]
        assert open_image(pairs[1]["image"]).getpixel((0, 0)) == (255, 0, 0)
        assert set(pairs[0]) == set(KINDS["pairs"])
        images = open_records(config("pairs", root), "images", "train")
        assert len(images) == 2 and open_image(images[1]["image"]).getpixel((0, 0)) == (0, 0, 255)


def test_a_table_with_paths_or_without_the_column(tmp_path, draw):
    draw(tmp_path / "t/img/a.png", "red")
    features = Features({"image": Value("string"), "text": Value("string")})
    Dataset.from_dict({"image": ["img/a.png"], "text": ["x"]}, features=features).save_to_disk(tmp_path / "t")
    images = open_records(config("pairs", tmp_path / "t"), "images", "train")
    assert open_image(images[0]["image"]).getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(DataError, match="no column caption; it has image, text: rename"):
        open_records(config("pairs", tmp_path / "t"), "pairs", "train")


@pytest.fixture(scope="module")
def scenes_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("built-in") / "scenes"
    prepare(root, images=20, size=32)
    return root


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("kind", ["images", "labelled", "text", "pairs", "vqa"])
def test_scenes_run_through_the_readers(scenes_root, kind, split):
    records = open_records(config("scenes", scenes_root), kind, split)
    record = records[len(records) - 1]
    assert set(record) == set(KINDS[kind]) and len(set(ids(records))) == len(records)
    if "image" in record:
        assert open_image(record["image"]).size == (32, 32)
    if kind == "vqa":
        assert all(len(answers) == 10 for answers in records.column("answers"))


def test_unfinished_scenes(tmp_path):
    (tmp_path / "scenes/train2014").mkdir(parents=True)
    with pytest.raises(DataError, match="vlbeit prepare scenes --out"):
        open_records(config("scenes", tmp_path / "scenes"), "images", "train")


def test_a_failed_index_leaves_nothing_and_an_index_is_not_made_twice(pairs_root, cache, monkeypatch):
    source = config("pairs", pairs_root)
    image = (pairs_root / "img/b.jpg").rename(pairs_root / "away.jpg")
    with pytest.raises(DataError):
        open_records(source, "pairs", "train")
    assert not list(cache.glob("*.arrow")) and not list(cache.glob(".tmp*"))
    image.rename(pairs_root / "img/b.jpg")
    assert len(open_records(source, "pairs", "train")) == 4
    monkeypatch.setattr("vlbeit.data.sources.pairs._rows", None)  # would fail if it were asked
    assert len(open_records(source, "pairs", "train")) == 4
