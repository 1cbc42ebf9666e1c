"""Segmentation by the command line on a folder of pictures with masks: what a run gives, what users get wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlbeit.cli import main

COLOURS = np.array([(0, 0, 0), (220, 30, 30), (30, 200, 30), (30, 30, 220)], np.uint8)
SMALL = (
    *("stage=mim", "task=segmentation", "data=masks", "data.root=own", "init=none", "model=tiny", "data.image_size=32"),
    *("model.embed_dim=32", "model.num_heads=2", "model.patch_size=8", "task.channels=16", "optim.warmup_steps=0"),
    *("data.workers=0", "global_batch_size=4", "micro_batch_size=2", "steps=2", "engine.log_every=1", "optim.lr=1e-3"),
)


def typed(*words: str) -> list[str]:
    """The words of a small run; of two for one key the later one."""
    return list({word.partition("=")[0]: word for word in (*SMALL, *words)}.values())


def write_folder(root: Path) -> None:
    """Six pictures of two colours each in train, four in val, of several sizes; labels as in ADE20K, 0 is other."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 4)):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            height, width = rng.integers(24, 60, 2)
            labels = np.zeros((height, width), np.uint8)
            labels[:, : width // 2], labels[height // 2 :, width // 2 :] = index % 3 + 1, (index + 1) % 3 + 1
            Image.fromarray(COLOURS[labels]).save(root / "images" / split / f"{index}.png")
            Image.fromarray(labels).save(root / "masks" / split / f"{index}.png")
    (root / "classes.txt").write_text("red\ngreen\nblue\n")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_folder(tmp_path / "own")
    monkeypatch.setenv("VLBEIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(place: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Train with these words; it must fail with this code and one line, which is given back."""

    def run(code: int, *words: str) -> str:
        capsys.readouterr()
        assert main(["train", *typed(*words)]) == code
        error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(error) == 1
        return error[0]

    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which runs/mim-segmentation was trained."""
    folder = tmp_path_factory.mktemp("trained")
    write_folder(folder / "own")
    with chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLBEIT_CACHE", str(folder / "cache"))
        assert main(["train", *SMALL]) == 0
    return folder


def test_a_run_has_its_numbers_and_classes(run: Path) -> None:
    folder = run / "runs" / "mim-segmentation"
    numbers = json.loads((folder / "evaluation.json").read_text())
    assert {"miou", "macc", "aacc", "images"} <= numbers.keys() and numbers["images"] == 4
    assert json.loads((folder / "checkpoint" / "classes.json").read_text()) == ["red", "green", "blue"]
    logged = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert logged["losses"].keys() == {"segmentation", "auxiliary"} and 0 <= logged["logs"]["pixel_accuracy"] <= 1


def test_evaluation_with_the_settings_of_training_gives_its_number(run: Path) -> None:
    folder = run / "runs" / "mim-segmentation"
    first = json.loads((folder / "evaluation.json").read_text())
    with chdir(run):
        assert main(["evaluate", "runs/mim-segmentation"]) == 0
    again = json.loads((folder / "evaluation.json").read_text())
    assert {name: again[name] for name in ("miou", "macc", "aacc")} == pytest.approx(
        {name: first[name] for name in ("miou", "macc", "aacc")}
    )
    details = json.loads((folder / "segmentation_details.json").read_text())
    assert [row["class"] for row in details["classes"]] == ["red", "green", "blue"]


@pytest.mark.parametrize(
    "words",
    [
        ["task.inference=slide", "task.scales=[0.5,0.75,1.0,1.5]", "task.flip=true"],
        ["task.inference=whole"],
        ["task.stride=[8,8]", "task.windows=3"],
        ["task.stride=8"],
    ],
)
def test_evaluation_with_other_inference(run: Path, words: list[str]) -> None:
    with chdir(run):
        assert main(["evaluate", "runs/mim-segmentation", *words]) == 0
    changed = json.loads((run / "runs" / "mim-segmentation" / "evaluation-changed.json").read_text())
    assert changed["words"] == words and changed["images"] == 4 and 0 <= changed["miou"] <= 100


def test_evaluation_by_class(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with chdir(run):
        assert main(["evaluate", "runs/mim-segmentation"]) == 0
    said = capsys.readouterr().out
    rows = [line.split() for line in said.partition("\n\n")[2].splitlines()]
    assert rows[0] == ["class", "iou", "acc", "pixels"] and [row[0] for row in rows[1:4]] == ["red", "green", "blue"]
    (_, iou, *_) = rows[1]
    classes = json.loads((run / "runs/mim-segmentation/segmentation_details.json").read_text())["classes"]
    assert float(iou) == pytest.approx(classes[0]["iou"], rel=1e-4)
    folder = "runs/mim-segmentation"
    assert f"wrote {folder}/evaluation.json, {folder}/segmentation_details.json\n" in said


def test_prediction(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with chdir(run):
        assert main(["predict", "runs/mim-segmentation", "own/images/val/0.png", "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)
        assert main(["predict", "runs/mim-segmentation", "own/images/val/0.png", "--out", "overlay.png"]) == 0
    assert {row["label"] for row in rows} <= {"red", "green", "blue"}
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    width = Image.open(run / "own/images/val/0.png").width
    assert Image.open(run / "overlay.png").width % width == 0  # enlarged, for the legend


def test_export(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    with chdir(run):
        assert main(["export", "runs/mim-segmentation", "graph.onnx"]) == 0
    assert "[batch, 3, 16, 16]" in capsys.readouterr().out  # three classes, four times the patches


def test_picture_and_mask_of_different_size(place: Path, refused: Callable[..., str]) -> None:
    Image.new("L", (10, 12), 1).save(place / "own/masks/train/3.png")
    said = refused(1)
    assert "own/images/train/3.png has" in said and "own/masks/train/3.png 10x12" in said


@pytest.mark.parametrize("word", ["task.reduce_zero_label=true", "task.reduce_zero_label=false"])
def test_labels_out_of_range(place: Path, refused: Callable[..., str], word: str) -> None:
    labels = np.array(Image.open(place / "own/masks/train/2.png"))
    labels[0, 0] = 77
    Image.fromarray(labels).save(place / "own/masks/train/2.png")
    if word.endswith("false"):
        (place / "own/classes.txt").write_text("other\nred\ngreen\nblue\n")
    said = refused(1, word)
    assert "own/masks/train/2.png: label 77 out of range: a mask of" in said


def test_zero_label_that_is_a_class(place: Path, refused: Callable[..., str]) -> None:
    said = refused(1, "task.reduce_zero_label=false")
    assert "label 3 out of range" in said and "task.reduce_zero_label" in said


def test_colour_masks(place: Path, refused: Callable[..., str]) -> None:
    Image.open(place / "own/images/train/1.png").save(place / "own/masks/train/1.png")
    said = refused(1)
    assert "own/masks/train/1.png" in said and "RGB" in said and "no map of classes" in said


def test_some_empty_masks_are_no_mistake(place: Path) -> None:
    for name in ("train/0.png", "train/1.png", "train/2.png", "val/1.png"):
        size = Image.open(place / "own/masks" / name).size
        Image.new("L", size, 0).save(place / "own/masks" / name)
    assert main(["train", *typed("steps=4")]) == 0
    lines = (place / "runs/mim-segmentation/metrics.jsonl").read_text()
    assert (
        "NaN" not in lines and json.loads((place / "runs/mim-segmentation/evaluation.json").read_text())["images"] == 4
    )


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(("label", "word"), [(255, "task.reduce_zero_label=false"), (0, "task.reduce_zero_label=true")])
def test_nothing_but_empty_masks(place: Path, refused: Callable[..., str], split: str, label: int, word: str) -> None:
    """Training would go through with a loss of 0; there is nothing to learn, or to measure by."""
    masks = sorted((place / "own/masks" / split).rglob("*.png"))
    for path in (place / "own/masks").rglob("*.png"):
        if word.endswith("false"):
            Image.fromarray(np.asarray(Image.open(path)) % 3).save(path)
        if path in masks:
            Image.new("L", Image.open(path).size, label).save(path)
    error = refused(1, word)
    assert f"no pixel of {len(masks)} masks of the split '{split}' is scored" in error
    assert ("nor is 0 with task.reduce_zero_label=true" in error) == word.endswith("true")
    assert not (place / "runs").exists()


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    ("fault", "said"), [("size", "pixels, but"), ("colour", "no map of classes"), ("range", "label 77 out of range")]
)
def test_masks_are_looked_at_before_training(
    place: Path, refused: Callable[..., str], split: str, fault: str, said: str
) -> None:
    path = place / "own/masks" / split / "3.png"
    labels = np.asarray(Image.open(path)).copy()
    if fault == "size":
        labels = labels[1:]
    elif fault == "range":
        labels[-1, -1] = 77
    Image.fromarray(labels).convert("RGB" if fault == "colour" else "L").save(path)
    error = refused(1)
    assert said in error and str(path) in error
    assert not (place / "runs").exists()


def test_evaluation_looks_first_too(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_folder(tmp_path / "other")
    for path in (tmp_path / "other/masks/val").iterdir():
        Image.new("L", Image.open(path).size, 255).save(path)
    with chdir(run):
        assert main(["evaluate", "runs/mim-segmentation", f"data.root={tmp_path / 'other'}"]) == 1
    assert "no pixel of 4 masks of the split 'val' is scored" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "I;16"])
def test_pictures_of_other_modes(place: Path, mode: str) -> None:
    for path in sorted((place / "own/images").rglob("*.png")):
        picture = Image.open(path)
        path.unlink()
        if mode == "I;16":
            Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257).save(path)
        else:
            picture.convert(mode).save(path.with_suffix(".tif" if mode == "CMYK" else ".png"))
    assert main(["train", *SMALL]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("task.head=fpn",), "task.head=fpn is not one of upernet, setr_pup"),
        (("task.scales=[1.0,2.0]", "task.inference=whole"), "needs task.inference=slide"),
        (("data.image_size=8",), "data.image_size=8 is 1x1 patches"),
        (("task.taps=[0,1,2,3]",), "there is no block 3 of 3"),
        (("task.stride=[32,33]",), "task.stride=[32, 33] is larger than data.image_size=32"),
        (("micro_batch_size=1",), "micro_batch_size= to 2 or more"),
        (("optim.schedule=polynomial",), "optim.schedule=polynomial is not one of cosine, linear, constant, poly"),
        (("optim.power=0",), "optim.power=0.0 must be positive"),
        (("task.strides=[8,8]",), "did you mean task.stride"),
        (("data=text",), "masks records come from"),
    ],
)
def test_settings_that_cannot_be(place: Path, refused: Callable[..., str], words: tuple[str, ...], said: str) -> None:
    assert said in refused(2, *words)
    assert not (place / "runs").exists()
