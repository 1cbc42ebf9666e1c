"""What a row of any table means: columns, answers, pictures."""

from __future__ import annotations

import csv

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlbeit.data.row_files import open_table
from vlbeit.data.vqa_rows import VQARows, answer_type, answers_of, own_answers, parse_columns, question_type, text
from vlbeit.errors import UsageError

OPTION = "--columns {}"


@pytest.fixture
def table(tmp_path, draw):
    """Writes a CSV with pictures a.png and COCO_val2014_000000000042.jpg beside it, and reads it."""
    draw(tmp_path / "a.png")
    draw(tmp_path / "COCO_val2014_000000000042.jpg")

    def make(*lines, columns=(), images=""):
        with open(tmp_path / "my.csv", "w", newline="") as file:
            csv.writer(file).writerows(lines)
        return VQARows([open_table(tmp_path / "my.csv")], parse_columns(columns, OPTION), images, OPTION)

    return make


def test_a_row_becomes_a_question(table, tmp_path):
    [question] = table(("Image", "QUESTION", "answers"), ("a.png", " How many\ndogs? ", "2.0"))
    assert question.record == {
        "question": "How many dogs?", "question_type": "how many", "answer_type": "number", "answers": ["2"] * 10,
        "multiple_choice_answer": "",
    }  # fmt: skip
    assert question.image == str(tmp_path / "a.png") and question.image_name == "a.png"
    assert (question.place, question.id, question.split, question.fault) == ("my.csv, line 2", "", "", "")


def test_further_columns_are_taken_as_they_are(table):
    names = ("image", "question", "answer", "id", "image_id", "question type", "answer-type", "split", "more",
             "multiple_choice_answer")  # fmt: skip
    [question] = table(names, ("a.png", "what?", "a dog|cats", "q7", "3.0", "odd", "odder", "dev", "x", "The Dog"))
    assert (question.id, question.image_id, question.split) == ("q7", "3", "dev")
    assert question.record["question_type"] == "odd" and question.record["answer_type"] == "odder"
    assert question.record["answers"] == ["dog", "cats"] * 5
    assert question.record["multiple_choice_answer"] == "dog"


@pytest.mark.parametrize(
    ("heading", "columns", "message"),
    [
        (
            ("image", "qestion", "answers"), (),
            r"my.csv has no column question or question_text: did you mean 'qestion'\? it has image, qestion, answers; "
            r"name it with --columns question:qestion$",
        ),
        (("what", "question"), (), r"no column image or image_path: it has what, question; name .* image:COLUMN$"),
        (("image", "question"), ["question:Question"], r"no column Question: did you mean 'question'\?"),
        (("image", "question"), ["question:q", "answers:a"], r"no column q, a: .* question:COLUMN,answers:COLUMN$"),
        (
            ("Datei", "Frage", "Antwort"),
            (),
            r"no column image or image_path, question or question_text, answers or answer: it has Datei, Frage, "
            r"Antwort; name them with --columns image:COLUMN,question:COLUMN,answers:COLUMN$",
        ),
        (("Datei", "Frage"), (), r"name them with --columns image:COLUMN,question:COLUMN$"),
        (
            ("image", "question", "anwsers"), (),
            r"no column answers or answer: did you mean 'anwsers'\? .*, or leave answers out: --columns answers:$",
        ),
    ],
)  # fmt: skip
def test_wrong_columns_name_the_nearest_and_those_that_are_there(table, heading, columns, message):
    with pytest.raises(UsageError, match=message):
        table(heading, columns=columns)


def test_columns_by_name(table):
    [question] = table(("p, q", "f", "r"), ("a.png", "what?", "x"), columns=["image:p, q,question:f,answers:"])
    assert question.fault == "" and question.record["answers"] == []
    assert parse_columns(["question:a,answers:b", "image:c:d"], OPTION) == {
        "question": "a", "answers": "b", "image": "c:d",
    }  # fmt: skip
    with pytest.raises(UsageError, match=r"--columns anwser:b is not MEANING:COLUMN; did you mean answers:b\?"):
        parse_columns(["anwser:b"], OPTION)
    with pytest.raises(UsageError, match=r"--columns question is not MEANING:COLUMN"):
        parse_columns(["question"], OPTION)


@pytest.mark.parametrize(
    ("value", "answers"),
    [
        ("red", ["red"]), (" red | light blue| ", ["red", "light blue"]), ('["a b", "c"]', ["a b", "c"]),
        ("['it''s', 'x']", ["its", "x"]),
        (["a", "b"], ["a", "b"]), (None, []), ("", []), ("[]", []), (float("nan"), []),
        (2, ["2"]), (2.0, ["2"]), (2.5, ["2.5"]), ("2.0", ["2"]), ("2.50", ["2.50"]), (True, ["yes"]), (False, ["no"]),
        ([{"answer": "a", "answer_id": 1}, {"answer": "b"}], ["a", "b"]), ({"answer": ["a", "b"]}, ["a", "b"]),
        ('[{"answer": "a"}]', ["a"]), ([1, None, 2.0], ["1", "2"]), ("[unanswerable]", ["[unanswerable]"]),
        ("1,000", ["1,000"]), ("[1, 2]", ["1", "2"]), ("yes, or no", ["yes, or no"]),
    ],
)  # fmt: skip
def test_answers_in_every_form(value, answers):
    assert answers_of(value) == answers


@pytest.mark.parametrize(
    ("value", "message"),
    [("['a' 'b']", "a list without commas"), ({"text": "a"}, "an object without 'answer' but with text")],
)
def test_answers_that_cannot_be_told_apart(value, message):
    with pytest.raises(ValueError, match=f"answers cannot be read: {message}"):
        answers_of(value)


@pytest.mark.parametrize("count", range(1, 14))
def test_there_are_ten_answers_at_least_each_as_often_as_the_others(count):
    answers = own_answers([f"x{number}" for number in range(count)])
    assert len(answers) == count * -(-10 // count) >= 10
    assert {answers.count(answer) for answer in answers} == {-(-10 // count)}


def test_answers_are_in_the_official_form():
    assert own_answers(["The Dog!", "two"]) == ["dog", "2"] * 5
    assert own_answers([]) == []
    with pytest.raises(ValueError, match=r"answers are empty in the official form: 'A' is an article"):
        own_answers(["A", "the"])


@pytest.mark.parametrize(
    ("written", "image", "fault"),
    [
        ("a.png", "a.png", ""), ("./a.png", "a.png", ""), ("{folder}/a.png", "a.png", ""), ("a", "a.png", ""),
        ("file://{folder}/a.png", "a.png", ""), ("..\\{name}\\a.png", "a.png", ""),
        ("42", "COCO_val2014_000000000042.jpg", ""), ("42.0", "COCO_val2014_000000000042.jpg", ""),
        ("000042", "COCO_val2014_000000000042.jpg", ""), ("43", "43", "picture is missing: {folder}/43"),
        ("b.png", "b.png", "picture is missing: {folder}/b.png"), ("", "", "picture is not named"),
        ("https://x.org/a.png", "", "picture is an address: https://x.org/a.png, download it first"),
        ("two  blanks.png", "two  blanks.png", ""), ("lost.png", "lost.png", "picture is missing: {folder}/lost.png"),
        (
            "data:image/png;base64,iVBORw0KGgo", "",
            "picture is written out as text: data:image/png;base6..., give a file, or Parquet with its bytes",
        ),
    ],
)  # fmt: skip
def test_pictures_are_found_by_path_name_or_number(table, tmp_path, written, image, fault):
    names = {"folder": tmp_path, "name": tmp_path.name}
    (tmp_path / "a.png").with_name("two  blanks.png").write_bytes((tmp_path / "a.png").read_bytes())
    (tmp_path / "lost.png").symlink_to(tmp_path / "gone.png")
    [question] = table(("image", "question"), (written.format(**names), "what?"))
    assert question.fault == fault.format(**names)
    assert question.image == (str(tmp_path / image) if image else "")


def test_one_picture_has_one_key_however_it_is_written(table, tmp_path):
    lines = [(name, "what?") for name in ("a.png", str(tmp_path / "a.png"), "./a.png", "42.jpg")]
    keys = [question.image_key for question in table(("image", "question"), *lines)]
    assert len({*keys[:3]}) == 1 and keys[3] != keys[0]


def test_pictures_below_another_folder_and_by_their_ids(table, tmp_path, draw):
    draw(tmp_path / "elsewhere/7.png")
    [question] = table(("image_id", "question"), ("7", "what?"), images=str(tmp_path / "elsewhere"))
    assert question.image.endswith("elsewhere/7.png") and question.image_id == "7" and not question.fault


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (("a.png", " ", "x", "1"), "question is empty"),
        (("a.png", "what?", "?!", "1"), "answers are empty in the official form: '?!'"),
        (("a.png", "what?", "x", ""), "question_id is empty"),
        (("a.png", "what?", "x"), "row cannot be read: 3 cells under 4 columns"),
    ],
)
def test_rows_that_are_no_use_say_why(table, line, fault):
    [question] = table(("image", "question", "answers", "id"), line)
    assert question.fault.startswith(fault)


def test_types():
    questions = ("Is it?", "What's THAT there", "???")
    assert [question_type(q) for q in questions] == ["is it", "what's that", "none of the above"]
    answers = {
        "yes": "yes/no",
        "no": "yes/no",
        "3": "number",
        "2.5": "number",
        "-1": "number",
        "3 dogs": "other",
        "": "",
    }
    assert {answer: answer_type(answer) for answer in answers} == answers
    values = (None, 3, 3.0, 0.5, True, " a\tb\n", float("nan"))
    assert [text(value) for value in values] == ["", "3", "3", "0.5", "yes", "a b", ""]


def test_bytes_are_text(tmp_path, draw):
    draw(tmp_path / "a.png")
    columns = {"image": ["a.png"] * 3, "question": [b"what?", b"what?", b"\xff?"],
               "answers": [[b"dog", b"cat"], [b"\xfe"], [b"x"]], "question_id": [b"q1", b"q2", b"q3"]}  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "my.parquet")
    good, bad, worse = VQARows([open_table(tmp_path / "my.parquet")], {}, "", OPTION)
    assert (good.id, good.record["question"], good.record["answers"]) == ("q1", "what?", ["dog", "cat"] * 5)
    assert bad.fault == r"bytes are not UTF-8: b'\xfe'" and worse.fault == r"bytes are not UTF-8: b'\xff?'"
    assert answers_of(b"dog|cat") == ["dog", "cat"]


def test_lists_without_end_are_named():
    deep: list = ["dog"]
    for _ in range(5000):
        deep = [deep]
    for read in (answers_of, text):
        with pytest.raises(ValueError, match="lists in lists are too deep"):
            read(deep)
    assert answers_of([[["dog"]]]) == ["dog"]


def test_types_that_are_names_of_other_numbers_are_refused(table):
    names = ("image", "question", "answers", "answer_type")
    good, bad = table(names, ("a.png", "what?", "x", "Overall"), ("a.png", "what?", "x", "overall"))
    assert good.fault == "" and good.record["answer_type"] == "Overall"
    assert bad.fault == "answer_type is the name of another number of an evaluation: overall, rename the type"
