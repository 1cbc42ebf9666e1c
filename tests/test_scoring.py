"""`vlbeit evaluate --predictions`: answer files of any program against official annotations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vlbeit.cli import main

GOLDEN = Path(__file__).parent / "golden" / "vqa_metric"


def score(predictions: Path, *more: str) -> int:
    files = ("--annotations", str(GOLDEN / "annotations.json"), "--questions", str(GOLDEN / "questions.json"))
    return main(["evaluate", "--predictions", str(predictions), *files, *more])


def results() -> list[dict[str, Any]]:
    return json.loads((GOLDEN / "results.json").read_text())


def test_golden_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "result.json"
    assert score(GOLDEN / "results.json", "--out", str(out)) == 0
    expected = json.loads((GOLDEN / "expected.json").read_text())
    found = json.loads(out.read_text())
    for name in ("overall", "perAnswerType", "perQuestionType", "perQuestion"):
        assert found[name] == expected[name]
    assert found["questions"] == 300 and found["blind"] is None
    assert found["yes/no"] == expected["perAnswerType"]["yes/no"]
    said = capsys.readouterr().out
    assert "70.43" in said and str(out) in said and "no blind baseline" in said


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def sample(row: dict[str, Any], said: Any) -> dict[str, Any]:
    return {"doc_id": 0, "doc": {"question_id": row["question_id"], "question": "?"}, "filtered_resps": said}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (lambda rows: lines(rows), "VQA answers"),
        (lambda rows: lines([sample(row, [row["answer"]]) for row in rows]), "lmms-eval samples"),
        (lambda rows: lines([sample(row, row["answer"]) for row in rows]), "lmms-eval samples"),
        (lambda rows: json.dumps({"args": {}, "logs": [sample(row, [row["answer"]]) for row in rows]}), "lmms-eval"),
        (lambda rows: "\ufeff" + json.dumps([{**row, "question_id": str(row["question_id"])} for row in rows]), "VQA"),
        (lambda rows: lines(rows + rows[:3]), "3 rows say the same again"),
        (lambda rows: lines([{**rows[0], "note": "a\u2028b"}, *rows[1:]]).replace("\\u2028", "\u2028"), "VQA answers"),
    ],
)
def test_files_of_other_programs_score_the_same(text, named, tmp_path, capsys) -> None:
    file, out = tmp_path / "answers", tmp_path / "result.json"
    file.write_text(text(results()), encoding="utf-8")
    assert score(file, "--out", str(out)) == 0
    assert json.loads(out.read_text())["overall"] == 70.43
    assert named in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda rows: rows[1:], "no answer to 1 (1249000) of the 300"),
        (lambda rows: [*rows, {"question_id": 7, "answer": "a"}], "does not have: 1 (7)"),
        (lambda rows: [*rows, {**rows[0], "answer": "otherwise"}], "answered twice, differently: 1 (1249000)"),
        (lambda rows: [{"question_id": True, "answer": "a"}], "entry 0: question_id True"),
        (lambda rows: [{"question_id": 1000000, "answer": 2}], "question 1000000 must be one text, not 2"),
        (lambda rows: [sample(rows[0], ["a", "b"])], "must be one text"),
        (lambda rows: ["a"], "entry 0 is no object"),
        (lambda rows: [], "holds no answers"),
        (lambda rows: 3, "JSON list of answers, not int"),
        (lambda rows: [{**sample(rows[0], "a"), "doc": "text"}], "entry 0: question_id None"),
        (lambda rows: [{"question_id": "9" * 5000, "answer": "a"}], "must be a whole number"),
    ],
)
def test_wrong_files_are_named(change, named, tmp_path, capsys) -> None:
    file = tmp_path / "answers.json"
    file.write_text(json.dumps(change(results())))
    assert score(file, "--out", str(tmp_path / "result.json")) == 1
    said = capsys.readouterr().err
    assert named in said and len(said.splitlines()) == 1
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b'[{"question_id": 1', "line 1 column"),
        (b'{"question_id": 1, "answer": "a"}\n{"question\n', "line 2 column"),
        (b"\xff\xfe", "byte 0: not UTF-8"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"question_id": 1, "answer": "a"}\n' + b"[" * 100_000, "line 2 cannot be read: it is nested too deep"),
        (b'[{"question_id": ' + b"9" * 5000 + b', "answer": "a"}]', "cannot be read"),
    ],
)
def test_damaged_files_are_named(content, named, tmp_path, capsys) -> None:
    file = tmp_path / "answers.json"
    file.write_bytes(content)
    assert score(file) == 1
    assert named in capsys.readouterr().err


def test_only_answered(tmp_path, capsys) -> None:
    file, out = tmp_path / "answers.json", tmp_path / "result.json"
    file.write_text(json.dumps(results()[:30]))
    assert score(file, "--out", str(out), "--only-answered") == 0
    found = json.loads(out.read_text())
    assert (found["questions"], found["unanswered"]) == (30, 270)
    assert "not the official one" in capsys.readouterr().out


def test_blind_beside_the_training_files(scenes: Path, tmp_path: Path, capsys) -> None:
    annotations = scenes / "v2_mscoco_val2014_annotations.json"
    rows = json.loads(annotations.read_text())["annotations"]
    file, out = tmp_path / "answers.json", tmp_path / "result.json"
    file.write_text(json.dumps([{"question_id": row["question_id"], "answer": "no"} for row in rows]))
    questions = scenes / "v2_OpenEnded_mscoco_val2014_questions.json"
    words = ["--predictions", file, "--annotations", annotations, "--questions", questions, "--out", out]
    assert main(["evaluate", *map(str, words)]) == 0
    found = json.loads(out.read_text())
    assert found["blind"] > found["overall"] > 0
    assert "blind: the most frequent answers" in capsys.readouterr().out
    # questions of another split
    questions = scenes / "v2_OpenEnded_mscoco_train2014_questions.json"
    assert main(["evaluate", *map(str, words[:5]), str(questions)]) == 1
    assert "lacks annotated questions" in capsys.readouterr().err


def test_only_answered_questions_are_guessed_blindly_too(scenes: Path, tmp_path: Path) -> None:
    """As if the others had never been annotated."""
    for name in ("v2_mscoco_train2014_annotations.json", "v2_OpenEnded_mscoco_train2014_questions.json"):
        (tmp_path / name).symlink_to(scenes / name)
    annotations, questions = "v2_mscoco_val2014_annotations.json", "v2_OpenEnded_mscoco_val2014_questions.json"
    rows = json.loads((scenes / annotations).read_text())["annotations"][:9]
    (tmp_path / annotations).write_text(json.dumps({"annotations": rows}))
    (tmp_path / questions).write_text((scenes / questions).read_text())
    (tmp_path / "answers.json").write_text(json.dumps([{"question_id": r["question_id"], "answer": "2"} for r in rows]))
    found = []
    for folder, more in ((tmp_path, []), (scenes, ["--only-answered"])):
        words = ["--annotations", folder / annotations, "--questions", folder / questions, "--out", tmp_path / "r.json"]
        assert main(["evaluate", "--predictions", str(tmp_path / "answers.json"), *map(str, words), *more]) == 0
        found.append(json.loads((tmp_path / "r.json").read_text()))
    assert found[1].pop("unanswered") > 0
    assert found[0] == found[1] and found[0]["blind"] is not None


def test_usage(capsys) -> None:
    assert main(["evaluate"]) == 2
    assert main(["evaluate", "--predictions", "a.json"]) == 2
    assert main(["evaluate", "runs/a", "--predictions", "a.json", "--annotations", "b.json"]) == 2
    assert main(["evaluate", "--predictions", "a.json", "--annotations", "b.json"]) == 1
    assert "No such file" in capsys.readouterr().err
