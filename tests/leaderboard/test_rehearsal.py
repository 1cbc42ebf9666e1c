"""The whole way of a trained run: answered, checked, sent, evaluated by a server, its row read. The server scores as
officially, so that its number must be ours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from vlbeit.cli import main

TOKEN = "tok3n-of-a-rehearsal"


def test_from_a_run_to_its_row(
    chain: Path, scenes: Path, here: Path, evalai_server: ModuleType, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = Path(shutil.copytree(chain / "runs" / "vl-vqa", here / "runs" / "vl-vqa"))
    questions = scenes / "v2_OpenEnded_mscoco_val2014_questions.json"
    annotations = scenes / "v2_mscoco_val2014_annotations.json"
    ids = [row["question_id"] for row in json.loads(questions.read_text())["questions"]]
    server = evalai_server.EvalAI(ids, evalai_server.scorer(annotations), [TOKEN])
    assert main(["submit", "runs/vl-vqa", "--questions", str(questions), "--images", str(scenes / "val2014")]) == 0
    assert main(["evaluate", "runs/vl-vqa", "data.limit=null"]) == 0
    (evaluation,) = run.glob("evaluation-*.json")
    ours = json.loads(evaluation.read_text())
    server.challenge = 7  # to the real one answers to val are not sent
    with server:
        monkeypatch.setenv("EVALAI_API_URL", server.host)
        monkeypatch.setenv("EVALAI_TOKEN", TOKEN)
        words = ("upload", "runs/vl-vqa", "--phase", "test-dev", "--large")
        assert main(["submit", *words]) == 1
        assert "answers the questions of val2014" in capsys.readouterr().err
        assert main(["submit", *words, "--challenge", "7"]) == 0
        capsys.readouterr()
        assert main(["submit", "status", "runs/vl-vqa", "--wait", "--json"]) == 0
    (sent,) = json.loads(capsys.readouterr().out)["submissions"]
    kinds = ("overall", "yes/no", "number", "other")
    assert sent["scores"]["test-dev"] == {kind: ours[kind] for kind in kinds if kind in ours}
    assert sent["method"] == "vl-vqa" and sent["status"] == "finished"
    assert main(["submit", "status", "runs/vl-vqa"]) == 0  # the server is gone
    assert f"> vl-vqa       test-dev       {ours['overall']:.2f}" in capsys.readouterr().out
