"""Answer vocabulary, soft targets, blind baseline."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from vlbeit.data.answers import build_vocabulary, majority_answer, majority_answers
from vlbeit.errors import DataError, UsageError
from vlbeit.tasks.vqa.answers import AnswerVocabulary, read_answers
from vlbeit.tasks.vqa.blind import BlindGuess


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


def test_soft_scores():
    vocabulary = AnswerVocabulary(["yes", "no", "t shirt"])
    assert vocabulary.soft_scores(["yes"] * 7 + ["no"] * 2 + ["other"]) == {0: 1.0, 1: 0.6}
    assert vocabulary.soft_scores(["yes"] * 3 + ["no"] * 4 + ["t-shirt"] * 3) == {0: 0.9, 1: 1.0}  # raw, as published
    assert vocabulary.soft_scores(["t-shirt"] * 2 + ["t shirt"]) == {2: 0.3}
    assert AnswerVocabulary(["t shirt"], normalize=True).soft_scores(["t-shirt"] * 2 + ["t shirt"]) == {0: 0.9}
    assert vocabulary.soft_scores(["other"]) == {}


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
