"""`vlbeit prepare ade20k`: folder and zip, pairs that do not fit, labels out of range."""

from __future__ import annotations

import io
import json
import zipfile
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from vlbeit.cli import main
from vlbeit.config import DataConfig
from vlbeit.data.prepared import prepared_classes, prepared_records
from vlbeit.data.records import open_image
from vlbeit.data.segments import open_pair
from vlbeit.data.sources import open_records, open_source
from vlbeit.data_prep import ade20k, archives
from vlbeit.errors import DataError, Interrupted

PAIRS = {"training": 5, "validation": 2}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("VLBEIT_CACHE", str(tmp_path_factory.mktemp("cache")))


def mask(labels: list[int], size: tuple[int, int] = (24, 16), mode: str = "L") -> bytes:
    """Stripes of the labels."""
    row = np.repeat(labels, -(-size[0] // len(labels)))[: size[0]]
    out = io.BytesIO()
    Image.fromarray(np.tile(row, (size[1], 1)).astype(np.uint8)).convert(mode).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def root(tmp_path, make_picture) -> Path:
    """ADEChallengeData2016 in small: 150 classes, a few pairs."""
    root = tmp_path / "ADEChallengeData2016"
    for folder, count in PAIRS.items():
        for part in ("images", "annotations"):
            (root / part / folder).mkdir(parents=True)
        for number in range(1, count + 1):
            name = f"ADE_{folder[:5]}_{number:08d}"
            (root / "images" / folder / f"{name}.jpg").write_bytes(make_picture(number))
            (root / "annotations" / folder / f"{name}.png").write_bytes(mask([0, number, 150]))
    names = ["wall", "building, edifice", *(f"thing{number}" for number in range(3, 149)), "screen, door", "screen"]
    rows = "".join(f"{number}\t0.1\t1\t1\t0\t{name}\n" for number, name in enumerate(names, start=1))
    (root / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tStuff\tName\n" + rows)
    (root / "sceneCategories.txt").write_text("ADE_train_00000001 airport_terminal\n")
    return root


def zipped(root: Path) -> Path:
    path = root.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for child in sorted(root.rglob("*")):
            file.write(child, child.relative_to(root.parent))
    return path


def prepare(out: Path, source: Path, **options):
    lines: list[str] = []
    following = ade20k.prepare(out, from_=[str(source)], report=lines.append, **options)
    return json.loads((out / "prepared.json").read_text()), lines, following


def bad(out: Path) -> dict[str, str]:
    rows = map(json.loads, (out / "bad.jsonl").read_text().splitlines())
    return {row["id"]: row["what"] for row in rows if row["left_out"]}


@pytest.mark.parametrize("form", ["folder as index", "folder as parquet", "zip as parquet", "zip as folder"])
def test_pairs_classes_and_counts(tmp_path, root, form):
    source, format = form.split(" as ")
    out = tmp_path / "out"
    facts, lines, following = prepare(out, zipped(root) if source == "zip" else root, format=format)
    assert facts["format"] == format and facts["bad"] == {}
    records = prepared_records(out, "masks", "train")
    assert [records[i]["id"] for i in range(len(records))] == [f"ADE_train_{i:08d}" for i in range(1, 6)]
    for index in (4, 0, 2):
        labels = np.asarray(Image.open(io.BytesIO(bytes_of(records[index]["mask"]))))
        assert set(np.unique(labels)) == {0, index + 1, 150} and open_image(records[index]["image"]).size == (24, 16)
    assert isinstance(records[0]["mask"], bytes) == (format == "parquet")
    assert len(prepared_records(out, "masks", "val")) == 2 and len(prepared_records(out, "images", "val")) == 2
    classes = prepared_classes(out, "masks")
    assert len(classes) == 150 and classes[:2] == ["wall", "building"]  # the first of several names
    assert classes[148:] == ["screen, door", "screen"]  # unless another class has it
    counts = facts["splits"]["train"]["classes"]
    assert counts["wall"] == 1 and counts["screen"] == 5 and counts["thing9"] == 0
    words = "vlbeit train stage=mim task=segmentation recipe=beit_base_ade20k_512 init=beit_base_patch16_224_pt22k"
    assert following == f"{words} data=ade20k data.root={out} run=runs/{out.name}-segmentation"
    assert any(line.startswith("train: 5 records") and "6 of 150 classes" in line for line in lines)


def test_as_the_source_reads_it_unprepared(tmp_path, root):
    prepare(tmp_path / "out", root)
    plain, made = (DataConfig(name="ade20k", root=str(path)) for path in (root, tmp_path / "out"))
    assert open_source(plain).classes("masks") == open_source(made).classes("masks")
    for split in ("train", "val"):
        records, same = (open_records(config, "masks", split) for config in (plain, made))
        assert [records[i] for i in range(len(records))] == [same[i] for i in range(len(same))]


def test_two_steps_of_training(tmp_path, root, capsys):
    with chdir(tmp_path):
        assert main(["prepare", "ade20k", "--from", str(zipped(root)), "--out", "data/ade20k"]) == 0
        assert capsys.readouterr().out.splitlines()[-1].startswith("next: vlbeit train stage=mim task=segmentation ")
        words = ["stage=mim", "task=segmentation", "data=ade20k", "data.root=data/ade20k", "model=tiny", "init=none"]
        small = ["data.image_size=32", "steps=2", "data.workers=0", "global_batch_size=2", "micro_batch_size=2"]
        assert main(["train", *words, *small]) == 0
        lines = (tmp_path / "runs/mim-segmentation/metrics.jsonl").read_text().splitlines()
        assert "miou" in json.loads(lines[-1])["evaluation"]


def bytes_of(value: bytes | str) -> bytes:
    return value if isinstance(value, bytes) else Path(value).read_bytes()


def test_auto_is_an_index_of_a_folder_and_parquet_of_a_zip(tmp_path, root):
    assert prepare(tmp_path / "a", root)[0]["format"] == "index"
    assert prepare(tmp_path / "b", zipped(root))[0]["format"] == "parquet"
    assert prepared_records(tmp_path / "a", "masks", "train")[0]["image"].startswith(str(root))


def test_pairs_that_do_not_fit_are_named(tmp_path, root, make_picture):
    folder = root / "annotations/training"
    (folder / "ADE_train_00000001.png").write_bytes(mask([1], size=(24, 15)))
    (folder / "ADE_train_00000002.png").write_bytes(mask([0, 151, 200, 255]))
    (folder / "ADE_train_00000003.png").unlink()
    (folder / "ADE_train_00000004.png").write_bytes(mask([1], mode="RGB"))
    (folder / "ADE_train_00000009.png").write_bytes(mask([1]))
    val = root / "annotations/validation"
    (val / "ADE_valid_00000001.png").write_bytes(mask([0]))  # empty: kept and noted
    (val / "ADE_valid_00000002.png").write_bytes(mask([1])[:-30])
    (root / "images/validation/ADE_valid_00000003.jpg").write_bytes(make_picture(mode="L"))
    (val / "ADE_valid_00000003.png").write_bytes(mask([150, 255]))
    facts, lines, _ = prepare(tmp_path / "out", root)
    found = bad(tmp_path / "out")
    assert found.pop("ADE_valid_00000002").startswith("mask cannot be read: ")
    assert found == {
        "ADE_train_00000001": "mask of another size: 24x15, picture 24x16",
        "ADE_train_00000002": "mask labels out of range: 151, 200 (0..150 are known)",
        "ADE_train_00000003": "mask is missing: there is no .png of this name",
        "ADE_train_00000004": "mask has colours: mode RGB, not one number a pixel",
        "ADE_train_00000009": "picture is missing",
    }
    assert [facts["splits"][split]["records"] for split in ("train", "val")] == [1, 2]
    assert facts["bad"]["mask is empty"] == 1 and "  mask labels out of range: 1" in lines
    assert prepared_records(tmp_path / "out", "masks", "train")[0]["id"] == "ADE_train_00000005"


def test_a_picture_is_compared_with_its_mask_as_it_is_stored(tmp_path, root):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (24, 16)).save(root / "images/training/ADE_train_00000001.jpg", exif=exif)
    Image.new("RGB", (16, 24)).save(root / "images/training/ADE_train_00000002.jpg", exif=exif)
    facts, *_ = prepare(tmp_path / "out", root)
    assert facts["splits"]["train"]["records"] == 4 and facts["bad"]["EXIF orientation"] == 2
    assert bad(tmp_path / "out")["ADE_train_00000002"] == "mask of another size: 24x16, picture 16x24"
    record = prepared_records(tmp_path / "out", "masks", "train")[0]
    assert open_pair(record, 150, True)[0].size == (24, 16)


def test_check_header_does_not_read_labels_and_none_reads_nothing(tmp_path, root):
    folder = root / "annotations/training"
    (folder / "ADE_train_00000001.png").write_bytes(mask([151]))
    (folder / "ADE_train_00000002.png").write_bytes(mask([1], size=(24, 15)))
    counts = {
        check: prepare(tmp_path / check, root, check=check)[0]["splits"]["train"]
        for check in ("none", "header", "full")
    }
    assert {check: split["records"] for check, split in counts.items()} == {"none": 5, "header": 4, "full": 3}


def test_an_interrupted_zip_goes_on(tmp_path, root, monkeypatch):
    monkeypatch.setattr("vlbeit.data_prep.shards._LOOKAHEAD", 1)
    monkeypatch.setattr("vlbeit.data_prep.shards._ROWS", 2)
    source = zipped(root)
    read: list[str] = []
    original = archives.Entry.read

    def counted(entry):
        read.append(entry.name)
        if sum("images/training" in name for name in read) == 4 and len(read) < 20:
            raise KeyboardInterrupt
        return original(entry)

    monkeypatch.setattr(archives.Entry, "read", counted)
    with pytest.raises(Interrupted, match="holds 2 records in whole shards"):
        prepare(tmp_path / "out", source)
    monkeypatch.setattr(archives.Entry, "read", original)
    facts, lines, _ = prepare(tmp_path / "out", source)
    assert "train: goes on behind 2 records" in lines
    records = prepared_records(tmp_path / "out", "masks", "train")
    assert list(records.column("id")) == [f"ADE_train_{i:08d}" for i in range(1, 6)] and facts["bad"] == {}


def test_whatever_a_decoder_raises_over_a_mask_is_its_fault(tmp_path, root, monkeypatch):
    sound = PngImagePlugin.PngImageFile.load

    def load(image):
        if "00000003" in str(image.filename):
            raise IndexError("image index out of range")
        return sound(image)

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    prepare(tmp_path / "out", root)
    assert bad(tmp_path / "out") == {"ADE_train_00000003": "mask cannot be read: image index out of range"}


def test_masks_are_png_since_jpeg_changes_labels(tmp_path, root):
    file = root / "annotations/training/ADE_train_00000003.png"
    Image.open(file).save(file.with_suffix(".jpg"))
    file.unlink()
    facts, *_ = prepare(tmp_path / "out", root)
    assert facts["splits"]["train"]["records"] == 4 and facts["bad"] == {"mask is missing": 1}


def test_pictures_that_differ_in_their_suffix_alone_are_named(tmp_path, root, make_picture):
    file = root / "images/training/ADE_train_00000003.jpg"
    file.with_suffix(".JPEG").write_bytes(make_picture(9))
    said = r"files that differ in their suffix alone: 1 \(images/training/ADE_train_00000003\); keep one of each"
    for source in (root, zipped(root)):
        with pytest.raises(DataError, match=f"{source}: {said}"):
            prepare(tmp_path / "out", source)


def test_mistakes(tmp_path, root, capsys):
    (root / "objectInfo150.txt").rename(tmp_path / "kept.txt")
    with pytest.raises(DataError, match=r"has no objectInfo150.txt, which names the classes"):
        prepare(tmp_path / "out", root)
    (root / "objectInfo150.txt").write_text("Idx\tName\n2\twall\n")
    with pytest.raises(DataError, match=r"objectInfo150.txt: the first column must count the classes"):
        prepare(tmp_path / "out", root)
    (tmp_path / "kept.txt").rename(root / "objectInfo150.txt")
    (root / "images/training").rename(root / "images/train")
    with pytest.raises(DataError, match=r"has no pictures in images/training; give --from ADEChallengeData2016"):
        prepare(tmp_path / "out", root)
    assert main(["prepare", "ade20k", "--from", str(tmp_path / "gone.zip"), "--out", str(tmp_path / "out")]) == 1
    assert "gone.zip does not exist" in capsys.readouterr().err
    assert main(["prepare", "ade20k", "--from", f"{root},{tmp_path}", "--out", str(tmp_path / "out")]) == 2
