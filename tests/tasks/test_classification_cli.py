"""Classification of own folders through the command line: every kind of picture, both towers, mistakes, subsets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import vlbeit
from vlbeit.cli import main

SMALL = (
    "model=tiny",
    "model.embed_dim=32",
    "model.num_heads=2",
    "data=imagefolder",
    "data.image_size=32",
    "data.workers=0",
    "data.max_bad_fraction=0",
    "global_batch_size=8",
    "micro_batch_size=4",
    "epochs=null",
    "steps=2",
    "optim.warmup_steps=0",
)
COLOURS = {"n01443537": 40, "n01484850": 110, "n01491361": 180}


def draw(path: Path, value: int, mode: str = "RGB") -> None:
    """A picture of one grey, with some noise, in any of Pillow's modes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = np.random.default_rng(len(path.name)).integers(-20, 20, (40, 48)) + value
    if mode == "I;16":
        Image.fromarray((grey.clip(0, 255) * 257).astype(np.uint16)).save(path)
        return
    Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert(mode).save(path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/own, pictures of every mode in three classes, and runs/own, trained on them."""
    folder = tmp_path_factory.mktemp("own")
    modes = {"L": "png", "LA": "png", "RGBA": "png", "P": "png", "CMYK": "jpg", "I;16": "png", "1": "png", "RGB": "jpg"}
    for name, value in COLOURS.items():
        for split in ("train", "val"):
            for mode, suffix in modes.items():
                draw(folder / "data/own" / split / name / f"{mode.replace(';', '')}.{suffix}", value, mode)
    with chdir(folder):
        assert main(["train", "task=classification", "init=none", "run=runs/own", "data.root=data/own", *SMALL]) == 0
    return folder


@pytest.fixture
def place(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: data/own and runs/own, to be damaged at will."""
    shutil.copytree(finished, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("VLBEIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "work"


@pytest.fixture
def refused(place: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail with exit code 1 and one line, which it gives."""

    def run(*words: str) -> str:
        capsys.readouterr()
        assert main(list(words)) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1, error
        return error

    return run


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_every_kind_of_picture_is_trained_and_evaluated_on(finished: Path) -> None:
    """Grey, with alpha, CMYK, 16 bits, one bit, palette: with data.max_bad_fraction=0 none was replaced."""
    numbers = read(finished / "runs/own/evaluation.json")
    assert (numbers["images"], numbers["classes"]) == (24, 3)
    lines = [json.loads(line) for line in (finished / "runs/own/metrics.jsonl").read_text().splitlines()]
    assert not [key for line in lines for key in line if "accuracy" in key], "with mixup there is none in training"


def test_a_class_without_pictures_to_evaluate_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is no mistake; `classes` says of how many there were some."""
    shutil.rmtree("data/own/val/n01484850")
    assert main(["evaluate", "runs/own"]) == 0
    numbers = read(Path("runs/own/evaluation.json"))
    assert (numbers["images"], numbers["classes"]) == (16, 2)


def test_wrong_folders(refused: Callable[..., str], place: Path) -> None:
    train = ("train", "task=classification", "init=none", "run=runs/new", "data.root=data/own", *SMALL)
    draw(Path("data/own/val/n09999999/a.png"), 20)
    said = refused(*train)
    assert "data/own/val: class folders that the training split has not: 1 (n09999999)" in said
    shutil.rmtree("data/own/val/n09999999")
    for name in ("n00000001", "n00000002"):
        Path("data/own/train", name).mkdir()
    said = refused(*train)
    assert "data/own/train: class folders without a picture: 2 (n00000001, n00000002); fill them or" in said
    for name in ("n00000001", "n00000002", "n01443537", "n01491361"):
        shutil.rmtree(Path("data/own/train", name))
    shutil.rmtree("data/own/val")
    draw(Path("data/own/val/n01484850/a.png"), 20)
    assert "data.root=data/own has one class, n01484850: there is nothing to tell apart" in refused(*train)
    assert not Path("runs/new").exists()


def test_a_subset_in_one_folder(place: Path, refused: Callable[..., str]) -> None:
    """As ImageNet-A and -R: ROOT/CLASS/*.jpg, some of the classes of the run."""
    for name in ("n01484850", "n01491361"):
        shutil.copytree(f"data/own/val/{name}", f"data/few/{name}")
    words = ("evaluate", "runs/own", "data.root=data/few", "data.val_split=.")
    assert "no folder 'val'" in refused(*words[:3])
    assert "has 2 classes, the run was trained on 3, and they differ (such as 'n01443537')" in (said := refused(*words))
    assert "or task.subset=true to evaluate among these alone" in said
    assert main([*words, "task.subset=true"]) == 0
    numbers = read(Path("runs/own/evaluation-imagefolder-few.json"))
    assert (numbers["images"], numbers["classes"]) == (16, 2)
    assert numbers["words"] == [*words[2:], "task.subset=true"]
    expected = top1_among(Path("runs/own"), Path("data/few"), ["n01484850", "n01491361"])
    assert numbers["top1"] == pytest.approx(expected)
    shutil.copytree("data/few/n01484850", "data/few/n07777777")
    said = refused(*words, "task.subset=true")
    assert "data/few has classes that the classifier does not know: 1 (n07777777); it knows 3 (n01443537" in said


def top1_among(run: Path, root: Path, found: list[str]) -> float:
    """Top-1 in percent by hand: the most probable of the found classes, as `predict` has it."""
    predict, hits = vlbeit.pipeline(run), []
    for path in sorted(root.rglob("*.*g")):
        likeliest = next(name for name, _ in predict(path, top=len(COLOURS)) if name in found)
        hits.append(likeliest == path.parent.name)
    return 100 * sum(hits) / len(hits)


def test_published_weights_on_a_subset(place: Path, unilm: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """An official file names no classes: a thousand rows are ImageNet's, in the order of its sorted folders."""
    state = unilm.beit(grid=(2, 2), classes=1000)
    state["head.weight"] *= 0
    state["head.bias"] = torch.zeros(1000)
    state["head.bias"][[1, 2, 3]] = torch.tensor([1.0, 3.0, 2.0])  # goldfish, great white shark, tiger shark
    state["head.bias"][500] = 9.0  # of a class that is not there
    torch.save({"model": state}, "beit.pth")
    (place / "data/own/val").rename("few")
    words = ["data.workers=0", "data.root=few", "data.val_split=.", "task.subset=true", "model.num_heads=2"]
    assert main(["evaluate", "beit.pth", "task=classification", *words]) == 0
    out = capsys.readouterr().out
    numbers = read(Path(out.partition("wrote ")[2].split(", ")[0]))
    assert numbers["top1"] == pytest.approx(100 / 3), "always the shark"
    assert (numbers["images"], numbers["classes"]) == (24, 3)
    torch.save({"model": unilm.beit(grid=(2, 2), classes=7)}, "seven.pth")
    assert main(["evaluate", "seven.pth", "task=classification", *words]) == 2
    assert "nothing says which classes the 7 rows of this classifier stand for" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["mim", "vl"])
def test_both_towers_give_their_image_experts(in_chain: Path, scenes: Path, tmp_path: Path, stage: str) -> None:
    """Of a vl run the image pass alone comes over: no text, no fused experts, and every weight of it unchanged."""
    run = tmp_path / "run"
    words = [f"stage={stage}", "task=classification", f"data.root={scenes}", f"run={run}", "optim.lr=1e-12"]
    small = ["model.embed_dim=32", "model.depth=3", "model.num_heads=2", "model.fused_layers=1", "data.workers=0"]
    steps = ["global_batch_size=8", "micro_batch_size=8", "steps=1", "engine.ema_decay=0", "data.limit=16"]
    assert main(["train", *words, *small, *steps, "optim.warmup_steps=0"]) == 0
    model = vlbeit.load(run)
    assert model.encoder.spec.experts == ("image",) and model.encoder.spec.fused_layers == 0
    source, own = (load_file(folder / "checkpoint/model.safetensors") for folder in (Path("runs", stage), run))
    names = [name for name in own if ".blocks." in name]
    assert names and not [name for name in names if ".text." in name or ".fused." in name]
    for name in names:
        torch.testing.assert_close(own[name], source[name], msg=name)
    assert "top1" in read(run / "evaluation.json")
