"""`vlbeit export`: what onnxruntime finds in the file is what torch finds in the run, at sizes of any kind."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vlbeit
from vlbeit import exporting
from vlbeit.cli import main
from vlbeit.data.records import open_image
from vlbeit.data.text import Tokenizer
from vlbeit.errors import DataError
from vlbeit.inference import Trained
from vlbeit.tasks.classification.task import Classification
from vlbeit.tasks.vqa.task import VQA

for package in exporting.PACKAGES:
    pytest.importorskip(package, reason=f"{package} is not installed: pip install 'vlbeit[onnx]'")
import onnxruntime  # noqa: E402

SIZE = (48, 48)


def session(file: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # a graph that refuses its input says so on standard error
    return onnxruntime.InferenceSession(str(file), options)


def metadata(file: Path) -> dict[str, Any]:
    found = session(file).get_modelmeta().custom_metadata_map
    return {name: value if name in ("vlbeit", "run") else json.loads(value) for name, value in found.items()}


@pytest.mark.parametrize("run", ["runs/mim", "runs/vl"])
def test_image_features(run: str, in_chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tower.onnx"
    assert main(["export", run, str(file)]) == 0
    said = capsys.readouterr().out
    assert f"wrote {file}\n" in said and "at batch 1 and 3: largest difference " in said
    assert float(said.partition("largest difference ")[2].split()[0]) < 1e-4
    model = vlbeit.load(run)
    for batch in (1, 2, 5):
        image = torch.randn(batch, 3, *SIZE)
        found = session(file).run(["features"], {"image": image.numpy()})[0]
        np.testing.assert_allclose(found, model.encode(image).x_BLD.numpy(), atol=2e-5)
    facts = metadata(file)
    assert facts["vlbeit"] == vlbeit.__version__ and facts["run"] == run and facts["image_size"] == list(SIZE)
    assert list(tmp_path.iterdir()) == [file], "nothing else is left in the folder"
    assert b".py" not in file.read_bytes(), "paths of this machine"


def test_class_logits(in_chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "classes.onnx"
    assert main(["export", "runs/mim-classification", str(file)]) == 0
    objective: Any = Trained("runs/mim-classification").objective
    image = torch.randn(4, 3, *SIZE)
    found = session(file).run(["logits"], {"image": image.numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(found, objective.class_logits({"image": image}).numpy(), atol=1e-5)
    facts = metadata(file)
    assert len(facts["classes"]) == found.shape[1]
    assert facts["normalization"] == {"mean": [0.5] * 3, "std": [0.5] * 3}
    command = capsys.readouterr().out.rpartition("next: ")[2]
    _, *arguments = shlex.split(command)
    shown = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True).stdout
    assert shown == f"(1, {len(facts['classes'])})\n"


def test_answer_logits(in_chain: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "vqa.onnx"
    assert main(["export", "runs/vl-vqa", str(file)]) == 0
    assert "at batch 1 and 3, text 2 and 32: largest difference" in capsys.readouterr().out
    graph, facts = session(file), metadata(file)
    answer: Any = vlbeit.pipeline("runs/vl-vqa", device="cpu")  # after the export: that must leave nothing behind
    picture = next(scenes.rglob("*.jpg"))
    tokenizer = Tokenizer.from_json(facts["tokenizer"], facts["text_length"])
    questions = ["red?", "how many red circles are there?", "what is left of the large green square? " * 8]
    ids = [tokenizer(question) for question in questions]
    longest = max(map(len, ids))
    assert longest == facts["text_length"] == 32
    image_1CHW = answer.transform.image(open_image(picture))[None].numpy()
    padded = {
        "image": np.repeat(image_1CHW, len(ids), axis=0),
        "text_ids": np.array([row + [0] * (longest - len(row)) for row in ids]),
        "text_keep": np.array([[True] * len(row) + [False] * (longest - len(row)) for row in ids]),
    }
    together = graph.run(["logits"], padded)[0]
    for row, question in enumerate(questions):
        text = np.array([ids[row]])
        alone = graph.run(None, {"image": image_1CHW, "text_ids": text, "text_keep": text >= 0})[0][0]
        np.testing.assert_allclose(alone, together[row], atol=1e-5)
        wanted = dict(answer(picture, question, top=len(facts["answers"])))
        probability = 1 / (1 + np.exp(-alone.astype("float64")))
        assert dict(zip(facts["answers"], probability, strict=True)) == pytest.approx(wanted, abs=1e-5)


def test_a_text_that_is_too_long_is_refused_by_the_graph(in_chain: Path, tmp_path: Path) -> None:
    file = exporting.export("runs/vl-vqa", tmp_path / "vqa.onnx").files[0]
    text = np.ones((1, 33), "int64")
    with pytest.raises(Exception, match="invalid index found, index = 32"):
        session(file).run(None, {"image": np.zeros((1, 3, *SIZE), "float32"), "text_ids": text, "text_keep": text > 0})


def test_a_checkpoint_without_the_config_of_a_run(in_chain: Path, tmp_path: Path) -> None:
    """As weights from elsewhere come: what is known is what their tensors are."""
    shutil.copytree("runs/mim-classification/checkpoint", tmp_path / "bare")
    head = json.loads((tmp_path / "bare/config.json").read_text())
    (tmp_path / "bare/config.json").write_text(json.dumps(head | {"config": {}}))
    file = exporting.export(tmp_path / "bare", tmp_path / "bare.onnx").files[0]
    objective: Any = Trained("runs/mim-classification").objective
    image = torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        wanted = objective.class_logits({"image": image}).numpy()
    np.testing.assert_allclose(session(file).run(["logits"], {"image": image.numpy()})[0], wanted, atol=1e-5)


def with_call(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]) -> None:
    """Classification offers `change` of its own call."""
    plain = Classification.exported

    def exported(self: Any, objective: Any, meta: Any) -> Any:
        offer = plain(self, objective, meta)
        return offer._replace(call=change(offer.call))

    monkeypatch.setattr(Classification, "exported", exported)


def test_other_numbers_leave_no_file(in_chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def drifting(call: Any) -> Any:
        return lambda batch: call(batch) + 0.5 * (calls.append(1) or len(calls))  # type: ignore[func-returns-value]

    with_call(monkeypatch, drifting)
    old = tmp_path / "classes.onnx"
    old.write_bytes(b"old")
    with pytest.raises(DataError, match=r"differ by 1, more than 0\.0001, at batch 1 and 3: .* is not written"):
        exporting.export("runs/mim-classification", old, overwrite=True)
    assert list(tmp_path.iterdir()) == [old] and old.read_bytes() == b"old"


def test_a_batch_size_that_is_fixed_is_refused(in_chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_call(monkeypatch, lambda call: lambda batch: call(batch) / len(batch["image"]))
    with pytest.raises(DataError, match=r"torch cannot export it: .*batch.*; nothing is written"):
        exporting.export("runs/mim-classification", tmp_path / "classes.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("run", "code", "said"),
    [
        ("runs/tokenizer", 2, "runs/tokenizer is a run of a tokenizer, which cannot be exported: a run of mim or vl"),
        ("runs/mlm", 2, "runs/mlm is a run of text alone, which cannot be exported: a run of mim or vl gives image"),
        ("runs/nothing", 1, "runs/nothing: no such run or checkpoint; `vlbeit runs` lists the runs here"),
    ],
)
def test_runs_without_a_graph(
    run: str, code: int, said: str, in_chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", run, str(tmp_path / "model.onnx")]) == code
    assert capsys.readouterr().err.startswith(f"error: {said}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("old.onnx", "old.onnx is there already: name another file, or add --overwrite"),
        ("none/model.onnx", "there is no folder"),
        (".", "is a folder: name a file, such as"),
    ],
)
def test_files_that_cannot_be(
    name: str, said: str, in_chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old.onnx").write_bytes(b"old")
    assert main(["export", "runs/mim", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert (tmp_path / "old.onnx").read_bytes() == b"old"


def test_overwrite(in_chain: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"old")
    assert main(["export", "runs/mim", str(file), "--overwrite"]) == 0
    assert session(file).get_inputs()[0].shape == ["batch", 3, *SIZE]


def test_missing_packages(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(exporting, "find_spec", lambda name: None if name == "onnxruntime" else object())
    assert main(["export", "runs/mim", "model.onnx"]) == 2
    assert capsys.readouterr().err == "error: vlbeit export needs onnxruntime: pip install 'vlbeit[onnx]'\n"


def test_a_task_that_offers_nothing(
    in_chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(VQA, "exported")
    assert main(["export", "runs/vl-vqa", str(tmp_path / "model.onnx")]) == 2
    assert capsys.readouterr().err.startswith("error: task=vqa offers nothing to export: its class has no method")
