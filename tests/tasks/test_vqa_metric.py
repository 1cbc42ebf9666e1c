"""The official VQA accuracy: golden results, tricky strings, score cases."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlbeit.data.answers import CONTRACTIONS, clean_answer, normalize_answer
from vlbeit.tasks.vqa.metric import VQAAccuracy, answer_score

GOLDEN = Path(__file__).parents[1] / "golden" / "vqa_metric"

# input -> normal form, from the original code under Python 2.7
TRICKY = {
    "YES!": "yes",
    "None.": "0",
    "eleven": "eleven",
    "a": "",
    "the the": "",
    "an apple": "apple",
    "twenty one": "twenty 1",
    "no one": "no 1",
    "six pack": "6 pack",
    "two-three": "2 3",
    "two - three": "2 3",
    "one,two": "1 2",
    "1,000": "1000",
    "1,000 - 2,000": "1000 2000",
    "100,978 people, big": "100978 people big",
    "1, 2": "1 2",
    "5,5,5": "555",
    "1 , 2": "1 2",
    "t-shirt": "t shirt",
    "red/white": "red white",
    "yes,no": "yes no",
    "n/a": "n",
    "a/c": "c",
    "8 1/2": "8 1 2",
    "dont": "don't",
    "DONT": "don't",
    "cant": "can't",
    "wont": "won't",
    "Im": "im",
    "ive": "ive",
    "lets": "lets",
    "hes": "he's",
    "shes": "shes",
    "somebody'd": "somebodyd",
    "oclock": "o'clock",
    "yall'd've": "y'all'd've",
    "y'allll": "y'all'll",
    "10:30 a.m.": "10:30 am",
    "U.S.A.": "usa",
    "u.s. of a": "us of",
    "1.": "1",
    "3.0.": "3.0",
    "1...2": "1.2",
    "$1.50": "$1.50",
    "50%": "50%",
    "#1": "#1",
    "rock & roll": "rock & roll",
    "girl's": "girl's",
    "girls'": "girls'",
    "-1": "1",
    "- 1": "1",
    "+": "",
    "?": "",
    "<unk>": "unk",
    "two\nmen": "2 men",
    "hot-dog (large)": "hot dog large",
    "“yes”": "“yes”",
    "." * 40: "." * 8,
    "7eleven": "7eleven",
    "twas": "'twas",
    "İ": "i",  # Python 2's lower case is letter by letter
    "x,y,\nz": "xy z",  # the line end is a space before punctuation is looked at
}


@pytest.mark.parametrize(("text", "normal"), TRICKY.items())
def test_tricky_strings(text, normal):
    assert normalize_answer(text) == normal


@pytest.mark.parametrize(
    ("prediction", "humans", "percent"),
    [
        ("Yes", ["yes"] * 10, 0),  # all humans agree: compared as written
        ("Yes", ["yes"] * 9 + ["Yes"], 100),
        ("two", ["2"] * 10, 0),
        ("two", ["2"] * 9 + ["3"], 100),
        ("", ["a"] * 3 + ["b"] * 7, 90),  # "a" is an article and normalises to nothing
        ("n/a", ["n"] * 2 + [f"other {i}" for i in range(8)], 60),
        ("yes", ["yes"] * 8 + ["no"] * 2, 100),
        (" yes\n", ["yes"] * 10, 100),
        *[("x", ["x"] * k + [f"other {i}" for i in range(10 - k)], p) for k, p in enumerate((0, 30, 60, 90, 100, 100))],
    ],
)
def test_score_cases(prediction, humans, percent):
    assert answer_score(prediction, humans) == pytest.approx(percent / 100, abs=1e-12)


def test_score_needs_humans():
    with pytest.raises(ValueError, match="no human answers"):
        answer_score("yes", [])


def test_contractions_are_those_of_the_original():
    # 120 entries; four can never match lower-cased text ("Id've" "I'dve" "Im" "Ive"), two map to themselves
    assert len(CONTRACTIONS) == 120 - 4 - 2
    assert not {"shes", "ive", "im", "lets", "id", "hell", "well", "wed", "its"} & set(CONTRACTIONS)
    assert CONTRACTIONS["mightn'tve"] == "mightn't've" and CONTRACTIONS["'ow'sat"] == "'ow's'at"


def test_golden_normal_forms():
    expected = json.loads((GOLDEN / "expected.json").read_text())["normalized"]
    assert expected and {text: normalize_answer(text) for text, _ in expected} == dict(expected)


def test_golden_result():
    expected = json.loads((GOLDEN / "expected.json").read_text())
    results = {row["question_id"]: row["answer"] for row in json.loads((GOLDEN / "results.json").read_text())}
    accuracy, by_question = VQAAccuracy(), {}
    for row in json.loads((GOLDEN / "annotations.json").read_text())["annotations"]:
        score = answer_score(results[row["question_id"]], [human["answer"] for human in row["answers"]])
        accuracy.add(score, row["answer_type"], row["question_type"])
        by_question[str(row["question_id"])] = round(100 * score, 2)
    assert by_question == expected["perQuestion"]
    assert accuracy.by_question_type() == expected["perQuestionType"]
    assert accuracy.compute() == {
        "overall": expected["overall"],
        **expected["perAnswerType"],
        "questions": len(expected["perQuestion"]),
    }


def test_accuracy_without_questions():
    with pytest.raises(ValueError, match="no question"):
        VQAAccuracy().compute()


def test_clean_answer_keeps_inner_spaces():
    assert clean_answer(" a\tb  c\n") == "a b  c"
