"""The official VQA accuracy: golden results, tricky strings, score cases."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vlbeit.data.answers import CONTRACTIONS, clean_answer, normalize_answer
from vlbeit.tasks.vqa.metric import VQAAccuracy
from vlbeit.tasks.vqa.rules import Scores, answer_score, numbers, percent
from vlbeit.tasks.vqa.scoring import schema

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


def golden_rows():
    """prediction, human answers, types and id of every golden question."""
    results = {row["question_id"]: row["answer"] for row in json.loads((GOLDEN / "results.json").read_text())}
    for row in json.loads((GOLDEN / "annotations.json").read_text())["annotations"]:
        humans = [human["answer"] for human in row["answers"]]
        yield results[row["question_id"]], humans, row["answer_type"], row["question_type"], row["question_id"]


def official(expected):
    return {name: expected[name] for name in ("overall", "perAnswerType", "perQuestionType", "perQuestion")}


def test_golden_result():
    expected = json.loads((GOLDEN / "expected.json").read_text())
    accuracy = VQAAccuracy()
    rows = list(golden_rows())
    for start in range(0, len(rows), 7):
        accuracy.update(*zip(*rows[start : start + 7], strict=True))
    assert accuracy.official() == official(expected)
    assert accuracy.compute() == {"overall": expected["overall"], **expected["perAnswerType"], "questions": len(rows)}


def test_two_metrics_merge_and_a_repeated_question_counts_once():
    expected = json.loads((GOLDEN / "expected.json").read_text())
    rows = list(golden_rows())
    first, second, idle = VQAAccuracy(), VQAAccuracy(), VQAAccuracy()
    first.update(*zip(*rows[:200], strict=True))
    second.update(*zip(*rows[150:], strict=True))  # 50 of padding
    first.merge_state(second)
    first.merge_state(idle)
    assert first.official() == official(expected)


def test_without_ids_every_update_counts():
    accuracy = VQAAccuracy()
    for _ in range(2):
        accuracy.update(["yes"], [["yes"] * 10], ["yes/no"], ["is"])
    accuracy.update(["x"], [[]], [""], [""])  # no human answers, as in a test split
    assert accuracy.compute() == {"overall": 100.0, "yes/no": 100.0, "questions": 2}
    accuracy.reset()
    assert accuracy(["x"], [[]], [""], [""]) == {
        "questions": 0
    }  # as a torchmetrics metric is called: the batch's value
    with pytest.raises(ValueError, match="no question"):
        accuracy.official()
    for _ in range(2):
        accuracy.update(["yes"], [["yes"] * 10], ["yes/no"], ["is"], [-1])  # Visual Genome's ids are negative
    assert accuracy.compute()["questions"] == 1
    with pytest.raises(ValueError, match=r"shorter|longer"):
        accuracy.update(["a", "b"], [["a"] * 10], ["other"], ["what"])


def test_a_tie_is_rounded_as_by_python_2():
    assert percent([1.0] + [0.0] * 31) == 3.13  # 3.125: Python 3 rounds it to 3.12
    assert percent([1.0, 0.0, 0.0]) == 33.33


def test_scores_are_added_up_in_the_order_of_the_humans():
    # 3 of 10: 3 * 2/3 + 7 differs in its last bit with the place of the three
    early, late = (answer_score("x", humans) for humans in (["x"] * 3 + list("abcdefg"), list("abcdefg") + ["x"] * 3))
    assert early == pytest.approx(late, abs=1e-15) == pytest.approx(0.9)
    assert answer_score("x", ["x", "y"]) == (0 + 1 / 3) / 2 and answer_score("x", ["x"]) == 0


def test_types_are_listed_in_the_official_order():
    scores = Scores([], [], [], [])
    for number, kind in enumerate(("zebra", "other", "yes/no", "apple")):
        scores.add(number, 1.0, kind, kind)
    assert list(numbers(scores)) == ["overall", "yes/no", "other", "apple", "zebra", "questions"]
    assert list(schema(scores, 12.5)) == [
        "overall", "yes/no", "other", "apple", "zebra", "questions", "blind",
        "perAnswerType", "perQuestionType", "perQuestion",
    ]  # fmt: skip


def test_two_processes_one_of_them_without_questions(tmp_path):
    program = f"""
import json, sys, torch.distributed as dist
from vlbeit.tasks.vqa.metric import VQAAccuracy
dist.init_process_group("gloo", init_method="file://{tmp_path}/meet", rank=int(sys.argv[1]), world_size=2)
accuracy = VQAAccuracy()
if sys.argv[1] == "1":
    accuracy.update(["yes", "x"], [["yes"] * 10, ["x"] * 2 + ["y"] * 8], ["yes/no", "other"], ["is", "what"], [1, 2])
print(json.dumps(accuracy.compute()))
dist.destroy_process_group()
"""
    ranks = [
        subprocess.Popen([sys.executable, "-c", program, rank], stdout=subprocess.PIPE, text=True) for rank in "01"
    ]
    try:
        said = [rank.communicate(timeout=120)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    wanted = {"overall": 80.0, "yes/no": 100.0, "other": 60.0, "questions": 2}
    assert [json.loads(text.splitlines()[-1]) for text in said] == [wanted, wanted]


def test_clean_answer_keeps_inner_spaces():
    assert clean_answer(" a\tb  c\n") == "a b  c"
