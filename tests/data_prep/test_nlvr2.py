"""NLVR2: the official layout, the built-in version of it, what is prepared, and the commands on them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from vlbeit.cli import main
from vlbeit.config import DataConfig
from vlbeit.data.nlvr2_files import find_table, read_examples
from vlbeit.data.records import KINDS
from vlbeit.data.sources import open_records
from vlbeit.data_prep import scenes as scene_files
from vlbeit.data_prep.nlvr2 import prepare
from vlbeit.data_prep.scene_pairs import make_set
from vlbeit.data_prep.scene_world import make_scene
from vlbeit.errors import DataError, UsageError


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes in which each split has few pairs."""
    out = tmp_path_factory.mktemp("data") / "scenes"
    scene_files.prepare(out, images=20, size=32)
    return out


@pytest.fixture
def official(drawn: Path, tmp_path: Path) -> Path:
    """A copy of the built-in NLVR2, to be changed."""
    return shutil.copytree(drawn / "nlvr2", tmp_path / "nlvr2")


def records(root: Path, split: str = "train", name: str = "nlvr2", **keys):
    return open_records(DataConfig(name=name, root=str(root), cache=str(root.parent / "cache"), **keys), "nlvr2", split)


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_official_layout(drawn: Path) -> None:
    lines = [json.loads(line) for line in (drawn / "nlvr2" / "train.json").read_text().splitlines()]
    assert lines[0].keys() == {"sentence", "label", "identifier", "directory"}
    assert {line["label"] for line in lines} == {"True", "False"}
    for line in lines:
        stem = line["identifier"].rpartition("-")[0]
        for side in (0, 1):
            with Image.open(drawn / "nlvr2" / "train" / str(line["directory"]) / f"{stem}-img{side}.png") as image:
                assert image.size == (32, 32)
    dev = records(drawn / "nlvr2", "dev")
    assert dev[0].keys() == set(KINDS["nlvr2"]) and Path(dev[0]["image_1"]).name == "dev-0-0-img1.png"
    assert dev[0]["sentence"] == "dev-0-0" and len(dev) == 8


def test_words_alone_tell_nothing(drawn: Path) -> None:
    """Of each sentence half of the pairs are true."""
    for split in ("train", "dev", "test1"):
        table = records(drawn, split, "scenes")
        found = Counter(zip(table.column("sentence")[:], table.column("label")[:], strict=True))
        assert set(found.values()) == {2}


def test_statements_are_true_of_what_is_drawn() -> None:
    from random import Random

    rng = Random(0)
    for _ in range(30):
        found = make_set(lambda: make_scene(rng), rng)
        for text, labels in zip(found.texts, found.labels, strict=True):
            for (left, right), label in zip(found.pairs, labels, strict=True):
                if text == "both pictures have the same number of objects.":
                    assert label == (len(left.things) == len(right.things))
                if text == "there are more objects in the left picture than in the right one.":
                    assert label == (len(left.things) > len(right.things))
                if text.endswith("picture shows a circle."):
                    circles = ["circle" in {t.shape for t in scene.things} for scene in (left, right)]
                    assert label == (any(circles) if text.startswith("at least") else not any(circles))


def test_dev_shows_no_scene_of_train(drawn: Path) -> None:
    train, dev = (
        {path.read_bytes() for path in (drawn / "nlvr2" / split).rglob("*.png")} for split in ("train", "dev")
    )
    assert len(dev) == 8 and not train & dev


def test_an_older_folder_gets_what_it_lacks_and_nothing_else_changes(drawn: Path, tmp_path: Path, capsys) -> None:
    old = shutil.copytree(drawn, tmp_path / "scenes")
    shutil.rmtree(old / "nlvr2")
    with pytest.raises(DataError, match=r"this adds them.*prepare scenes --out .* --images 20 --size 32 --seed 0"):
        records(old, "val", "scenes")
    (old / ".nlvr2.partial-killed").mkdir()
    os.utime(old / ".nlvr2.partial-killed", (0, 0))
    assert main(["prepare", "scenes", "--out", str(old), "--images", "20", "--size", "32"]) == 0
    assert "added nlvr2/" in capsys.readouterr().out
    assert digests(old) == digests(drawn)
    assert not list(old.glob(".*"))


def test_names_of_splits(official: Path) -> None:
    assert list(records(official, "val").column("id")) == list(records(official, "dev").column("id"))
    both = records(official, "dev+test1")
    assert [each.partition("-")[0] for each in both.column("id")] == ["dev"] * 8 + ["test1"] * 8
    with pytest.raises(DataError, match=r"no test2\.json for the split 'test2'; nlvr2 reads"):
        records(official, "test2")


def test_the_repository_beside_the_pictures(official: Path, tmp_path: Path) -> None:
    """nlvr2/data of the repository, balanced/ in it, pictures elsewhere and below images/."""
    data = tmp_path / "nlvr" / "nlvr2" / "data"
    (data / "balanced").mkdir(parents=True)
    shutil.move(official / "train.json", data / "train.json")
    shutil.copy(official / "dev.json", data / "balanced" / "balanced_dev.json")
    (official / "images").mkdir()
    shutil.move(official / "train", official / "images" / "train")
    root = tmp_path / "nlvr"
    found = records(root, images=str(official))
    assert Path(found[0]["image_0"]).is_file() and "/images/train/0/" in found[0]["image_0"]
    assert len(records(root, "balanced_dev", images=str(official))) == 8


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "dev.json, line 1: JSONDecodeError"),
        ('{"sentence": "a", "label": "True"}', "line 1: KeyError: 'identifier'"),
        ('{"sentence": 3, "identifier": "dev-0-0-0"}', "must be texts"),
        ('{"sentence": "a", "identifier": "dev-0-0"}', "'dev-0-0' is not SPLIT-SET-PAIR-SENTENCE"),
        ('{"sentence": "a", "label": "maybe", "identifier": "dev-0-0-0"}', "label 'maybe' is neither True nor False"),
        ('{"sentence": "a", "identifier": "../dev-0-0-0"}', "line 1: identifier or directory is no name of a file"),
        ('{"sentence": "a", "identifier": "..-0-0-0"}', "line 1: identifier or directory is no name of a file"),
        ('{"sentence": "a", "identifier": "dev-0-0-0", "directory": "../x"}', "is no name of a file"),
        ('{"sentence": "a", "identifier": "dev-0-0-0", "directory": ".."}', "is no name of a file"),
    ],
)
def test_damaged_lines_are_named(official: Path, line: str, said: str) -> None:
    (official / "dev.json").write_text(line + "\n")
    with pytest.raises(DataError, match=said):
        records(official, "dev")


def test_a_statement_that_is_there_twice(official: Path) -> None:
    """Their results would be merged: of a file it is refused, and of splits that overlap."""
    with pytest.raises(UsageError, match=r"dev\+val: 8 statements are in several"):
        records(official, "dev+val")
    lines = (official / "dev.json").read_text().splitlines()
    (official / "dev.json").write_text("\n".join([*lines, lines[0]]))
    with pytest.raises(DataError, match=r"dev\.json, line 9: identifier 'dev-0-0-0' is there twice"):
        records(official, "dev")


def test_a_statement_may_lack_its_label(official: Path) -> None:
    (official / "dev.json").write_text('{"sentence": "a", "identifier": "dev-0-0-0"}\n')
    assert [each.label for each in read_examples(find_table(official, "dev"))] == [-1]
    assert records(official, "dev")[0]["label"] == -1


def test_missing_pictures(official: Path, tmp_path: Path) -> None:
    (official / "dev" / "dev-0-1-img0.png").unlink()
    with pytest.raises(DataError, match=r"do not exist: .*dev-0-1-img0\.png.*vlbeit prepare nlvr2"):
        records(official, "dev")
    said: list[str] = []
    prepare(tmp_path / "out", from_=official, report=said.append)
    table = records(tmp_path / "out", "dev")
    assert sorted(table.column("id")) == [f"dev-0-{pair}-{number}" for pair in (0, 2, 3) for number in (0, 1)]
    bad = [json.loads(line) for line in (tmp_path / "out" / "bad.jsonl").read_text().splitlines()]
    assert {each["what"] for each in bad} == {"picture is missing: dev-0-1-img0.png"} and len(bad) == 2
    assert "dev: 2 statements are left out: scores do not compare with published ones" in said
    with pytest.raises(DataError, match=r"8 of the 8 statements of dev\.json lack a picture; set --images"):
        shutil.rmtree(official / "dev")
        prepare(tmp_path / "other", from_=official, splits="dev")


@pytest.mark.parametrize("format", ["index", "folder", "parquet"])
def test_prepared_records_are_the_same(official: Path, tmp_path: Path, format) -> None:
    out = tmp_path / "prepared"
    following = prepare(out, from_=official, format=format, check="full")
    assert "task=nlvr2" in following and f"data.root={out}" in following
    for split in ("train", "val", "test"):
        plain, found = records(official, split), records(out, split)
        assert len(plain) == len(found)
        for name in ("id", "text", "label", "sentence"):
            assert list(found.column(name)) == list(plain.column(name))
        for name in ("image_0", "image_1"):
            values = [(records_[3][name]) for records_ in (plain, found)]
            given = [value if isinstance(value, bytes) else Path(value).read_bytes() for value in values]
            assert given[0] == given[1]
    if format != "index":
        assert not any(str(official) in str(value) for value in found[0].values())
    said: list[str] = []
    prepare(out, from_=official, format=format, check="full", report=said.append)
    assert any("already there" in line for line in said)


def test_what_cannot_be_read_is_left_out(official: Path, tmp_path: Path) -> None:
    (official / "dev" / "dev-0-2-img1.png").write_bytes(b"no picture")
    prepare(tmp_path / "out", from_=official)
    bad = [json.loads(line) for line in (tmp_path / "out" / "bad.jsonl").read_text().splitlines()]
    assert [(each["id"], each["left_out"]) for each in bad] == [("dev-0-2-0", True), ("dev-0-2-1", True)]
    assert bad[0]["what"].startswith("cannot be read: dev-0-2-img1.png")


def test_splits_that_are_not_there(official: Path, tmp_path: Path) -> None:
    (official / "test1.json").unlink()
    said: list[str] = []
    prepare(tmp_path / "out", from_=official, report=said.append)
    assert "test1: left out, there is no test1.json" in said
    (official / "train.json").unlink()
    with pytest.raises(DataError, match=r"no train\.json"):
        prepare(tmp_path / "other", from_=official)
    with pytest.raises(UsageError, match="--splits is empty"):
        prepare(tmp_path / "other", from_=official, splits="")
    assert "vlbeit evaluate RUN data=nlvr2" in prepare(tmp_path / "dev", from_=official, splits="dev")


def test_the_whole_way(in_chain: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    small = ("data.workers=0", "global_batch_size=8", "micro_batch_size=4", "steps=2", "engine.log_every=1")
    sizes = ("model.embed_dim=32", "model.depth=3", "model.num_heads=2", "model.fused_layers=1")
    words = ["train", "stage=vl", "task=nlvr2", f"data.root={scenes}", f"run={run}", "data.limit=24", *small, *sizes]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "1 resized (type_embed)" in said and "new (head pair)" in said and f"next: vlbeit evaluate {run}" in said
    assert (run / "batch0.png").is_file()
    assert main(["evaluate", str(run)]) == 0
    assert f"next: vlbeit predict {run} left.jpg right.jpg" in capsys.readouterr().out
    found = json.loads((run / "evaluation.json").read_text())
    assert found["statements"] == 24 and found["interval_over"] == "sentences" and found["metric"] == "accuracy"
    assert main(["evaluate", str(run), "data.val_split=dev+test1", "data.limit=null"]) == 0
    both = json.loads((run / "evaluation-scenes-dev+test1.json").read_text())
    assert both["accuracy_dev"] == found["accuracy"] and both["statements"] == 48
    pictures = [str(scenes / "nlvr2" / "dev" / f"dev-0-0-img{side}.png") for side in (0, 1)]
    capsys.readouterr()
    assert main(["predict", str(run), *pictures, "both pictures show a circle.", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {each["answer"] for each in rows} == {"true", "false"}
    assert main(["predict", str(run), pictures[0], "a circle"]) == 2
    assert "takes 2 pictures and a statement: vlbeit predict" in capsys.readouterr().err
    assert main(["predict", str(run), pictures[0], "none.png", "a circle"]) == 1
    assert "none.png does not exist" in capsys.readouterr().err
    assert main(["predict", "runs/vl-vqa", *pictures, "how many?"]) == 2
    assert "task=vqa takes one picture: vlbeit predict" in capsys.readouterr().err
