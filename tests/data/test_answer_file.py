"""The answer file: written whole, read back, and every fault refused before anything is overwritten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vlbeit.data.answer_file import read_questions, write_answers
from vlbeit.errors import DataError

ANSWERS = {262148002: "2", 262148000: "t shirt", 7: "“oui”"}


def test_writes_one_sorted_utf8_array(tmp_path: Path) -> None:
    path = tmp_path / "out" / "answers.json"
    assert write_answers(path, ANSWERS, list(ANSWERS)) == 3
    content = path.read_bytes().decode("utf-8")
    assert "“oui”" in content and content.startswith('[{"question_id":7,') and content.endswith("}]\n")
    assert json.loads(content) == [{"question_id": key, "answer": ANSWERS[key]} for key in sorted(ANSWERS)]
    assert [file.name for file in path.parent.iterdir()] == ["answers.json"]


@pytest.mark.parametrize(
    ("answers", "ids", "message"),
    [
        ({7: "a"}, [7, 8, 9], r"without an answer: 2 \(8, 9\)"),
        ({}, list(range(100, 120)), r"without an answer: 20 \(100, 101, 102, ...\)"),
        ({7: "a", 8: "b"}, [7], r"not asked: 1 \(8\)"),
        ({7: "a"}, [7, 7], r"asked twice: 1 \(7\)"),
        ({True: "a"}, [1], "question_id is no integer"),
        ({7: 3}, [7], r"answer is no text: 1 \(7\)"),
        ({}, [], "no questions to answer"),
    ],
)
def test_faults_are_named_and_nothing_is_overwritten(
    tmp_path: Path, answers: dict[Any, Any], ids: list[int], message: str
) -> None:
    path = tmp_path / "answers.json"
    path.write_text("before")
    with pytest.raises(DataError, match=message):
        write_answers(path, answers, ids)
    assert path.read_text() == "before" and [file.name for file in tmp_path.iterdir()] == ["answers.json"]


def test_questions(tmp_path: Path) -> None:
    file = tmp_path / "q.json"
    file.write_text(json.dumps({"data_subtype": "test2015", "questions": [{"question_id": 8}, {"question_id": 7}]}))
    assert read_questions(file) == (file, [8, 7], "test2015")
    file.write_text(json.dumps({"questions": [{"question_id": 8}]}))
    assert read_questions(file).subset == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"questions": [{"question_id": true}]}', r"questions\[0\] has no question_id that is an integer"),
        ('{"questions": [{"question_id": 1}, [1]]}', r"questions\[1\] has no question_id"),
        ('{"questions": []}', "holds no questions"),
        ('{"questions": [{"question_id": 1}, {"question_id": 1}]}', r"asked twice: 1 \(1\)"),
        ('{"annotations": []}', "has no 'questions'"),
        ('{"questions": [{"question_id": 1}', "not JSON"),
    ],
)
def test_damaged_questions(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "q.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_questions(tmp_path / "q.json")
    with pytest.raises(DataError, match=r"none\.json"):
        read_questions(tmp_path / "none.json")
