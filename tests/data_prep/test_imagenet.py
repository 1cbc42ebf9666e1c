"""`vlbeit prepare imagenet`: tars of class tars, labels of val from three places, folders, interruptions."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import time
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from vlbeit.cli import main
from vlbeit.config import DataConfig
from vlbeit.data.prepared import prepared_records
from vlbeit.data.records import open_image
from vlbeit.data.sources import open_records, open_source
from vlbeit.data_prep import archives, hashes, imagenet, preparation, progress
from vlbeit.data_prep.imagenet_labels import file_labels, wnid_in
from vlbeit.errors import DataError, Interrupted, UsageError
from vlbeit.models.known import KNOWN

WNIDS = ("n02000001", "n01000002", "n03000003")  # not sorted, as the class tars need not be
EACH = 6


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("VLBEIT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def train_tar(make_tar, make_picture, pack):
    def classes():
        for number, wnid in enumerate(WNIDS):
            pictures = [(f"{wnid}_{i}.JPEG", make_picture(10 * number + i)) for i in range(EACH)]
            yield f"{wnid}.tar", pack(pictures)

    return make_tar("ILSVRC2012_img_train.tar", classes())


@pytest.fixture
def val_tar(make_tar, make_picture):
    return make_tar(
        "ILSVRC2012_img_val.tar", [(f"ILSVRC2012_val_{i:08d}.JPEG", make_picture(90 + i)) for i in (2, 1, 3)]
    )


@pytest.fixture
def val_labels(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("n03000003\nn01000002\nn02000001\n")
    return path


@pytest.fixture
def devkit(make_tar):
    """With IDs in another order than the wnids, as the real one."""
    scipy_io = pytest.importorskip("scipy.io")
    kinds = [("ILSVRC2012_ID", float), ("WNID", object), ("words", object), ("gloss", object)]
    synsets = np.array([(i, wnid, f"thing {i}, item", "") for i, wnid in enumerate(WNIDS, start=1)], dtype=kinds)
    meta = io.BytesIO()
    scipy_io.savemat(meta, {"synsets": synsets.reshape(-1, 1)}, do_compression=True)
    data = "ILSVRC2012_devkit_t12/data"
    members = [
        (f"{data}/meta.mat", meta.getvalue()), (f"{data}/ILSVRC2012_validation_ground_truth.txt", b"3\n2\n1\n"),
    ]  # fmt: skip
    return make_tar("ILSVRC2012_devkit_t12.tar.gz", members, "w:gz")


def prepare(out: Path, *sources: object, **options):
    lines: list[str] = []
    following = imagenet.prepare(out, from_=[str(source) for source in sources], report=lines.append, **options)
    return json.loads((out / "prepared.json").read_text()), lines, following


def labels(root: Path, split: str) -> dict[str, int]:
    records = open_records(DataConfig(name="imagefolder", root=str(root)), "labelled", split)
    return dict(zip(records.column("id"), records.column("label"), strict=True))


@pytest.mark.parametrize("format", ["parquet", "folder"])
def test_tars_as_published(tmp_path, train_tar, val_tar, val_labels, make_picture, format):
    out = tmp_path / "out"
    facts, lines, following = prepare(out, train_tar, val_tar, val_labels=val_labels, format=format)
    assert facts["classes"] == sorted(WNIDS) == json.loads((out / "classes.json").read_text())
    assert open_source(DataConfig(name="imagefolder", root=str(out))).classes() == sorted(WNIDS)
    assert labels(out, "val") == {
        "n03000003/ILSVRC2012_val_00000001.JPEG": 2, "n01000002/ILSVRC2012_val_00000002.JPEG": 0,
        "n02000001/ILSVRC2012_val_00000003.JPEG": 1,
    }  # fmt: skip
    found = labels(out, "train")
    assert len(found) == 3 * EACH and all(sorted(WNIDS)[label] == name[:9] for name, label in found.items())
    record = next(
        r for r in map(prepared_records(out, "labelled", "train").__getitem__, range(18)) if "01000002_3" in r["id"]
    )
    whole = make_picture(13)
    assert (record["image"] if format == "parquet" else Path(record["image"]).read_bytes()) == whole
    train = facts["splits"]["train"]
    assert (train["records"], train["smallest"], train["classes"]) == (18, [24, 16], dict.fromkeys(sorted(WNIDS), EACH))
    assert train["bytes"] == sum(len(make_picture(10 * n + i)) for n in range(3) for i in range(EACH))
    words = "vlbeit train stage=mim task=classification init=beit_base_patch16_224_pt22k data=imagefolder"
    assert following == f"{words} data.root={out} run=runs/out-classification"
    assert any(line.startswith("train: 18 records, ") and "3 of 3 classes, 6 to 6 each" in line for line in lines)
    left = {path.name for path in out.iterdir()} - {"train", "val"}
    assert left == {"prepared.json", "bad.jsonl", "classes.json", "train-00000.parquet", "val-00000.parquet"}
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert f"{out}: already there" in prepare(out, train_tar, val_tar, val_labels=val_labels, format=format)[1]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_labels_from_the_devkit(tmp_path, train_tar, val_tar, devkit):
    prepare(tmp_path / "out", train_tar, val_tar, devkit)
    assert sorted(labels(tmp_path / "out", "val").items()) == [
        ("n01000002/ILSVRC2012_val_00000002.JPEG", 0), ("n02000001/ILSVRC2012_val_00000003.JPEG", 1),
        ("n03000003/ILSVRC2012_val_00000001.JPEG", 2),
    ]  # fmt: skip


def test_labels_from_the_names_as_in_the_archives_of_the_hub(tmp_path, make_tar, make_picture):
    train = [
        make_tar(
            f"train_images_{part}.tar.gz", [(f"{wnid}_{part}_{wnid}.JPEG", make_picture()) for wnid in WNIDS], "w:gz"
        )
        for part in (0, 1)
    ]
    name = "ILSVRC2012_val_00000001_n02000001.JPEG"
    val = make_tar("val_images.tar.gz", [(name, make_picture())], "w:gz")
    prepare(tmp_path / "out", f"{train[0]},{train[1]}", val)
    assert labels(tmp_path / "out", "val") == {f"n02000001/{name}": 1}
    assert len(labels(tmp_path / "out", "train")) == 6


def test_without_labels_the_three_ways_are_named(tmp_path, train_tar, val_tar):
    with pytest.raises(DataError, match=r"val_00000002.JPEG of val has no label; .*devkit.*--val-labels FILE.*Hub's"):
        prepare(tmp_path / "out", train_tar, val_tar)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("count", [2, 4])
def test_another_number_of_labels_than_pictures(tmp_path, train_tar, val_tar, count):
    file = tmp_path / "labels.txt"
    file.write_text("n03000003\n" * count)
    with pytest.raises(DataError, match=rf"--val-labels .*labels.txt has labels for {count} pictures, val has 3"):
        prepare(tmp_path / "out", train_tar, val_tar, val_labels=file)
    assert not (tmp_path / "out").exists()


def test_files_of_labels(tmp_path):
    path = tmp_path / "LOC_val_solution.csv"
    path.write_text("ImageId,PredictionString\nILSVRC2012_val_00000007,n03995372 85 1 499 272\n")
    assert file_labels(path) == {7: "n03995372"}
    path.write_text("n00000001\n\n12\n")
    with pytest.raises(DataError, match=r"'12' has no class"):
        file_labels(path)
    assert wnid_in("n01440764_10026.JPEG") == "n01440764" and wnid_in("n01440764_1_n02000001.JPEG") == "n02000001"
    assert wnid_in("dog_1.jpg") is wnid_in("n0144076.JPEG") is None


@pytest.mark.parametrize("format", ["auto", "parquet", "folder"])
def test_a_sorted_folder(tmp_path, make_picture, format):
    root = tmp_path / "pictures"
    for name in ("train/cat/a.jpg", "train/cat/more/a.jpg", "train/dog/c.jpg", "val/dog/d.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(make_picture())
    facts, *_ = prepare(tmp_path / "out", root, format=format)
    plain = DataConfig(name="imagefolder", root=str(root))
    for split in ("train", "val"):  # as without preparation
        there = open_records(plain, "labelled", split)
        assert labels(tmp_path / "out", split) == dict(zip(there.column("id"), there.column("label"), strict=True))
    assert facts["format"] == {"auto": "index"}.get(format, format)
    first = prepared_records(tmp_path / "out", "labelled", "train")[0]["image"]
    if format == "auto":
        assert first == str(root / "train/cat/a.jpg") and not list((tmp_path / "out").glob("*/"))
    assert open_image(first).size == (24, 16)


def test_the_folders_of_kaggle_stay_where_they_are(tmp_path, make_picture):
    """Sorted train, flat val, and a table of the labels."""
    root = tmp_path / "CLS-LOC"
    for name in (
        "train/n01000002/n01000002_1.JPEG",
        "train/n02000001/n02000001_1.JPEG",
        "val/ILSVRC2012_val_00000004.JPEG",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(make_picture())
    solution = tmp_path / "LOC_val_solution.csv"
    solution.write_text("ImageId,PredictionString\nILSVRC2012_val_00000004,n02000001 1 2 3 4 n01000002 1 2 3 4\n")
    prepare(tmp_path / "out", root, val_labels=solution)
    assert labels(tmp_path / "out", "val") == {"n02000001/ILSVRC2012_val_00000004.JPEG": 1}
    image = prepared_records(tmp_path / "out", "labelled", "val")[0]["image"]
    assert image == str(root / "val/ILSVRC2012_val_00000004.JPEG")


def test_progress_with_eta_in_lines_and_as_a_bar(tmp_path, train_tar, monkeypatch, capsys):
    monkeypatch.setattr(progress, "_EVERY", 0.0)
    _, lines, _ = prepare(tmp_path / "lines", train_tar)
    shown = [line for line in lines if "ETA" in line]
    assert len(shown) == 18
    assert re.fullmatch(r"train: 18 files, [\d.]+ kB of [\d.]+ kB, [\d.]+ .B/s, ETA 0:00:00", shown[-1])
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    _, lines, _ = prepare(tmp_path / "bar", train_tar)
    assert not [line for line in lines if "ETA" in line] and "train" in capsys.readouterr().err


def test_bad_pictures_are_named_never_dropped_silently(tmp_path, make_tar, make_picture, pack, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    big, good = make_picture(1, size=(100, 60)), make_picture(1)
    pictures = [
        ("good.JPEG", good), ("cmyk.JPEG", make_picture(2, mode="CMYK")), ("broken.JPEG", b"\xff\xd8 no picture"),
        ("cut.JPEG", make_picture(3, size=(48, 48))[:-700]), ("png.JPEG", make_picture(4, format="PNG")),
        ("huge.JPEG", big), ("bomb.PNG", make_picture(5, size=(200, 60), format="PNG")), ("notes.txt", b"hello"),
        ("../up.JPEG", good), ("good.JPEG", good), ("empty.JPEG", b""),
    ]  # fmt: skip
    out = tmp_path / "out"
    facts, lines, _ = prepare(out, make_tar("train.tar", [("n01000002.tar", pack(pictures))]), check="full")
    bad = {}
    for entry in map(json.loads, (out / "bad.jsonl").read_text().splitlines()):
        assert entry["split"] == "train"
        bad[entry["id"].removeprefix("n01000002/")] = (entry["what"].partition(":")[0], entry["left_out"])
    assert bad == {
        "cmyk.JPEG": ("CMYK", False), "broken.JPEG": ("cannot be read", True), "cut.JPEG": ("cannot be read", True),
        "png.JPEG": ("other format", False), "huge.JPEG": ("huge", False), "bomb.PNG": ("cannot be read", True),
        "notes.txt": ("not a picture by its name", True), "../up.JPEG": ("refused", True),
        "good.JPEG": ("refused", True), "empty.JPEG": ("cannot be read", True),
    }  # fmt: skip
    split = facts["splits"]["train"]
    assert (split["records"], split["left_out"], split["noted"]) == (4, 7, 3)
    assert facts["bad"] == {
        "CMYK": 1, "cannot be read": 4, "other format": 1, "huge": 1, "not a picture by its name": 1, "refused": 2,
    }  # fmt: skip
    records = prepared_records(out, "labelled", "train")
    assert [open_image(records[i]["image"]).mode for i in range(len(records))] == ["RGB"] * 4  # whatever is kept opens
    assert "  cannot be read: 4" in lines and f"{out / 'bad.jsonl'} names each of these" == lines[-2]


def test_check_header_passes_what_only_decoding_finds(tmp_path, make_tar, make_picture, pack):
    pictures = [("good.JPEG", make_picture()), ("cut.JPEG", make_picture(3, size=(48, 48))[:-700])]
    train = make_tar("train.tar", [("n01000002.tar", pack(pictures)), ("n3.tar", pack([("no.JPEG", b"")]))])
    counts = {}
    for check in ("none", "header", "full"):
        counts[check] = prepare(tmp_path / check, train, check=check)[0]["splits"]["train"]["records"]
    assert counts == {"none": 3, "header": 2, "full": 1}


def test_a_split_without_one_sound_picture_is_not_finished(tmp_path, make_tar, pack):
    train = make_tar("train.tar", [("n01000002.tar", pack([("a.JPEG", b"no")]))])
    with pytest.raises(DataError, match=r"'train' has no record that can be used: n01000002/a.JPEG: cannot be read"):
        prepare(tmp_path / "out", train)
    assert not (tmp_path / "out/prepared.json").exists()


@pytest.mark.parametrize("format", ["parquet", "folder"])
@pytest.mark.parametrize("stop_at", [1, 9, 16, 20])
def test_interrupted_it_goes_on_where_it_stopped(
    tmp_path, train_tar, val_tar, val_labels, monkeypatch, format, stop_at
):
    monkeypatch.setattr("vlbeit.data_prep.shards._LOOKAHEAD", 1)
    monkeypatch.setattr("vlbeit.data_prep.shards._ROWS", 4)
    options = {"val_labels": val_labels, "format": format}
    prepare(tmp_path / "whole", train_tar, val_tar, **options)
    read: list[str] = []
    original = archives.Entry.read

    def counted(entry):
        read.append(entry.name)
        if len(read) == stop_at:
            raise KeyboardInterrupt
        return original(entry)

    monkeypatch.setattr(archives.Entry, "read", counted)
    out = tmp_path / "out"
    with pytest.raises(Interrupted, match="the same command goes on behind them"):
        prepare(out, train_tar, val_tar, **options)
    assert not (out / "prepared.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert len(kept) == {1: 0, 9: 2, 16: 3, 20: 5}[stop_at]
    first = len(read)
    with open(out / "unfinished.jsonl", "a") as journal:  # killed while it wrote a line
        journal.write('{"split": "train", "fi')
    (out / ".tmp-train-00009.parquet").write_text("torn")
    facts, lines, _ = prepare(out, train_tar, val_tar, **options)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    rows = 18 if len(kept) == 5 else 4 * len(kept)  # the last shard of train has two rows
    assert len(read) - first == 21 - rows
    for split in ("train", "val"):
        assert labels(out, split) == labels(tmp_path / "whole", split)
    whole = json.loads((tmp_path / "whole/prepared.json").read_text())
    assert facts["splits"] == whole["splits"] and not list(out.glob(".*"))
    assert any(line.startswith(f"train: {'already done' if rows == 18 else 'goes on behind'}") for line in lines) == (
        rows > 0
    )


def test_killed_it_goes_on_where_it_stopped(tmp_path, train_tar):
    """SIGKILL: nothing has a chance to tidy up."""
    code = f"""
import time
from vlbeit.data_prep import archives, imagenet, shards
shards._LOOKAHEAD, shards._ROWS = 1, 4
read = archives.Entry.read
archives.Entry.read = lambda entry: (time.sleep(0.05), read(entry))[1]
imagenet.prepare({str(tmp_path / "out")!r}, from_=[{str(train_tar)!r}])
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    journal = tmp_path / "out/unfinished.jsonl"
    deadline = time.monotonic() + 60
    while not (journal.exists() and journal.read_text().count("\n") > 2):  # the arguments and two shards
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "out/prepared.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("train-*.parquet")}
    facts, lines, _ = prepare(tmp_path / "out", train_tar)
    assert len(kept) >= 2 and all(path.stat().st_mtime_ns == then for path, then in list(kept.items())[:2])
    assert facts["splits"]["train"]["records"] == len(labels(tmp_path / "out", "train")) == 18
    assert any(line.startswith("train: goes on behind ") for line in lines)


def test_nothing_is_written_into_a_folder_of_something_else(tmp_path, train_tar):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("")
    with pytest.raises(UsageError, match=r"was not begun by `vlbeit prepare`; choose another folder with --out"):
        prepare(tmp_path / "out", train_tar)
    prepare(tmp_path / "done", train_tar)
    with pytest.raises(UsageError, match=r"was prepared with check=header, not check=full; remove it"):
        prepare(tmp_path / "done", train_tar, check="full")


def test_a_second_process_is_kept_out(tmp_path, train_tar):
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out/.lock"), pytest.raises(UsageError, match="another process prepares this folder"):
        prepare(tmp_path / "out", train_tar)


def test_a_cut_archive_is_found_before_anything_is_written(tmp_path, train_tar):
    os.truncate(train_tar, train_tar.stat().st_size // 2)
    with pytest.raises(DataError, match=r"img_train.tar is cut off or damaged behind n\d{8}.tar .*; get it again"):
        prepare(tmp_path / "out", train_tar)
    assert not (tmp_path / "out").exists()


def test_too_little_space(tmp_path, train_tar, monkeypatch):
    monkeypatch.setattr(preparation.shutil, "disk_usage", lambda path: SimpleNamespace(free=5000))
    with pytest.raises(DataError, match=r"about .* kB are still to be written, 5 kB are free there; make room"):
        prepare(tmp_path / "out", train_tar)


def test_published_hashes(tmp_path, train_tar, monkeypatch):
    with pytest.raises(DataError, match=r"its md5 is [0-9a-f]{32}, published is 1d675b47.*; get the archive again"):
        prepare(tmp_path / "out", train_tar, verify=True)
    right = hashlib.md5(train_tar.read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setitem(hashes.PUBLISHED, train_tar.name, ("md5", right))
    assert f"{train_tar.name}: md5 {right}, as published" in prepare(tmp_path / "out2", train_tar, verify=True)[1]


def test_sources_that_cannot_be_told_apart(tmp_path, train_tar, val_tar, make_picture):
    whole = train_tar.rename(tmp_path / "fall11_whole.tar")
    with pytest.raises(UsageError, match=r"tells neither train, val nor devkit; write train=.*fall11_whole.tar"):
        prepare(tmp_path / "out", whole)
    facts, _, following = prepare(tmp_path / "out", f"train={whole}")
    assert list(facts["splits"]) == ["train"] and "data.val_split=train" in following
    assert following.startswith("vlbeit train stage=tokenizer ") and following.endswith(" run=runs/out-tokenizer")
    with pytest.raises(UsageError, match=r"has no training data"):
        prepare(tmp_path / "out2", val_tar)
    with pytest.raises(DataError, match=r"gone_train.tar does not exist"):
        prepare(tmp_path / "out2", tmp_path / "gone_train.tar")
    with pytest.raises(UsageError, match=r"--format index needs pictures that lie in a folder"):
        prepare(tmp_path / "out2", f"train={whole}", format="index")
    with pytest.raises(UsageError, match=r"--threads -1, --shard-mb 256: give 0 or more, and 1 or more"):
        prepare(tmp_path / "out2", f"train={whole}", threads=-1)
    with pytest.raises(UsageError, match=r"has an empty part"):
        prepare(tmp_path / "out2", f"train={whole},")


def test_classes_of_val_that_train_lacks(tmp_path, train_tar, make_tar, make_picture):
    val = make_tar("val_images.tar", [("ILSVRC2012_val_00000001_n09999999.JPEG", make_picture())])
    with pytest.raises(DataError, match=r"val has 1 class that train has not, such as n09999999 of ILSVRC2012_val"):
        prepare(tmp_path / "out", train_tar, val)


def test_one_folder_with_the_archives(tmp_path, train_tar, val_tar, devkit):
    folder = tmp_path / "downloads"
    folder.mkdir()
    for path in (train_tar, val_tar, devkit):
        path.rename(folder / path.name)
    facts, *_ = prepare(tmp_path / "out", folder)
    assert [facts["splits"][split]["records"] for split in ("train", "val")] == [18, 3]


@pytest.mark.parametrize("format", ["parquet", "folder"])
def test_the_command_and_two_steps_of_training(tmp_path, train_tar, val_tar, val_labels, capsys, format):
    with chdir(tmp_path):
        words = [
            "--from",
            f"{train_tar},{val_tar}",
            "--val-labels",
            str(val_labels),
            "--out",
            "data",
            "--format",
            format,
        ]
        assert main(["prepare", "imagenet", *words]) == 0
        following = capsys.readouterr().out.splitlines()[-1]
        own, init = "data=imagefolder data.root=data run=runs/data-classification", "init=beit_base_patch16_224_pt22k"
        assert following == f"next: vlbeit train stage=mim task=classification {init} {own}"
        assert init.partition("=")[2] in KNOWN
        small = ["model=tiny", "data.image_size=32", "steps=2", "data.workers=0", "global_batch_size=4"]
        assert main([*following.replace(init, "init=none").split()[2:], *small]) == 0
        lines = (tmp_path / "runs/data-classification/metrics.jsonl").read_text().splitlines()
        assert "evaluation" in json.loads(lines[-1])
        classes = json.loads((tmp_path / "runs/data-classification/checkpoint/classes.json").read_text())
        assert classes == sorted(WNIDS)
    assert main(["prepare", "imagenet", "--out", str(tmp_path / "x")]) == 2
    assert "--from" in capsys.readouterr().err
