"""Answer vocabulary, soft targets, blind baseline."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from vlbeit.data.answers import Coverage, build_vocabulary, coverage, majority_answer, majority_answers
from vlbeit.errors import DataError, UsageError
from vlbeit.tasks.vqa.answers import AnswerVocabulary, ceiling, read_answers
from vlbeit.tasks.vqa.blind import BlindGuess
from vlbeit.tasks.vqa.rules import answer_score

GOLDEN = Path(__file__).parents[1] / "golden" / "vqa_metric"


class Table(list):
    """Records held in a list."""

    def column(self, name: str) -> Sequence:
        return [row[name] for row in self]


def question(text, humans, kind="none of the above", **more):
    return {"question": text, "answers": humans, "question_type": kind, "multiple_choice_answer": "", **more}


def test_vocabulary_counts_normal_forms_in_order_of_appearance():
    answers = ["t-shirt", "Two", "no", "t shirt", "2", "rare", "no", "2."]
    assert build_vocabulary(answers, 2) == ["t shirt", "2", "no"]
    assert build_vocabulary(answers, 3) == ["2"]
    assert build_vocabulary(answers, 1) == ["t shirt", "2", "no", "rare"]
    assert build_vocabulary(answers, 1, 2) == ["t shirt", "2"]  # "no" comes as often, and later
    assert build_vocabulary(answers, 3, 2) == ["2"] and build_vocabulary(answers, 1, 9) == build_vocabulary(answers, 1)


def test_soft_scores():
    vocabulary = AnswerVocabulary(["yes", "no", "t shirt"])
    assert vocabulary.soft_scores(["yes"] * 7 + ["no"] * 2 + ["other"]) == {0: 1.0, 1: 0.6}
    assert vocabulary.soft_scores(["yes"] * 3 + ["no"] * 4 + ["t-shirt"] * 3) == {0: 0.9, 1: 1.0}  # raw, as published
    assert vocabulary.soft_scores(["t-shirt"] * 2 + ["t shirt"]) == {2: 0.3}
    assert AnswerVocabulary(["t shirt"], normalize=True).soft_scores(["t-shirt"] * 2 + ["t shirt"]) == {0: 0.9}
    assert vocabulary.soft_scores(["other"]) == {}


def test_coverage_compares_the_two_ways_of_matching():
    rows = [
        question("a", ["yes"] * 10),
        question("b", ["t-shirt"] * 6 + ["t shirt"] * 4),  # raw 4 are enough for a target of 1, normalised 10
        question("c", ["t-shirt"] * 9 + ["t shirt"]),  # 0.3 raw, 1 normalised
        question("d", ["Two"] * 10),  # nothing raw
        question("e", ["blue"] * 10),
        question("f", []),  # hidden answers do not count
    ]
    assert coverage(Table(rows), ["yes", "t shirt", "2"]) == Coverage(
        questions=5, majority=4, raw=3, normalized=4, differing=2
    )
    raw, normalized = (AnswerVocabulary(["yes", "t shirt", "2"], normalize=way) for way in (False, True))
    assert [len(way.answerable(Table(rows))) for way in (raw, normalized)] == [3, 4]
    assert sum(raw.soft_scores(row["answers"]) != normalized.soft_scores(row["answers"]) for row in rows) == 2


def test_answerable_leaves_out_what_no_target_reaches():
    table = Table([question("a", ["yes"] * 10), question("b", ["t-shirt"] * 10), question("c", ["?", "no"])])
    answers = ["yes", "no", "t shirt"]
    assert AnswerVocabulary(answers).answerable(table) == [0, 2]
    assert AnswerVocabulary(answers, normalize=True).answerable(table) == [0, 1, 2]


def test_majority_answer():
    assert majority_answer(["b", "a", "a", "b", "c"]) == "b"
    assert majority_answer([]) == ""
    rows = [question("x", ["a", "b", "b"]), question("x", ["a"])]
    assert majority_answers(Table(rows)) == ["b", "a"]
    rows = [row | {"multiple_choice_answer": given} for row, given in zip(rows, ("a", ""), strict=True)]
    assert majority_answers(Table(rows)) == ["a", "a"]


@pytest.mark.parametrize(
    ("text", "kind", "answer"),
    [
        ("How many dogs? ", "how many", "3"),  # same text, though case and spaces differ
        ("how many cats?", "how many", "2"),  # else the question type
        ("who is it?", "who is", "yes"),  # else over all
    ],
)
def test_blind_guess(text, kind, answer):
    train = [question("how many dogs?", [one] * 10, "how many") for one in ("3", "3", "2")]
    train += [question("how many men?", ["2"] * 10, "how many")] * 2
    train += [question(f"is it {i}?", ["yes"] * 10, "is it") for i in range(4)]
    assert BlindGuess(Table(train))(text, kind) == answer


@pytest.mark.parametrize(
    "text",
    [
        '["yes", "no", "2"]',
        '{"answer": "2", "label": 2}\n{"answer": "yes", "label": 0}\n{"answer": "no", "label": 1}\n',
    ],
)
def test_answers_of_a_file_keep_the_order_of_the_classifier(tmp_path, text):
    (tmp_path / "answers").write_text(text)
    assert read_answers(tmp_path / "answers") == ["yes", "no", "2"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("[]", "empty"),
        ("[1, 2]", "not of texts"),
        ('["a", "a"]', "1 answers stand there twice, such as 'a'"),
        ('{"answer": "a", "label": 1}', "without a gap"),
        ('{"answers": ["a"]}', "label"),
        ("yes, no", "JSON"),
    ],
)
def test_damaged_files_of_answers(tmp_path, text, message):
    (tmp_path / "answers").write_text(text)
    with pytest.raises(DataError, match=message):
        read_answers(tmp_path / "answers")
    with pytest.raises(UsageError, match="is not auto, own or a file"):
        read_answers(tmp_path / "none")


@pytest.mark.parametrize(
    ("humans", "answers", "best"),
    [
        (["t-shirt"] * 10, ["t shirt"], (0.0, 0)),  # all agree: compared literally
        (["t-shirt"] * 10, ["t-shirt"], (100.0, 1)),
        ([" yes\n"] * 10, ["yes"], (100.0, 1)),  # outer spaces and line ends never count
        (["t-shirt"] * 9 + ["shirt"], ["t shirt"], (100.0, 1)),
        (["yes"] * 7 + ["no"] * 3, ["no", "maybe"], (90.0, 1)),
        (["yes"] * 7 + ["no"] * 3, ["no", "yes"], (100.0, 1)),  # the better one, whatever the order
        (["two"] * 2 + ["3"] * 8, ["2"], (60.0, 1)),
        (["a"] * 3 + ["dog"] * 7, [""], (90.0, 1)),  # an article alone normalises to nothing, as the empty answer does
        (["dog"] * 10, [], (0.0, 0)),
    ],
)
def test_ceiling_of_one_question(humans, answers, best):
    assert ceiling(Table([question("x", humans)]), answers) == best


def test_ceiling_is_what_trying_every_answer_gives():
    words = ["yes", "no", "Two", "2", "t-shirt", "t shirt", "the", "a dog", "dog", "", "dont", "don't", "1,000", "1000"]
    draw = random.Random(0)
    rows = [question("x", draw.choices(draw.sample(words, draw.randint(1, 4)), k=10)) for _ in range(500)]
    for size in (1, 4, len(words)):
        answers = draw.sample(words, size)
        scores = [max(answer_score(answer, row["answers"]) for answer in answers) for row in rows]
        percent, covered = ceiling(Table(rows), answers)
        assert (percent, covered) == (pytest.approx(100 * sum(scores) / len(rows), abs=0.005), sum(map(bool, scores)))
        assert 0 < covered <= len(rows)


def test_ceiling_of_the_golden_annotations_is_reached_by_no_prediction_from_the_vocabulary():
    annotations = json.loads((GOLDEN / "annotations.json").read_text())["annotations"]
    rows = [question("x", [item["answer"] for item in row["answers"]]) for row in annotations]
    answers = build_vocabulary([row["multiple_choice_answer"] for row in annotations], 2)
    tried = [max(answer_score(answer, row["answers"]) for answer in answers) for row in rows]
    assert ceiling(Table(rows), answers) == (
        pytest.approx(100 * sum(tried) / len(rows), abs=0.005),
        sum(map(bool, tried)),
    )


def test_questions_without_humans_have_no_ceiling():
    assert ceiling(Table([question("x", []), question("x", ["yes"] * 10)]), ["yes"]) == (100.0, 1)
    with pytest.raises(ValueError, match="no question has human answers"):
        ceiling(Table([question("x", [])]), ["yes"])


def test_answers_in_alphabetical_order_are_named(tmp_path, caplog):
    words = [f"word {row:02}" for row in range(20)]
    for answers, said in ((words, True), (words[::-1], False), (words[:5], False)):
        caplog.clear()
        (tmp_path / "answers.json").write_text(json.dumps(answers))
        assert read_answers(tmp_path / "answers.json") == answers
        assert ("in alphabetical order" in caplog.text) == said
