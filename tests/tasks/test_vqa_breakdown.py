"""What VQA's evaluation says beside its numbers: types, vocabulary, baselines, other pictures."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from PIL import Image

from vlbeit.bootstrap import mean_interval
from vlbeit.data.records import ListRecords, open_image
from vlbeit.errors import DataError
from vlbeit.tasks.vqa.answering import Answering
from vlbeit.tasks.vqa.answers import best_scores, ceiling
from vlbeit.tasks.vqa.blind import BlankPictures, BlindGuess, ShuffledPictures
from vlbeit.tasks.vqa.breakdown import breakdown, entry, tables
from vlbeit.tasks.vqa.evaluator import VQAEvaluator
from vlbeit.tasks.vqa.rules import Scores


def question(number, answers, kind="other", words="what is", image=0):
    return {
        "id": str(number), "image": f"{image}.png", "question": f"{words} it?", "question_id": number,
        "image_id": image, "question_type": words, "answer_type": kind, "answers": answers,
        "multiple_choice_answer": "",
    }  # fmt: skip


@pytest.fixture
def records():
    return ListRecords(
        [
            question(1, ["yes"] * 10, "yes/no", "is it"),
            question(2, ["yes"] * 7 + ["no"] * 3, "yes/no", "is it"),
            question(3, ["2"] * 10, "number", "how many"),
            question(4, ["red"] * 2 + [f"shade {i}" for i in range(8)]),
            question(5, ["teal"] * 10),
            question(6, []),  # of a test split: counts nowhere
        ]
    )


def evaluated(records, answers, **predictions):
    evaluator = VQAEvaluator(records, Answering(answers), lambda: BlindGuess(records))
    evaluator.load_state_dict({"predictions": {key.removeprefix("q"): text for key, text in predictions.items()}})
    evaluator.compute()
    return evaluator


def test_the_report_of_a_case_small_enough_to_count(records):
    answers = ["yes", "no", "2", "red"]
    evaluator = evaluated(records, answers, q1="yes", q2="no", q3="2", q4="yes", q5="red")
    other = evaluated(records, answers, q1="yes", q2="yes", q3="yes", q4="yes", q5="yes")
    values, shown = evaluator.report({"blank": other})
    found = values["breakdown"]
    scores = [1, 0.9, 1, 0, 0]
    assert {name: (each["questions"], each["accuracy"]) for name, each in found["answer_type"].items()} == {
        "yes/no": (2, 95.0), "number": (1, 100.0), "other": (2, 0.0),
    }  # fmt: skip
    assert list(found["question_type"]) == ["is it", "what is", "how many"]  # the most frequent first
    assert found["answer_type"]["yes/no"]["interval"] == pytest.approx(
        [100 * end for end in mean_interval(scores[:2])], abs=0.01
    )
    assert found["answer_type"]["number"]["interval"] is None  # one question
    vocabulary = found["vocabulary"]
    assert vocabulary["answers"] == 4 and vocabulary["reachable"]["questions"] == 4  # not the teal one
    assert vocabulary["reachable"]["accuracy"] == 72.5  # (1 + 0.9 + 1 + 0) / 4
    assert vocabulary["ceiling"] == 72.0 == ceiling(records, answers).percent  # (1 + 1 + 1 + 0.6 + 0) / 5
    assert {name: each["accuracy"] for name, each in found["baselines"].items()} == {
        "majority": 40.0,  # always "yes"
        "question_only": 72.0,  # the commonest answer to the same words: "red" for the teal one too
        "blank": 40.0,
    }
    assert values["blind"] == 72.0
    assert values["perAnswerType"] == {"yes/no": 95.0, "number": 100.0, "other": 0.0} and values["overall"] == 58.0
    assert "perQuestion" not in values  # the details have it
    (low, high), scored = evaluator.intervals()["overall"], mean_interval(scores)
    assert (low, high) == pytest.approx((100 * scored[0], 100 * scored[1]))
    assert shown == tables(found)


def test_best_scores_are_by_question(records):
    assert list(best_scores(records.column("answers"), ["yes", "no", "2", "red"])) == pytest.approx(
        [1.0, 1.0, 1.0, 0.6, 0.0, None]
    )


def test_no_baseline_without_training_questions(records):
    evaluator = VQAEvaluator(records, Answering(["yes"]), lambda: None)
    evaluator.compute()
    values, _ = evaluator.report({})
    assert values["breakdown"]["baselines"] == {} and values["blind"] is None


def test_tables_are_short():
    many = [f"type {i}" for i in range(30) for _ in range(30 - i)]
    scores = Scores(range(len(many)), [1.0] * len(many), ["other"] * len(many), many)
    found = breakdown(scores, dict.fromkeys(range(len(many)), 1.0), 9, {"majority": [0.0, 1.0]})
    assert len(found["question_type"]) == 30 and list(found["question_type"])[:2] == ["type 0", "type 1"]
    kinds, types, others = tables(found)
    assert [row["question type (10 of 30)"] for row in types] == [f"type {i}" for i in range(10)]
    assert types[0]["questions"] == 30 and kinds[0]["answer type"] == "other"
    assert others[1] == {
        "to compare with": "ceiling: always the best of these answers", "questions": len(many), "accuracy": "100.00",
        "95 %": None,
    }  # fmt: skip
    assert others[2]["95 %"] == "0.00 to 100.00"


def test_no_question_has_no_accuracy():
    assert entry([]) == {"questions": 0, "accuracy": None, "interval": None}


def test_the_guess_is_scored_once_for_the_same_records(records, monkeypatch):
    guess, asked = BlindGuess(records), []
    monkeypatch.setattr(BlindGuess, "__call__", lambda self, text, kind: asked.append(text) or "yes")
    assert guess.scores(records) is guess.scores(records) and len(asked) == 6
    assert guess.scores(ListRecords([records[0]])) == [1.0]


@pytest.fixture
def album(tmp_path):
    """Five pictures, three questions about each, but one about the last."""
    rows = []
    for image in range(5):
        path = tmp_path / f"{image}.png"
        Image.new("RGB", (8, 6), (40 * image, 0, 0)).save(path)
        for _ in range(3 if image < 4 else 1):
            rows.append({**question(len(rows), ["yes"] * 10, image=image), "image": str(path)})
    return ListRecords(rows)


def test_shuffled_pictures(album):
    shuffled = pickle.loads(pickle.dumps(ShuffledPictures(album)))  # as a loader's worker gets it
    rows = [shuffled[row] for row in range(len(shuffled))]
    assert len(rows) == len(album) == 13
    for row, own in zip(rows, album, strict=True):
        assert row["image"] != own["image"] and row["image_id"] != own["image_id"]
        assert {**own, "image": 0, "image_id": 0} == {**row, "image": 0, "image_id": 0}
        assert row["image"].endswith(f"{row['image_id']}.png")
    partner = {own["image_id"]: row["image_id"] for row, own in zip(rows, album, strict=True)}
    assert sorted(partner.values()) == list(range(5))  # a permutation
    assert [row["image_id"] for row in rows] == [partner[own["image_id"]] for own in album]
    for name in ("image", "image_id", "question", "id"):
        assert list(shuffled.column(name)) == [row[name] for row in rows]
    assert [ShuffledPictures(album)[i]["image_id"] for i in range(13)] == [row["image_id"] for row in rows]
    others = {tuple(ShuffledPictures(album, seed).column("image_id")) for seed in range(8)}
    assert len(others) > 3
    with pytest.raises(ValueError, match="1 picture"):
        ShuffledPictures(ListRecords([album[0]]))


def test_blank_pictures(album):
    blank = pickle.loads(pickle.dumps(BlankPictures(album)))
    assert len(blank) == 13
    for row, own in zip((blank[i] for i in range(13)), album, strict=True):
        assert {**own, "image": 0} == {**row, "image": 0}
        assert np.array(open_image(row["image"])).min() == np.array(open_image(row["image"])).max() == 128
    assert list(blank.column("question")) == album.column("question") and len(blank.column("image")) == 13
    assert np.array(open_image(blank.column("image")[0])).mean() == 128


def test_the_blind_guess_knows_nothing_of_hidden_answers():
    hidden = [question(number, [], "", "is it") for number in range(5)]
    guess = BlindGuess(ListRecords([*hidden, question(9, ["red"] * 10)]))
    assert guess("is it it?", "is it") == guess.overall == "red"
    with pytest.raises(DataError, match="have no human answers"):
        BlindGuess(ListRecords(hidden))
