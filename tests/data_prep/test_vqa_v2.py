"""`vlbeit prepare vqa_v2` on small scenes, which lie in the official layout."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vlbeit.cli import main
from vlbeit.config import DataConfig
from vlbeit.data.answers import build_vocabulary, majority_answers
from vlbeit.data.records import JoinedRecords
from vlbeit.data.sources import open_records
from vlbeit.data_prep import scenes, vqa_v2, vqa_v2_parts
from vlbeit.data_prep.vqa_v2 import prepare
from vlbeit.data_prep.vqa_v2_parts import Counts
from vlbeit.errors import DataError, UsageError

SPLITS = ("train", "val", "trainval", "test2015", "test-dev", "rest_val", "train+trainable_val", "vg")
FILES = [
    "answers.json", "bad.jsonl", "prepared.json", "splits.json", "summary.json", "test-00000.parquet",
    "test-dev-00000.parquet", "train-00000.parquet", "val-00000.parquet", "vg-00000.parquet",
]  # fmt: skip


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """Scenes, test-dev, and two pictures of Visual Genome, of which the second is COCO's of val."""
    root = tmp_path_factory.mktemp("drawn") / "root"
    scenes.prepare(root, images=60, size=32)
    test = json.loads((root / "v2_OpenEnded_mscoco_test2015_questions.json").read_text())
    some = test | {"questions": test["questions"][:5]}
    (root / "v2_OpenEnded_mscoco_test-dev2015_questions.json").write_text(json.dumps(some))
    val = sorted((root / "val2014").iterdir())[0]
    (root / "VG_100K").mkdir()
    for image in (1, 2):
        shutil.copy(val, root / "VG_100K" / f"{image}.jpg")
    asked = [{"id": i, "qas": [{"qa_id": i, "image_id": i, "question": "Red?", "answer": "Yes."}]} for i in (1, 2)]
    (root / "question_answers.json").write_text(json.dumps(asked))
    coco = [{"image_id": 1, "coco_id": None}, {"image_id": 2, "coco_id": int(val.stem[-12:])}]
    (root / "image_data.json").write_text(json.dumps(coco))
    return root


@pytest.fixture
def root(drawn: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(drawn, tmp_path / "root"))


@pytest.fixture(scope="module")
def whole(drawn: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "vqa"
    prepare(out, root=drawn, check="header", held_out=2)
    return out


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("VLBEIT_CACHE", str(tmp_path_factory.mktemp("cache")))


def records(root: Path, split: str, kind: str = "vqa", **keys):
    return open_records(DataConfig(name="vqa_v2", root=str(root), **keys), kind, split)


def edit(path: Path, change) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize("split", SPLITS)
def test_a_prepared_folder_reads_as_the_files_do(drawn: Path, whole: Path, split: str) -> None:
    ours, theirs = records(whole, split), records(drawn, split, held_out=2)
    assert len(ours) == len(theirs) > 0
    assert [ours[row] for row in range(len(ours))] == [theirs[row] for row in range(len(theirs))]
    if split != "vg":
        ours, theirs = records(whole, split, "images"), records(drawn, split, "images", held_out=2)
        assert [ours[row] for row in range(len(ours))] == [theirs[row] for row in range(len(theirs))]


def test_what_is_written(drawn: Path, whole: Path) -> None:
    assert sorted(path.name for path in whole.iterdir()) == FILES
    both = JoinedRecords([records(drawn, "train"), records(drawn, "val")])
    answers = json.loads((whole / "answers.json").read_text())
    assert answers == build_vocabulary(majority_answers(both), 9) and len(answers) > 3
    facts = json.loads((whole / "summary.json").read_text())
    train, val = (records(drawn, split) for split in ("train", "val"))
    assert facts["splits"][0]["rows"] == facts["coverage"]["train"]["questions"] == len(train)
    assert facts["splits"][0]["answers"] == 10 * len(train)
    assert (facts["official"], facts["held_out"], facts["bad"]) == (False, 2, {})
    digest = facts["splits"][1]["sha256"]["v2_mscoco_val2014_annotations.json"]
    told = subprocess.run(["sha256sum", drawn / "v2_mscoco_val2014_annotations.json"], capture_output=True, text=True)
    assert told.stdout.startswith(digest)
    splits = json.loads((whole / "splits.json").read_text())
    assert set(splits["rest_val"]) == set(records(whole, "rest_val").column("image_id"))
    assert splits["seed"] == 0 and splits["images"] == len(set(val.column("image_id")))


def test_visual_genome_of_a_prepared_folder_tells_nothing_of_val(whole: Path) -> None:
    assert list(records(whole, "vg").column("question_id")) == [-1]
    assert list(records(whole, "train+vg").column("question_id"))[-1] == -1
    assert list(records(whole, "train+val+vg").column("question_id"))[-2:] == [-1, -2]


def test_again_and_otherwise(drawn: Path, whole: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in whole.iterdir()}
    lines: list[str] = []
    following = prepare(whole, root=drawn, check="header", held_out=2, report=lines.append)
    assert f"{whole}: already there" in lines and {p.name: p.stat().st_mtime_ns for p in whole.iterdir()} == before
    assert f"data=vqa_v2 task.answers={whole}/answers.json data.root={whole}" in following
    assert lines[-1].startswith(f"wrote {whole / 'prepared.json'}")
    with pytest.raises(UsageError, match=r"prepared with min_count=9, not min_count=5"):
        prepare(whole, root=drawn, check="header", held_out=2, min_count=5)
    with pytest.raises(UsageError, match="is there but was not begun"):
        prepare(drawn, root=drawn)


def test_the_stored_list_wins(whole: Path, caplog: pytest.LogCaptureFixture) -> None:
    stored = list(records(whole, "rest_val").column("id"))
    assert "have no say" not in caplog.text
    assert list(records(whole, "rest_val", split_seed=3, held_out=1).column("id")) == stored
    assert "holds out 2 images, drawn with seed 0: data.split_seed=3 data.held_out=1 have no say" in caplog.text


KILL = """
import os, signal, sys
from pathlib import Path
from vlbeit.data_prep import vqa_v2, vqa_v2_parts
module, name, calls = sys.argv[1:4]
owner = {"vqa_v2": vqa_v2, "vqa_v2_parts": vqa_v2_parts}[module]
work = getattr(owner, name)
left = [int(calls)]
def killed(*arguments, **more):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return work(*arguments, **more)
setattr(owner, name, killed)
vqa_v2._CHUNK = 20
vqa_v2.prepare(Path(sys.argv[5]), root=Path(sys.argv[4]), check="header", held_out=2)
"""


@pytest.mark.parametrize(
    ("place", "calls", "again"),
    [
        (("vqa_v2", "note"), 1, 0),  # an index is whole, and not noted
        (("vqa_v2", "note"), 3, 2),
        (("vqa_v2_parts", "question_rows"), 2, 1),  # while a file is read
        (("vqa_v2", "note"), 7, 5),  # between two chunks of images
        (("vqa_v2", "write_json"), 2, 5),  # between answers.json and splits.json
        (("vqa_v2", "write_json"), 4, 5),  # before prepared.json
    ],
)
def test_killed_and_started_again(
    drawn: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place, calls: int, again: int
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILL, *place, str(calls), str(drawn), str(out)]
    assert subprocess.run(command, env=os.environ, capture_output=True).returncode == -signal.SIGKILL
    assert not (out / "prepared.json").exists()
    with pytest.raises(DataError, match="does not exist"):
        records(out, "train")  # nobody takes it for whole
    read: list[str] = []
    rows = vqa_v2_parts.Part.rows
    monkeypatch.setattr(vqa_v2_parts.Part, "rows", lambda part: (read.append(part.name), rows(part))[1])
    monkeypatch.setattr(vqa_v2, "_CHUNK", 20)
    prepare(out, root=drawn, check="header", held_out=2)
    assert read == ["train", "val", "test", "test-dev", "vg"][again:]
    for name in FILES:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert sorted(path.name for path in out.iterdir()) == FILES


def test_an_index_that_was_lost_is_written_again(drawn: Path, whole: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(vqa_v2, "build_vocabulary", lambda majority, count: [])
    with pytest.raises(UsageError, match=r"no answer stands for 9 questions .* lower --min-count"):
        prepare(tmp_path / "out", root=drawn, check="header", held_out=2)
    monkeypatch.undo()
    (tmp_path / "out" / "val-00000.parquet").write_bytes(b"cut")
    lines: list[str] = []
    prepare(tmp_path / "out", root=drawn, check="header", held_out=2, report=lines.append)
    assert "train: already indexed" in lines and any(
        "val-00000.parquet is missing or damaged" in line for line in lines
    )
    assert (tmp_path / "out" / "val-00000.parquet").read_bytes() == (whole / "val-00000.parquet").read_bytes()


def test_published_numbers(drawn: Path, whole: Path, tmp_path: Path, monkeypatch) -> None:
    lines: list[str] = []
    with pytest.raises(DataError, match=r"train: .* not the official split, which --official asks for"):
        prepare(tmp_path / "out", root=drawn, official=True)
    prepare(tmp_path / "out", root=drawn, report=lines.append)
    assert "these are not the official files of VQA v2: scores on them do not compare with published ones" in lines
    with pytest.raises(DataError, match="does not hold the official files"):
        prepare(tmp_path / "out", root=drawn, official=True)
    facts = {line["split"]: line for line in json.loads((whole / "summary.json").read_text())["splits"]}
    ours = {name: Counts(line["rows"], line["images"], line["answers"]) for name, line in facts.items()}
    monkeypatch.setattr(vqa_v2_parts, "PUBLISHED", ours)
    lines.clear()
    prepare(tmp_path / "ours", root=drawn, official=True, report=lines.append)
    assert json.loads((tmp_path / "ours" / "summary.json").read_text())["official"] is True
    assert f"train: {ours['train']}, as published" in lines and not any("not the official" in line for line in lines)


def test_the_published_table() -> None:
    """As visualqa.org has it; ten answers a question."""
    assert {name: counts.questions for name, counts in vqa_v2_parts.PUBLISHED.items()} == {
        "train": 443_757, "val": 214_354, "test": 447_793, "test-dev": 107_394,
    }  # fmt: skip
    for name in ("train", "val"):
        assert vqa_v2_parts.PUBLISHED[name].answers == 10 * vqa_v2_parts.PUBLISHED[name].questions


def questions(root: Path, part: str) -> Path:
    return root / f"v2_OpenEnded_mscoco_{part}_questions.json"


def test_splits_that_are_not_there_are_named(root: Path, tmp_path: Path) -> None:
    shutil.rmtree(root / "test2015")
    questions(root, "val2014").unlink()
    lines: list[str] = []
    prepare(tmp_path / "out", root=root, report=lines.append)
    assert "test: left out, there is no test2015" in lines and "test-dev: left out, there is no test2015" in lines
    assert "val: left out, there is no v2_OpenEnded_mscoco_val2014_questions.json" in lines
    assert not (tmp_path / "out" / "splits.json").exists()
    with pytest.raises(DataError, match="has no split 'val', it was prepared with train, vg"):
        records(tmp_path / "out", "val")
    questions(root, "train2014").unlink()
    with pytest.raises(DataError, match=r"train2014_questions\.json does not exist: give --root"):
        prepare(tmp_path / "other", root=root)
    with pytest.raises(DataError, match="is no folder"):
        prepare(tmp_path / "other", root=root / "nowhere")


def test_faults_are_refused(root: Path, tmp_path: Path) -> None:
    edit(questions(root, "test-dev2015"), lambda value: value["questions"][0].update(question_id=7))
    with pytest.raises(DataError, match=r"questions of test-dev that test has not: 1 \(7\)"):
        prepare(tmp_path / "dev", root=root)
    pairs = root / "v2_mscoco_train2014_complementary_pairs.json"
    pairs.write_text("[[1000, 5]]")
    with pytest.raises(DataError, match=r"complementary_pairs\.json: unknown question ids: 1 \(5\)"):
        prepare(tmp_path / "pairs", root=root)
    pairs.unlink()
    next((root / "val2014").iterdir()).unlink()
    with pytest.raises(DataError, match=r"questions whose image is not in .*val2014"):
        prepare(tmp_path / "image", root=root)


def test_an_image_in_two_splits(root: Path, tmp_path: Path) -> None:
    image = sorted((root / "train2014").iterdir())[0]
    shutil.copy(image, root / "val2014" / image.name.replace("train", "val"))
    edit(questions(root, "val2014"), lambda value: value["questions"][0].update(image_id=1))
    edit(root / "v2_mscoco_val2014_annotations.json", lambda value: value["annotations"][0].update(image_id=1))
    with pytest.raises(DataError, match=r"images of train are in val too: 1 \(1\)"):
        prepare(tmp_path / "out", root=root)


def test_images_are_opened_if_asked(root: Path, tmp_path: Path) -> None:
    broken = sorted((root / "train2014").iterdir())[3]
    broken.write_bytes(b"no picture")
    prepare(tmp_path / "listed", root=root)
    assert (tmp_path / "listed" / "bad.jsonl").read_text() == ""
    lines: list[str] = []
    prepare(tmp_path / "opened", root=root, check="header", report=lines.append)
    (bad,) = map(json.loads, (tmp_path / "opened" / "bad.jsonl").read_text().splitlines())
    assert (bad["split"], bad["id"], bad["left_out"]) == ("train", broken.name, False)
    assert any("cannot be read 1; their questions stay" in line for line in lines)
    assert len(records(tmp_path / "opened", "train")) == len(records(root, "train"))


def test_a_root_that_has_moved(root: Path, tmp_path: Path) -> None:
    prepare(tmp_path / "out", root=root)
    root.rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"was prepared from .*/root, which is no longer there"):
        records(tmp_path / "out", "train")


def test_from_the_command_line_to_training(drawn: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "vqa_v2", "--root", str(drawn), "--held-out", "2"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith("next: vlbeit train stage=vl task=vqa init=") and "wrote data/vqa_v2/" in said[-3]
    assert said[-2].startswith("init=vlmo_base_patch16_224 is fetched") and "init=none model=tiny" in said[-2]
    words = [
        "task=vqa",
        "model=tiny",
        "model.depth=2",
        "init=none",
        "data=vqa_v2",
        "data.root=data/vqa_v2",
        "data.workers=0",
    ]
    words += ["data.image_size=32", "text.vocab_size=120", "steps=1", "global_batch_size=4", "micro_batch_size=4"]
    words += [
        "data.train_split=train+trainable_val+vg",
        "data.val_split=rest_val",
        "task.vocabulary_splits=[train,val]",
    ]
    assert main(["train", *words]) == 0
    captured = capsys.readouterr()
    assert "with the majority answer of" in captured.err and "matched raw, as published" in captured.err
    answers = json.loads(Path("runs/vl-vqa/checkpoint/answers.json").read_text())
    assert answers == json.loads(Path("data/vqa_v2/answers.json").read_text())
    stored = json.loads(Path("runs/vl-vqa/checkpoint/vocabulary.json").read_text())
    assert stored["splits"] == ["train", "val"] and stored["training"]["questions"] > 100
    numbers = json.loads(Path("runs/vl-vqa/evaluation.json").read_text())
    assert numbers["questions"] == len(records(Path("data/vqa_v2"), "rest_val"))
    assert main(["prepare", "vqa_v2"]) == 2


@pytest.mark.parametrize("held_out", [-1, 1.5, float("nan"), float("inf")])
def test_no_share_and_no_number(root: Path, tmp_path: Path, held_out: float) -> None:
    with pytest.raises(UsageError, match=f"--held-out {held_out:g}: give 1 or more"):
        prepare(tmp_path / "out", root=root, held_out=held_out)
    with pytest.raises(UsageError, match=f"data.held_out={held_out:g} must be"):
        DataConfig(held_out=held_out)
