"""`vlbeit prepare imagenet` over names that clash, labels that change, archives that are not meant."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from vlbeit.cli import main
from vlbeit.data.prepared import prepared_records
from vlbeit.data_prep import imagenet
from vlbeit.data_prep.imagenet_labels import file_labels
from vlbeit.errors import DataError, Interrupted, UsageError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("VLBEIT_CACHE", str(tmp_path_factory.mktemp("cache")))


def prepare(out: Path, *sources: object, **options):
    lines: list[str] = []
    imagenet.prepare(out, from_=[str(source) for source in sources], report=lines.append, **options)
    return json.loads((out / "prepared.json").read_text()), lines


def bad(out: Path) -> dict[str, str]:
    return {entry["id"]: entry["what"] for entry in map(json.loads, (out / "bad.jsonl").read_text().split("\n")[:-1])}


def pictures(out: Path, split: str = "train") -> dict[str, bytes]:
    records = prepared_records(out, "labelled", split)
    found = [records[i] for i in range(len(records))]
    assert len({record["id"] for record in found}) == len(found)
    return {
        record["id"]: image if isinstance(image := record["image"], bytes) else Path(image).read_bytes()
        for record in found
    }


@pytest.fixture
def stop_at(monkeypatch):
    """Ctrl-C at the n-th picture that is examined; shards of two records."""
    monkeypatch.setattr("vlbeit.data_prep.shards._LOOKAHEAD", 1)
    monkeypatch.setattr("vlbeit.data_prep.shards._ROWS", 2)
    examine = imagenet.examine_picture

    def stop(number: int) -> None:
        seen: list[object] = []

        def examined(item, check):
            seen.append(item)
            if len(seen) == number:
                raise KeyboardInterrupt
            return examine(item, check)

        monkeypatch.setattr(imagenet, "examine_picture", examined)

    return stop


def write(root: Path, *names: str, make_picture) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(make_picture(number))
    return root


@pytest.mark.parametrize("format", ["parquet", "folder"])
def test_two_pictures_with_one_name_in_two_archives(tmp_path, make_tar, make_picture, format):
    names = ([("cat/1.jpg", make_picture(1)), ("dog/2.jpg", make_picture(2))], [("cat/1.jpg", make_picture(3))])
    tars = [make_tar(f"train_{i}.tar", members) for i, members in enumerate(names)]
    facts, _ = prepare(tmp_path / "out", *tars, format=format)
    assert pictures(tmp_path / "out") == {"cat/1.jpg": make_picture(1), "dog/2.jpg": make_picture(2)}
    assert (facts["splits"]["train"]["records"], facts["splits"]["train"]["left_out"]) == (2, 1)
    assert bad(tmp_path / "out") == {"cat/1.jpg": f"name is taken: by another picture of train; {tars[1]}: cat/1.jpg"}


@pytest.mark.parametrize("format", ["parquet", "folder"])
def test_two_pictures_with_one_name_in_one_archive_and_an_interruption(
    tmp_path, make_tar, make_picture, stop_at, format
):
    members = [(f"{top}/cat/{i}.jpg", make_picture(10 * n + i)) for n, top in enumerate("xyz") for i in (1, 2, 3)]
    source = make_tar("train.tar", [("z/cat/0.jpg", b"broken"), ("y/cat/0.jpg", make_picture(50)), *members])
    stop_at(8)
    with pytest.raises(Interrupted):
        prepare(tmp_path / "out", source, format=format)
    stop_at(0)
    facts, lines = prepare(tmp_path / "out", source, format=format)
    assert "train: goes on behind 4 records" in lines
    first = {f"cat/{i}.jpg": make_picture(i) for i in (1, 2, 3)}
    assert pictures(tmp_path / "out") == {"cat/0.jpg": make_picture(50), **first}  # what is left out takes no name
    assert facts["bad"] == {"name is taken": 6, "cannot be read": 1} and facts["splits"]["train"]["left_out"] == 7


def test_what_a_file_manager_leaves_behind_shifts_nothing(tmp_path, make_picture, stop_at):
    root = write(tmp_path / "pictures", *(f"train/cat/{i}.jpg" for i in range(7)), make_picture=make_picture)
    (root / "train/cat/.DS_Store").write_bytes(b"x")
    stop_at(4)
    with pytest.raises(Interrupted):
        prepare(tmp_path / "out", root)
    (root / "train/cat/.DS_Store").unlink()
    stop_at(0)
    prepare(tmp_path / "out", root)
    assert len(pictures(tmp_path / "out")) == 7


def test_a_folder_that_changed_behind_an_interruption_is_refused(tmp_path, make_picture, stop_at):
    root = write(tmp_path / "pictures", *(f"train/cat/{i}.jpg" for i in range(7)), make_picture=make_picture)
    (root / "train/cat/0.txt").write_bytes(b"x")
    stop_at(4)
    with pytest.raises(Interrupted):
        prepare(tmp_path / "out", root)
    (root / "train/cat/0.txt").unlink()
    with pytest.raises(UsageError, match=r"was prepared with files=.*8 files.*, not files=.*7 files.*; remove it"):
        prepare(tmp_path / "out", root)


def test_labels_that_changed_behind_an_interruption_are_refused(tmp_path, make_tar, make_picture, stop_at, monkeypatch):
    train = make_tar("train.tar", [(f"n0000000{i}_1.JPEG", make_picture(i)) for i in (1, 2)])
    val = make_tar("val.tar", [(f"ILSVRC2012_val_{i:08d}.JPEG", make_picture(i)) for i in range(1, 5)])
    labels = tmp_path / "labels.txt"
    labels.write_text("n00000001\n" * 4)
    stop_at(6)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Interrupted):
        prepare(tmp_path / "out", train, val, val_labels=Path("labels.txt"))
    stop_at(0)
    (tmp_path / "other.txt").write_text("n00000001\n" * 3 + "n00000002\n")
    with pytest.raises(UsageError, match=r"was prepared with labels=4 labels, .*not labels=4 labels, .*; remove it"):
        prepare(tmp_path / "out", train, val, val_labels=tmp_path / "other.txt")
    moved = labels.rename(tmp_path / "moved.txt")  # where they lie is no matter
    facts, _ = prepare(tmp_path / "out", train, val, val_labels=moved)
    assert facts["splits"]["val"]["classes"] == {"n00000001": 4, "n00000002": 0}


def test_a_first_line_that_is_no_heading(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_bytes(b"\xef\xbb\xbfn00000001\nn00000002\n")
    assert file_labels(path) == {1: "n00000001", 2: "n00000002"}
    path.write_bytes(b"\xef\xbb\xbfImageId,PredictionString\r\nILSVRC2012_val_00000002,n00000002 1 2 3 4\r\n")
    assert file_labels(path) == {2: "n00000002"}
    path.write_text("n0000001\nn00000002\n")
    with pytest.raises(DataError, match=r"labels.txt: 'n0000001' has no class \(n and 8 digits\)"):
        file_labels(path)
    path.write_bytes("n00000001 caf\xe9\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"labels.txt is no UTF-8 text .*; save it as such"):
        file_labels(path)


def test_archives_that_are_not_meant(tmp_path, make_tar, make_picture, pack):
    names = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_train_t3.tar", "ILSVRC2012_bbox_train_v2.tar.gz")
    for number, name in enumerate(names):
        make_tar(name, [("n00000001.tar", pack([(f"n00000001_{number}.JPEG", make_picture(number))]))])
    (tmp_path / "carnivals.zip").write_bytes(b"")
    facts, lines = prepare(tmp_path / "out", tmp_path)
    assert facts["splits"]["train"]["records"] == 1 and list(facts["splits"]) == ["train"]
    for name in (*names[1:], "carnivals.zip"):
        assert f"{name}: not read, its name tells neither train, val nor devkit" in lines
    for name in (*names[1:], "carnivals.zip"):
        with pytest.raises(UsageError, match=r"its name tells neither train, val nor devkit; write train="):
            prepare(tmp_path / "out2", tmp_path / name)
    facts, _ = prepare(tmp_path / "dogs", f"train={tmp_path / names[1]}")  # by the user's own word it is
    assert facts["splits"]["train"]["records"] == 1


def test_archives_of_two_releases_in_one_folder(tmp_path, make_tar, make_picture):
    for name in ("ILSVRC2012_img_train.tar", "train_images_0.tar.gz", "train_images_1.tar.gz"):
        make_tar(name, [("n00000001_1.JPEG", make_picture())])
    with pytest.raises(UsageError, match=r"several for train: ILSVRC2012_img_train.tar, train_images_0.tar.gz, .*name"):
        prepare(tmp_path / "out", tmp_path)
    (tmp_path / "ILSVRC2012_img_train.tar").unlink()
    prepare(tmp_path / "out", tmp_path)  # the parts of one release
    kits = [make_tar(f"{i}/ILSVRC2012_devkit_t12.tar.gz", []) for i in "ab" if (tmp_path / i).mkdir() is None]
    with pytest.raises(UsageError, match=r"names 2 devkits"):
        prepare(tmp_path / "out2", tmp_path / "train_images_0.tar.gz", *kits)


def test_folders_and_archives_side_by_side(tmp_path, make_tar, make_picture):
    write(tmp_path, "train/n00000001/1.jpg", make_picture=make_picture)
    val = make_tar("ILSVRC2012_img_val.tar", [("n00000001_1.JPEG", make_picture())])
    make_tar("ILSVRC2012_img_train.tar", [])
    with pytest.raises(UsageError, match=r"folders, but val only as ILSVRC2012_img_val.tar; .*val=.*img_val.tar"):
        prepare(tmp_path / "out", tmp_path)
    facts, _ = prepare(tmp_path / "out", f"train={tmp_path / 'train'}", f"val={val}", format="parquet")
    assert set(facts["splits"]) == {"train", "val"}
    write(tmp_path, "val/n00000001/1.jpg", make_picture=make_picture)
    _, lines = prepare(tmp_path / "out2", tmp_path)
    assert "ILSVRC2012_img_val.tar: not read, val/ lies beside it" in lines


def test_a_training_picture_without_a_class(tmp_path, make_picture):
    root = write(tmp_path / "pictures", "train/cat/1.jpg", "train/stray.jpg", make_picture=make_picture)
    facts, _ = prepare(tmp_path / "out", root)
    assert facts["splits"]["train"]["records"] == 1
    assert bad(tmp_path / "out") == {"stray.jpg": "no class: neither its name nor its folder tells one"}


def test_what_macos_puts_into_archives(tmp_path, make_tar, make_picture, pack):
    inner = pack([("._n00000001_1.JPEG", b"\0\5\x16\7"), ("n00000001_1.JPEG", make_picture())])
    facts, _ = prepare(
        tmp_path / "out", make_tar("train.tar", [("._n00000001.tar", b"\0\5\x16\7" * 9), ("n00000001.tar", inner)])
    )
    assert facts["classes"] == ["n00000001"] and facts["splits"]["train"]["records"] == 1
    assert set(bad(tmp_path / "out")) == {"._n00000001.tar", "._n00000001_1.JPEG"}


def test_names_that_are_not_utf_8(tmp_path, make_tar, make_picture, capsys):
    wild = os.fsdecode(b"caf\xe9.jpg")
    train = make_tar("train.tar", [(f"cat/{wild}", make_picture()), ("cat/1.jpg", make_picture())])
    assert main(["prepare", "imagenet", "--from", str(train), "--out", str(tmp_path / "out")]) == 0
    assert bad(tmp_path / "out") == {"cat/caf\\udce9.jpg": "refused: a name that is not UTF-8"}
    root = write(tmp_path / "pictures", "train/cat/1.jpg", make_picture=make_picture)
    write(root / "train", f"cat/{wild}", os.fsdecode(b"caf\xe9/2.jpg"), make_picture=make_picture)
    for format in ("index", "folder"):
        facts, _ = prepare(tmp_path / format, root, format=format)
        assert facts["classes"] == ["cat"] and facts["splits"]["train"]["left_out"] == 2
    with pytest.raises(DataError, match=r"is not UTF-8; rename it"):
        prepare(tmp_path / "x", f"train={train.rename(tmp_path / os.fsdecode(bytes([233]) + b'.tar'))}")
    capsys.readouterr()


def test_the_devkit_without_scipy(tmp_path, make_tar, make_picture, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    data = "ILSVRC2012_devkit_t12/data"
    truth = (f"{data}/ILSVRC2012_validation_ground_truth.txt", b"1\n")
    devkit = make_tar("ILSVRC2012_devkit_t12.tar.gz", [(f"{data}/meta.mat", b"x"), truth], "w:gz")
    train = make_tar("train.tar", [("n00000001_1.JPEG", make_picture())])
    val = make_tar("val.tar", [("ILSVRC2012_val_00000001.JPEG", make_picture())])
    with pytest.raises(
        UsageError, match=r"meta.mat of .*devkit_t12.tar.gz needs scipy: pip install scipy; or give the"
    ):
        prepare(tmp_path / "out", train, val, devkit)
    with pytest.raises(DataError, match=r"the devkit \(--from .*, needs pip install scipy\), --val-labels FILE"):
        prepare(tmp_path / "out", train, val)
