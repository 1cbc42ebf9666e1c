"""Sources of pictures with masks, and what the loader makes of damaged pairs."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from vlbeit.config import DataConfig
from vlbeit.data.collate import collate
from vlbeit.data.joint_transforms import Jitter, SegmentationTrain
from vlbeit.data.loader import EvalLoader, TrainLoader
from vlbeit.data.records import KINDS, ListRecords, open_image
from vlbeit.data.segments import open_pair, read_segments
from vlbeit.data.sources import masks as masks_source
from vlbeit.data.sources import open_records, open_source
from vlbeit.data.transforms import normalize, pixels
from vlbeit.data_prep.scenes import prepare
from vlbeit.data_prep.shards import Finding, Folder, Item, Layout
from vlbeit.errors import DataError
from vlbeit.types import DataSpec

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def config(name, root, **changes):
    return DataConfig(name=name, root=str(root), **changes)


def save_mask(path, labels, dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(labels, dtype)).save(path)
    return path


def make_root(root, draw, mask_folder="masks", splits=("train", "val")):
    """Three pairs a split, one of them in a folder below; hidden files and notes beside them."""
    for split in splits:
        for index, name in enumerate(("a", "b", "more/c")):
            draw(root / "images" / split / f"{name}.jpg")
            save_mask(root / mask_folder / split / f"{name}.png", np.full((16, 24), index))
        (root / "images" / split / ".DS_Store").write_text("hidden")
        draw(root / "images" / split / "._a.jpg")
        save_mask(root / mask_folder / split / ".trash/x.png", [[9]])
        (root / mask_folder / split / "notes.txt").write_text("no mask")
    return root


@pytest.fixture
def root(tmp_path, draw):
    root = make_root(tmp_path / "pairs", draw)
    (root / "classes.txt").write_text("sky\n\n  old house \ntree, bush\n")
    return root


@pytest.mark.parametrize("mask_folder", ["masks", "annotations"])
def test_a_plain_pair_of_folders(tmp_path, draw, mask_folder):
    root = make_root(tmp_path / "pairs", draw, mask_folder)
    for split in ("train", "val"):
        records = open_records(config("masks", root), "masks", split)
        assert list(records.column("id")) == ["a", "b", "more/c"] and set(records[0]) == set(KINDS["masks"])
        image, segments = open_pair(records[2], 3, False)
        assert image.size == (24, 16) and segments.unique().tolist() == [2]
    assert list(open_records(config("masks", root), "images", "train").column("id")) == ["a", "b", "more/c"]


def test_names_of_classes_stand_in_a_file(root):
    assert open_source(config("masks", root)).classes() == ["sky", "old house", "tree, bush"]
    (root / "classes.txt").unlink()
    (root / "objectInfo150.txt").write_text("Idx\tRatio\tName\n1\t0.1\twall\n2\t0.1\tbuilding, edifice\n")
    assert open_source(config("masks", root)).classes() == ["wall", "building"]


def test_classes_are_counted_once_where_no_file_names_them(root, monkeypatch, caplog):
    (root / "classes.txt").unlink()
    save_mask(root / "masks/train/a.png", [[255, 4]])
    (root / "masks/train/b.png").write_bytes(b"broken")  # the loader names it
    source = open_source(config("masks", root))
    assert source.classes() == [f"class {label}" for label in range(5)]
    assert "Its labels 0 to 4 are taken for classes named class 0 to class 4, which fits task" in caplog.text
    assert f"write the names of labels 1, 2, ... into {root / 'classes.txt'}, one a line" in caplog.text
    for zero, name in ((False, "class 1"), (True, "class 0")):  # what it says of label 1, which this mask is full of
        segments = read_segments(root / "masks/val/b.png", num_classes=5, reduce_zero_label=zero)
        assert {source.classes()[label] for label in segments.unique()} == {name}
    monkeypatch.setattr(masks_source, "_largest_label", None)  # would fail if it were asked
    assert len(source.classes()) == 5
    monkeypatch.undo()
    save_mask(root / "masks/train/z.png", [[7]])
    assert len(source.classes()) == 8


def test_a_label_that_the_training_masks_lack(root):
    (root / "classes.txt").unlink()
    save_mask(root / "masks/val/b.png", np.full((16, 24), 3))
    classes = open_source(config("masks", root)).classes()
    record = open_records(config("masks", root), "masks", "val")[1]
    with pytest.raises(DataError, match=r"val/b\.png: label 3 out of range: a mask of 3 classes holds 0\.\.2 and 255"):
        open_pair(record, len(classes), False)


def test_labels_that_cannot_be_counted(root):
    (root / "classes.txt").unlink()
    save_mask(root / "masks/train/a.png", [[300]], np.uint16)
    with pytest.raises(DataError, match=r"a\.png: label 300, and 255 classes \(0\.\.254\) are the most"):
        open_source(config("masks", root)).classes()
    for path in (root / "masks/train").rglob("*.png"):
        save_mask(path, [[255]])
    with pytest.raises(DataError, match=r"no mask here has a label to count classes by; write the names to ROOT"):
        open_source(config("masks", root)).classes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no class: write one name a line"),
        ("cat\ndog\ncat\n", r"names used twice: 1 \(cat\)"),
        ("Idx\tName\n1\tcat\n3\tdog\n", "the first column must count the classes, 1, 2, ...: '3' is out of order"),
        (b"caf\xe9", "cannot be read as UTF-8 text"),
    ],
)
def test_a_file_of_names_that_is_wrong(root, text, message):
    (root / "classes.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=rf"classes\.txt:? {message}"):
        open_source(config("masks", root)).classes()


def test_missing_masks_and_pictures_are_counted_and_named(root, draw):
    for name in "pqrst":
        draw(root / f"images/train/{name}.jpg")
    with pytest.raises(DataError, match=r"pictures without a mask .*train/NAME\.png: 5 \(p, q, r, \.\.\.\); add the"):
        open_records(config("masks", root), "masks", "train")
    draw(root / "masks/train/q.jpg")
    with pytest.raises(DataError, match=r"5 \(p, q, r, \.\.\.\) \(masks are \.png, .*/train/q\.jpg is none\); add"):
        open_records(config("masks", root), "masks", "train")
    (root / "masks/train/q.jpg").unlink()
    assert len(open_records(config("masks", root), "images", "train")) == 8  # pictures alone are all there
    for name in "pqrst":
        save_mask(root / f"masks/train/{name}.png", [[0]])
    assert len(open_records(config("masks", root), "masks", "train")) == 8  # the index follows the folders
    save_mask(root / "masks/val/extra.png", [[0]])
    with pytest.raises(DataError, match=r"val: masks without a picture in .*val: 1 \(extra\); add the pictures"):
        open_records(config("masks", root), "masks", "val")


def test_other_mistakes(root, draw, tmp_path):
    with pytest.raises(DataError, match=r"images has no folder 'test' \(it has train, val\); masks reads ROOT/images"):
        open_records(config("masks", root), "masks", "test")
    draw(root / "images/train/a.png")
    with pytest.raises(DataError, match=r"files that differ in their suffix alone: 1 \(a\)"):
        open_records(config("masks", root), "masks", "train")
    draw(tmp_path / "bare/images/train/a.jpg")
    with pytest.raises(DataError, match=r"bare/masks does not exist; masks reads"):
        open_records(config("masks", tmp_path / "bare"), "masks", "train")
    with pytest.raises(DataError, match=r"bare/masks does not exist"):
        open_source(config("masks", tmp_path / "bare")).classes()


@pytest.fixture
def ade_root(tmp_path, draw):
    root = make_root(tmp_path / "ADEChallengeData2016", draw, "annotations", ("training", "validation"))
    save_mask(root / "annotations/training/a.png", np.tile([0, 1, 150], (16, 8)))
    rows = [(1, "wall"), (2, "building, edifice"), (3, "door, double door"), (4, "door, barn door"), (5, "car;auto")]
    lines = ["Idx\tRatio\tTrain\tVal\tStuff\tName", *(f"{n}\t0.1\t{n}\t1\t1\t{name}" for n, name in rows)]
    (root / "objectInfo150.txt").write_text("\r\n".join(lines) + "\r\n")
    return root


def test_ade20k(ade_root):
    source = config("ade20k", ade_root)
    records = open_records(source, "masks", "train")
    assert (
        list(records.column("id")) == ["a", "b", "more/c"]
        and "validation" in open_records(source, "masks", "val")[0]["mask"]
    )
    assert open_pair(records[0], 150, True)[1][0, :3].tolist() == [255, 0, 149]
    # the first synonym, but where it names two classes all of them
    assert open_source(source).classes() == ["wall", "building", "door, double door", "door, barn door", "car"]
    assert len(open_records(source, "images", "val")) == 3
    (ade_root / "objectInfo150.txt").unlink()
    with pytest.raises(DataError, match=r"objectInfo150\.txt does not exist; it is part of ADEChallengeData2016\.zip"):
        open_source(source).classes()
    with pytest.raises(DataError, match=r"no folder 'test' \(it has training, validation\); ade20k reads the unpacked"):
        open_records(source, "masks", "test")


@pytest.mark.parametrize("source", ["masks", "ade20k"])
@pytest.mark.parametrize("format", ["index", "parquet"])
def test_prepared_folders(tmp_path, root, source, format):
    folder = Folder(tmp_path / "out", Layout("masks", format, {}), shard_bytes=10**9)
    items = []
    for number, name in enumerate(("a", "b")):
        record = {"id": name, "image": root / f"images/train/{name}.jpg", "mask": root / f"masks/train/{name}.png"}
        items.append(Item((number,), record))
    list(folder.write("train", items, lambda item: Finding(), 2))
    folder.finish(["x", "y"])
    prepared = config(source, tmp_path / "out")
    assert open_source(prepared).classes() == ["x", "y"]
    image, segments = open_pair(open_records(prepared, "masks", "train")[1], 2, False)
    assert image.size == (24, 16) and segments.unique().tolist() == [1]
    assert len(open_records(prepared, "images", "train")) == 2


def test_scenes(tmp_path):
    prepare(tmp_path / "scenes", images=20, size=32)
    source = config("scenes", tmp_path / "scenes")
    classes = open_source(source).classes("masks")
    assert len(classes) == 4 and "other" not in classes
    seen = set()
    for split, count in (("train", 16), ("val", 2), ("test", 2)):
        records = open_records(source, "masks", split)
        assert len(records) == count and len(set(records.column("id"))) == count
        image, segments = open_pair(records[count - 1], len(classes), True)
        assert image.size == (32, 32) and segments.shape == (32, 32)
        seen |= {int(label) for record in records for label in open_pair(record, 4, True)[1].unique()}
    assert seen == {0, 1, 2, 3, 255}  # the ground is not scored


class Train:
    def __init__(self, zero=False):
        self.zero, self.augment = zero, SegmentationTrain((16, 16), *HALF, Jitter((64, 16)))

    def __call__(self, record):
        return {"sample_id": record["id"], **self.augment(*open_pair(record, 3, self.zero))}


class Evaluate:
    def __call__(self, record):
        image, segments = open_pair(record, 3, False)
        return {"sample_id": record["id"], "image": normalize(pixels(image), *HALF), "segments": [segments]}


def lists(samples):
    return {name: [sample[name] for sample in samples] for name in samples[0]}


def spec_of(root, transform, collate=collate):
    return DataSpec(ListRecords([*open_records(config("masks", root), "masks", "train")]), transform, collate)


def train(spec, **changes):
    options = {"seed": 3, "global_batch_size": 4, "micro_batch_size": 4, "workers": 0, "max_bad_fraction": 0.7}
    return [step[0] for step in TrainLoader(spec, **options | changes).steps(0, 4)]


def evaluate(root):
    return next(iter(EvalLoader(spec_of(root, Evaluate(), lists), batch_size=4, workers=0, max_bad_fraction=1)))


def test_training_batches(root):
    batch = train(spec_of(root, Train()))[0]
    assert batch["image"].shape == (4, 3, 16, 16) and batch["segments"].shape == (4, 16, 16)
    again = train(spec_of(root, Train()), workers=1)[0]
    assert torch.equal(batch["image"], again["image"]) and torch.equal(batch["segments"], again["segments"])


@pytest.mark.parametrize("name", ["images/train/a.jpg", "masks/train/a.png"])
def test_an_unreadable_file_of_a_pair_is_replaced_in_training(root, name, caplog):
    (root / name).write_bytes(b"broken")
    batches = train(spec_of(root, Train()))
    assert {sample_id for batch in batches for sample_id in batch["bad"]} == {"a"}
    assert "a" not in {sample_id for batch in batches for sample_id in batch["sample_id"]}
    assert f"{name} is not an image" in caplog.text


def test_evaluation_scores_grey_against_the_mask_of_an_unreadable_picture(root):
    (root / "images/train/a.jpg").write_bytes(b"broken")
    batch = evaluate(root)
    assert batch["bad"] == ["a"] and batch["sample_id"] == ["a", "b", "more/c"]
    assert batch["image"][0].shape == (3, 16, 24) and batch["image"][0].abs().max() < 0.01
    assert batch["segments"][0][0].unique().tolist() == [0]


@pytest.mark.parametrize("both", [False, True])
def test_evaluation_scores_nothing_where_the_mask_is_unreadable(root, both):
    (root / "masks/train/a.png").write_bytes(b"broken")
    if both:
        (root / "images/train/a.jpg").write_bytes(b"")
    batch = evaluate(root)
    size = (64, 64) if both else (16, 24)
    assert batch["bad"] == ["a"] and batch["image"][0].shape == (3, *size)
    assert batch["segments"][0][0].shape == size and batch["segments"][0][0].unique().tolist() == [255]
    assert (batch["image"][0].std() > 0.1) == (not both)  # a picture that can be read is shown as it is


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((5, 5)), r"a\.jpg has 24x16 pixels, but .*a\.png 5x5; take both"),
        (np.full((16, 24), 77), r"a\.png: label 77 out of range"),
    ],
)
def test_pairs_that_contradict_each_other_stop(root, labels, message):
    """Both in training and in evaluation, in one line, with the file: these are not single damaged files."""
    save_mask(root / "masks/train/a.png", labels)
    with pytest.raises(DataError, match=message):
        train(spec_of(root, Train()))
    with pytest.raises(DataError, match=message):
        evaluate(root)


def test_a_set_of_colour_masks_stops(root):
    Image.new("RGB", (24, 16)).save(root / "masks/train/a.png")
    with pytest.raises(DataError, match=r"a\.png has mode RGB, it is no map of classes"):
        evaluate(root)


def test_pictures_of_any_mode_in_a_set(root):
    Image.new("CMYK", (24, 16)).save(root / "images/train/a.jpg")
    Image.new("L", (24, 16)).save(root / "images/train/b.jpg")
    Image.new("LA", (24, 16)).save(root / "images/train/d.png")
    Image.fromarray(np.full((16, 24), 40000, np.uint16)).save(root / "images/train/e.png")
    for name in "de":
        save_mask(root / f"masks/train/{name}.png", np.zeros((16, 24)))
    batch = train(spec_of(root, Train()), global_batch_size=20, micro_batch_size=20)[0]
    assert batch["image"].shape == (20, 3, 16, 16) and batch["bad"] == []


def test_masks_with_nothing_to_score_go_through(root):
    for path in (root / "masks/train").rglob("*.png"):
        save_mask(path, np.zeros((16, 24)))
    batch = train(spec_of(root, Train(zero=True)))[0]
    assert batch["segments"].unique().tolist() == [255]


def test_a_palette_mask_of_many_colours_is_read_by_its_indices(root):
    image = Image.fromarray(np.full((16, 24), 2, np.uint8))
    image.putpalette(list(range(256)) * 3)
    file = io.BytesIO()
    image.save(file, "PNG")
    (root / "masks/train/a.png").write_bytes(file.getvalue())
    record = open_records(config("masks", root), "masks", "train")[0]
    assert read_segments(record["mask"], num_classes=3, reduce_zero_label=False).unique().tolist() == [2]
    assert open_image(record["image"]).size == (24, 16)
