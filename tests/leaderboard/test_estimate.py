"""`vlbeit submit estimate`: a score with an interval over images, its bias in words, refused where it says nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from vlbeit.cli import main
from vlbeit.data.records import ListRecords
from vlbeit.errors import DataError
from vlbeit.leaderboard.estimate import Estimate, predicted_scores
from vlbeit.models import checkpoint


def records(images: list[int], kinds: list[str] | None = None) -> ListRecords:
    kinds = kinds or ["other"] * len(images)
    return ListRecords([
        {"question_id": key, "image_id": image, "answer_type": kind}
        for key, (image, kind) in enumerate(zip(images, kinds, strict=True))
    ])  # fmt: skip


def test_scores_by_type() -> None:
    kinds = ["yes/no", "number", "other", "yes/no"]
    found = predicted_scores(records([1, 1, 2, 3], kinds), {0: 1.0, 1: 0.3, 2: 0.0, 3: 0.9})
    assert list(found) == ["overall", "yes/no", "number", "other"]
    assert found["overall"].value == 55.0 and found["yes/no"].value == 95.0 and found["number"].value == 30.0
    assert found["overall"].questions == 4 and found["overall"].images == 3
    assert found["overall"].interval is not None and found["yes/no"].interval == (90.0, 100.0)


def test_one_image_has_no_interval() -> None:
    found = predicted_scores(records([1, 1, 1, 2], ["yes/no", "yes/no", "number", "other"]), {0: 0, 1: 1, 2: 0, 3: 1})
    assert [score.interval is None for score in found.values()] == [False, True, True, True]
    estimate = Estimate("val", found, 4, 2, [], Path("estimate.json"))
    assert [row[2] for row in estimate.rows()][1:] == ["-"] * 3
    assert estimate.as_json()["interval"]["number"] is None


def test_questions_without_a_score_are_left_out() -> None:
    assert predicted_scores(records([1, 2]), {1: 1.0})["overall"].questions == 1
    with pytest.raises(DataError, match="no question of this part was scored"):
        predicted_scores(records([1, 2]), {})


def answered(generator: np.random.Generator, images: int) -> tuple[list[int], dict[int, float]]:
    """Six questions about each image: image by question, and score by question. Of an easy image most are right."""
    easy = generator.random((images, 1)) < generator.beta(2, 1, size=(images, 1))  # of mean 2 / 3
    right = generator.random((images, 6)) < np.where(easy, 0.95, 0.05)
    return np.repeat(np.arange(images), 6).tolist(), dict(enumerate(map(float, right.ravel())))


def test_the_interval_covers_what_it_should() -> None:
    """Of 100 drawn data sets about 95 intervals hold the true score; a few less, as bootstraps of 50 images do."""
    generator, truth, hits = np.random.default_rng(0), 100 * (2 / 3 * 0.95 + 1 / 3 * 0.05), 0
    for _ in range(100):
        images, scored = answered(generator, 50)
        low, high = predicted_scores(records(images), scored)["overall"].interval
        hits += low <= truth <= high
    assert 87 <= hits <= 99


def test_questions_of_an_image_are_drawn_together() -> None:
    images, scored = answered(np.random.default_rng(0), 50)
    low, high = predicted_scores(records(images), scored)["overall"].interval
    one_by_one = predicted_scores(records(list(range(300))), scored)["overall"].interval
    assert high - low > 1.6 * (one_by_one[1] - one_by_one[0])  # which would promise too much


@pytest.fixture
def vqa_run(chain: Path, here: Path) -> Path:
    """A copy of the chain's VQA run, to write into."""
    return Path(shutil.copytree(chain / "runs" / "vl-vqa", here / "runs" / "vl-vqa"))


def test_a_run_is_estimated(vqa_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "estimate", "runs/vl-vqa", "--split", "val"]) == 0
    out = capsys.readouterr().out
    found = json.loads((vqa_run / "estimate.json").read_text())
    low, high = found["interval"]["overall"]
    assert 0 <= low <= found["predicted"]["overall"] <= high <= 100 and found["interval_over"] == "images"
    assert found["split"] == "val" and found["questions"] == 24 and 0 < found["images"] < 24
    assert sum(line.startswith("bias: ") for line in out.splitlines()) == len(found["bias"]) >= 4
    assert any(f"overall ({found['images']})" in line and "too narrow" in line for line in found["bias"])
    assert any("did best on these images" in line for line in found["bias"])  # it was trained with val_split=val
    assert f"wrote {Path('runs/vl-vqa/estimate.json')}" in out and out.splitlines()[-1].startswith("next: ")
    details = json.loads(next(vqa_run.glob("vqa_details*.json")).read_text())
    assert found["predicted"]["overall"] == round(100 * sum(row["score"] for row in details) / len(details), 2)


def test_json(vqa_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "estimate", "runs/vl-vqa", "--split", "val", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((vqa_run / "estimate.json").read_text())


@pytest.mark.parametrize("split", ["train", "trainval"])
def test_images_that_were_trained_on_are_refused(vqa_run: Path, split: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "estimate", "runs/vl-vqa", "--split", split]) == 2
    error = capsys.readouterr().err
    assert "was trained on" in error and f"images of {split}" in error and error.count("\n") == 1
    assert not (vqa_run / "estimate.json").exists()


def change_data(run: Path, **keys: str) -> None:
    """As if the run had been trained with other keys of its data."""
    file = run / "checkpoint" / "config.json"
    stored = json.loads(file.read_text())
    stored["config"]["data"] |= keys
    file.write_text(json.dumps(stored))


def test_the_held_out_part_of_val_is_the_default(vqa_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_data(vqa_run, train_split="train+trainable_val", val_split="rest_val")
    assert main(["submit", "estimate", "runs/vl-vqa", "data.limit=null"]) == 0
    found = json.loads((vqa_run / "estimate.json").read_text())
    assert found["split"] == "rest_val" and found["images"] == 1  # a tenth of the six images of val
    assert found["interval"]["overall"] is None
    assert not any("trained on val as well" in line for line in found["bias"])
    change_data(vqa_run, train_split="train", val_split="val")
    assert main(["submit", "estimate", "runs/vl-vqa", "data.limit=null"]) == 0
    bias = json.loads((vqa_run / "estimate.json").read_text())["bias"]
    assert any("trained on val as well" in line for line in bias) and any("did best on these" in line for line in bias)
    change_data(vqa_run, train_split="trainval", limit=None)
    assert main(["submit", "estimate", "runs/vl-vqa"]) == 2
    error = capsys.readouterr().err
    assert "was trained on 1 of the 1 images of rest_val (data.train_split=trainval)" in error


def test_a_damaged_held_out_part_is_not_another_part(
    vqa_run: Path, scenes: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = here / "damaged"
    shutil.copytree(scenes, damaged)
    next((damaged / "val2014").glob("*.jpg")).unlink()
    assert main(["submit", "estimate", "runs/vl-vqa", f"data.root={damaged}", "data.limit=null"]) == 1
    error = capsys.readouterr().err
    assert "questions whose image is not in" in error and "--split NAME" in error
    assert not (vqa_run / "estimate.json").exists()


def test_data_without_that_part_say_so(vqa_run: Path, scenes: Path, here: Path) -> None:
    root = here / "okvqa"
    root.mkdir()
    for file in scenes.glob("v2_*2014_*.json"):
        shutil.copy(file, root / file.name.removeprefix("v2_"))
    for split in ("train2014", "val2014"):
        (root / split).symlink_to(scenes / split)
    assert main(["submit", "estimate", "runs/vl-vqa", "data=okvqa", f"data.root={root}"]) == 0
    found = json.loads((vqa_run / "estimate.json").read_text())
    assert found["split"] == "val" and any("data=okvqa has no part rest_val" in line for line in found["bias"])


def test_weights_are_read_once(vqa_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = checkpoint.load_file
    monkeypatch.setattr(checkpoint, "load_file", lambda file: (read.append(file.name), real(file))[1])
    assert main(["submit", "estimate", "runs/vl-vqa", "--split", "val"]) == 0
    assert read == ["model.safetensors"]


def test_a_vocabulary_of_these_questions_is_said(vqa_run: Path) -> None:
    file = vqa_run / "checkpoint" / "config.json"
    stored = json.loads(file.read_text())
    for splits, said in ((["train"], False), (["train", "val"], True)):
        stored["config"]["task"]["vocabulary_splits"] = splits
        file.write_text(json.dumps(stored))
        assert main(["submit", "estimate", "runs/vl-vqa", "--split", "val"]) == 0
        bias = json.loads((vqa_run / "estimate.json").read_text())["bias"]
        assert any("vocabulary was counted over these" in line for line in bias) == said


def test_training_data_that_are_gone_are_said(
    vqa_run: Path, scenes: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = here / "moved"
    shutil.copytree(scenes, moved, ignore=shutil.ignore_patterns("v2_*train2014*"))
    assert main(["submit", "estimate", "runs/vl-vqa", "--split", "val", f"data.root={moved}"]) == 0
    assert "may have been trained on" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["runs/none"], "runs/none"),
        (["runs/vl-vqa", "--split", "nowhere"], "nowhere"),
        (["runs/vl-vqa", "--split", "test"], "no human answers"),
    ],
)
def test_what_cannot_be_estimated(
    vqa_run: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "estimate", *words]) in (1, 2)
    assert said in capsys.readouterr().err


def test_another_task_has_no_answers(chain: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "estimate", str(chain / "runs" / "mim-classification")]) == 2
    assert "an estimate needs a run of task=vqa" in capsys.readouterr().err
