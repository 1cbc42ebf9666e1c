"""The answer file: written whole, checked, and every fault named."""

from __future__ import annotations

import json

import pytest

from vlbeit.errors import DataError
from vlbeit.tasks.vqa.submit import check_answers, write_answers

ANSWERS = {262148002: "2", 262148000: "t shirt", 7: "“oui”"}


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.json"
    path.write_text(json.dumps({"questions": [{"question_id": key, "image_id": 1} for key in ANSWERS]}))
    return path


def test_writes_one_sorted_utf8_array(tmp_path, questions):
    path = tmp_path / "out" / "answers.json"
    assert write_answers(path, ANSWERS, list(ANSWERS)) == 3
    content = path.read_bytes().decode("utf-8")
    assert "“oui”" in content
    assert json.loads(content) == [{"question_id": key, "answer": ANSWERS[key]} for key in sorted(ANSWERS)]
    assert check_answers(path, questions) == 3
    assert [file.name for file in path.parent.iterdir()] == ["answers.json"]


@pytest.mark.parametrize(
    ("predictions", "ids", "message"),
    [
        ({7: "a"}, [7, 8, 9], "question 8, 9 without an answer"),
        ({}, list(range(100, 120)), "question 100, 101, 102, 103, 104 and 15 more without"),
        ({7: "a", 8: "b"}, [7], "question 8 that the question file does not have"),
        ({7: "a"}, [7, 7], "question 7 asked twice"),
        ({"7": "a"}, [7], "question_id '7' must be an integer"),
        ({True: "a"}, [1], "question_id True must be an integer"),
        ({7: 3}, [7], "answer to question 7 must be a text"),
        ({7: "a"}, ["7"], "must be integers"),
        ({}, [], "holds no questions"),
    ],
)
def test_faults_are_named_and_nothing_is_overwritten(tmp_path, predictions, ids, message):
    path = tmp_path / "answers.json"
    path.write_text("before")
    with pytest.raises(DataError, match=message):
        write_answers(path, predictions, ids)
    assert path.read_text() == "before" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"question_id": 7, "answer": "a"}, {"question_id": 7, "answer": "b"}]', "question 7 answered twice"),
        ('{"7": "a"}', "one JSON array"),
        ('[{"question_id": 7}]', "entry 0 must be an object"),
        ('[{"question_id": 7.0, "answer": "a"}]', "7.0 must be an integer"),
        ('[{"question_id": 7, "answer": null}]', "must be a text"),
        ('{"question_id": 7, "answer": "a"}\n{"question_id": 8, "answer": "a"}', "not a UTF-8 JSON file"),
    ],
)
def test_check_of_a_foreign_file(tmp_path, content, message):
    path = tmp_path / "answers.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        check_answers(path, [7])
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_check_names_missing_and_odd_files(tmp_path, questions):
    with pytest.raises(DataError, match="no such answer file"):
        check_answers(tmp_path / "none.json", questions)
    with pytest.raises(DataError, match="no such question file"):
        check_answers(questions, tmp_path / "none.json")
    (tmp_path / "odd.json").write_text("[]")
    with pytest.raises(DataError, match="not a VQA question file"):
        check_answers(questions, tmp_path / "odd.json")
