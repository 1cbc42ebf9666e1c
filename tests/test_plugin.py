"""A stage, a task and a data source of another distribution, through the command line."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from vlbeit.cli import main

SMALL = ("data=dots", "model=tiny", "model.depth=2", "data.image_size=32", "data.workers=0", "global_batch_size=4")


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent / "plugin")
    monkeypatch.chdir(tmp_path)


def test_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert ["copy", "Say how bright each patch is: the smallest stage there is."] in lines
    assert ["brightness", "Tell dark pictures from bright ones."] in lines
    assert ["dots", "Squares of one grey, half of them dark and half of them bright."] in lines


def test_its_settings_are_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "stage=copy", "data=dots", "stage.weight=2", "--dry-run"]) == 0
    assert "  weight: 2.0\n" in capsys.readouterr().out
    assert main(["train", "stage=copy", "data=dots", "stage.weight=-1"]) == 2
    assert capsys.readouterr().err == "error: stage.weight=-1.0 must be positive\n"


def test_trains_and_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "stage=copy", *SMALL, "steps=2"]) == 0
    assert main(["train", "task=brightness", *SMALL, "init=runs/copy", "steps=40", "optim.lr=3e-3"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "runs/copy-brightness"]) == 0
    assert json.loads((tmp_path / "runs/copy-brightness/evaluation.json").read_text())["accuracy"] == 1
    picture = io.BytesIO()
    Image.new("RGB", (32, 32), (225, 225, 225)).save(picture, format="png")
    (tmp_path / "bright.png").write_bytes(picture.getvalue())
    capsys.readouterr()
    assert main(["predict", "runs/copy-brightness", "bright.png", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["answer"] == "bright"


class Found(NamedTuple):
    """A row as tasks with places in the picture give it."""

    label: str
    score: float
    box: tuple[float, float, float, float]
    note: str | None = None


def test_draws_its_result_and_names_its_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["train", "task=brightness", *SMALL, "init=none", "steps=1"]) == 0
    run = str(next(tmp_path.glob("runs/*brightness")))
    Image.new("RGB", (32, 32), (225, 225, 225)).save("bright.png")
    capsys.readouterr()
    assert main(["predict", run, "bright.png", "--out", "here/overlay.png"]) == 2
    said = capsys.readouterr().err
    assert "task=brightness has nothing to draw" in said and f"vlbeit inspect attention {run} bright.png" in said

    from vlbeit_plugin.task import BrightnessPredictor

    def draw(self: Any, image: Image.Image, text: Any = None, *, top: int = 5) -> tuple[list[Found], Image.Image]:
        return rows[:top], Image.new("RGB", image.size, (0, 200, 0))

    rows = [Found("bright", 0.98765, (1.2, 2.0, 30.6, 31.0)), Found("dark", 12.3456, (0.0, 0.0, 1.0, 1.0), "odd")]
    monkeypatch.setattr(BrightnessPredictor, "draw", draw, raising=False)
    monkeypatch.setattr(BrightnessPredictor, "__call__", lambda self, image, text=None, *, top=5: rows[:top])
    assert main(["predict", run, "bright.png", "--out", "here/overlay.png"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[:3] == [
        ["label", "score", "box", "note"],
        ["bright", "0.9877", "1,", "2,", "31,", "31"],
        ["dark", "12.3456", "0,", "0,", "1,", "1", "odd"],
    ]
    assert lines[3] == ["wrote", "here/overlay.png"]
    with Image.open("here/overlay.png") as image:
        assert image.format == "PNG" and image.size == (32, 32) and image.getpixel((3, 3)) == (0, 200, 0)
    assert main(["predict", run, "bright.png", "--json", "--top", "1", "--out", "overlay.jpg"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"label": "bright", "score": 0.98765, "box": [1.2, 2.0, 30.6, 31.0], "note": None}
    ]
    with Image.open("overlay.jpg") as image:
        assert image.format == "JPEG"
    rows.clear()
    assert main(["predict", run, "bright.png"]) == 0
    assert capsys.readouterr().out.startswith("nothing found\n")
    assert not [*tmp_path.glob(".tmp-*"), *tmp_path.glob("here/.tmp-*")]


def test_is_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    session = pytest.importorskip("onnxruntime", reason="pip install 'vlbeit[onnx]'").InferenceSession
    assert main(["train", "task=brightness", *SMALL, "init=none", "steps=2"]) == 0
    run = str(next(tmp_path.glob("runs/*brightness")))
    assert main(["export", run, "bright.onnx"]) == 0
    graph = session("bright.onnx")
    assert graph.run(["brightness"], {"image": np.zeros((5, 3, 32, 32), "float32")})[0].shape == (5, 2)
    assert graph.get_modelmeta().custom_metadata_map["classes"] == '["dark", "bright"]'
    monkeypatch.delattr("vlbeit_plugin.task.Brightness.exported")
    capsys.readouterr()
    assert main(["export", run, "other.onnx"]) == 2
    assert "task=brightness offers nothing to export" in capsys.readouterr().err


def test_missing_predecessor_names_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "task=brightness", *SMALL, "steps=2"]) == 2
    said = capsys.readouterr().err
    assert "runs/copy is missing" in said and "vlbeit train stage=copy" in said and "init=none" in said
