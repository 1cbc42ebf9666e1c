"""`vlbeit submit check`: every fault for which a server rejects a file, every slip, their ids and the exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlbeit.cli import main

IDS = list(range(1001, 1013))
TEXTS = ("yes", "no", "2", "red", "t shirt", "blue", "1", "dog", "left", "playing tennis", "yes", "no")
GOOD = [{"question_id": key, "answer": text} for key, text in zip(IDS, TEXTS, strict=True)]


def questions(folder: Path, subset: str, ids: list[int]) -> Path:
    path = folder / f"v2_OpenEnded_mscoco_{subset}_questions.json"
    rows = [{"question_id": key, "image_id": 1, "question": "what?"} for key in ids]
    path.write_text(json.dumps({"data_subtype": subset, "questions": rows}))
    return path


def file_of(subset: str) -> Path:
    return Path.cwd() / f"v2_OpenEnded_mscoco_{subset}_questions.json"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the questions of test2015, of test-dev2015, which are some of them, and of val2014."""
    monkeypatch.chdir(tmp_path)
    questions(tmp_path, "test2015", IDS)
    questions(tmp_path, "test-dev2015", IDS[:5])
    questions(tmp_path, "val2014", [1, 2, 3])
    (tmp_path / "v2_OpenEnded_mscoco_broken_questions.json").write_text("{")
    return tmp_path


@pytest.fixture
def check(place: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """The report on entries, or on a file's bytes, and the findings by code; the exit code is compared."""

    def run(entries: Any, code: int, *options: str, asked: str = "test2015") -> dict[str, Any]:
        content = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
        Path("answers.json").write_bytes(content)
        file = f"v2_OpenEnded_mscoco_{asked}_questions.json"
        assert main(["submit", "check", "answers.json", "--questions", file, "--json", *options]) == code
        report = json.loads(capsys.readouterr().out)
        return report | {each["code"]: each for each in report["findings"]}

    return run


def changed(place: int, **fields: Any) -> list[dict[str, Any]]:
    return [{**entry, **(fields if at == place else {})} for at, entry in enumerate(GOOD)]


def test_a_good_file_fits_the_phases(check: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    report = check(GOOD, 0, "--strict")
    assert report["accepted"] and report["findings"] == [] and report["answers"] == 12
    assert report["phases"] == ["test-dev", "test-standard", "test-challenge"]
    assert report["questions"]["subset"] == "test2015" and len(report["sha256"]) == 64
    assert main(["submit", "check", "answers.json", "--questions", report["questions"]["file"]]) == 0
    printed = capsys.readouterr().out
    assert "no errors, 0 warnings; it fits the phases test-dev, test-standard, test-challenge" in printed
    assert "next: vlbeit submit upload answers.json --phase test-dev --method NAME\n" in printed


@pytest.mark.parametrize(
    ("entries", "code", "count", "ids"),
    [
        (GOOD[:9], "missing", 3, [1010, 1011, 1012]),
        ([], "missing", 12, IDS[:10]),
        ([*GOOD, {"question_id": 5, "answer": "yes"}], "foreign", 1, [5]),
        ([*GOOD, GOOD[3]], "repeated", 1, [1004]),
        (changed(2, answer=2), "answer_not_text", 1, [1003]),
        (changed(2, answer=None), "answer_not_text", 1, [1003]),
        (changed(2, answer=["2"]), "answer_not_text", 1, [1003]),
        (changed(2, question_id="1003"), "id_not_integer", 1, ["1003"]),
        (changed(2, question_id=1003.0), "id_not_integer", 1, [1003.0]),
        (changed(2, question_id=True), "id_not_integer", 1, [True]),
        (changed(2, question_id=None), "id_not_integer", 1, ["entry 2"]),
        ([*GOOD, {"question_id": 1001}], "no_fields", 1, ["entry 12"]),
        ([*GOOD, {"answer": "yes"}], "no_fields", 1, ["entry 12"]),
        ([*GOOD, [1001, "yes"], "yes"], "no_fields", 2, ["entry 12", "entry 13"]),
        ({str(key): "yes" for key in IDS}, "not_list", 1, []),
        ({"answers": GOOD}, "not_list", 1, []),
        (None, "not_list", 1, []),
        ("yes", "not_list", 1, []),
        (b'[{"question_id": 1001, "answer": "yes"}, {"ques', "not_json", 1, []),
        (b"", "not_json", 1, []),
        (b'{"question_id": 1001, "answer": "yes"}\n{"question_id": 1002, "answer": "no"}\n', "not_json", 1, []),
        (b"[" * 100_000, "not_json", 1, []),
        (b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), "not_json", 1, []),
        (json.dumps(changed(0, answer="caf\xe9"), ensure_ascii=False).encode("latin-1"), "not_utf8", 1, []),
        (json.dumps(GOOD).encode("utf-16"), "not_utf8", 1, []),
    ],
)
def test_what_a_server_rejects(check: Callable[..., Any], entries: Any, code: str, count: int, ids: list[Any]) -> None:
    report = check(entries, 1)
    assert not report["accepted"] and report["phases"] == []
    assert (report[code]["severity"], report[code]["count"], report[code]["ids"]) == ("error", count, ids)
    assert report["next"].startswith("mend the file, then vlbeit submit check answers.json --questions ")


def test_an_id_of_another_kind_is_missing_too(check: Callable[..., Any]) -> None:
    """The server compares sets: "1003" is not 1003. An answer that is no text is there all the same."""
    assert check(changed(2, question_id="1003"), 1)["missing"]["ids"] == [1003]
    assert "missing" not in check(changed(2, answer=2), 1)


@pytest.mark.parametrize(
    ("entries", "code", "count", "ids"),
    [
        (changed(0, answer="Yes"), "upper_case", 1, [1001]),
        (changed(0, answer=""), "empty", 1, [1001]),
        (changed(0, answer="  "), "empty", 1, [1001]),
        (changed(7, answer="a dog"), "not_normal", 1, [1008]),
        (changed(7, answer="two"), "not_normal", 1, [1008]),
        (changed(4, answer="t-shirt"), "not_normal", 1, [1005]),
        (changed(4, answer=" red"), "not_normal", 1, [1005]),
        (changed(9, answer="he is playing tennis on grass"), "long", 1, [1010]),
        (changed(9, confidence=0.5), "other_fields", 1, [1010]),
        (changed(9, answer="\ud800"), "not_unicode", 1, [1010]),
        ([{**entry, "answer": "yes"} for entry in GOOD[:7]] + GOOD[7:], "one_answer", 8, [*IDS[:7], 1011]),
    ],
)
def test_what_looks_like_a_slip(check: Callable[..., Any], entries: Any, code: str, count: int, ids: list[Any]) -> None:
    report = check(entries, 0)
    assert report["accepted"] and [each["code"] for each in report["findings"]] == [code]
    assert (report[code]["severity"], report[code]["count"], report[code]["ids"]) == ("warning", count, ids)
    check(entries, 1, "--strict")


def test_a_capital_alone_is_not_said_twice(check: Callable[..., Any]) -> None:
    assert set(check(changed(7, answer="A Dog"), 0)) >= {"upper_case", "not_normal"}


def test_the_test_dev_questions_alone_are_not_enough(
    check: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    report = check(GOOD[:5], 1)
    assert report["missing"]["count"] == 7 and report["wrong_split"]["severity"] == "error"
    assert "test-dev2015_questions.json, a part of those that are asked" in report["wrong_split"]["message"]
    assert report["next"] == "vlbeit submit RUN --split test2015"
    report = check(GOOD[:5], 1, asked="test-dev2015")
    assert not report["accepted"] and report["phases"] == [] and report["wrong_split"]["severity"] == "error"
    assert "wants all questions of test2015" in report["wrong_split"]["message"]
    assert report["next"] == "vlbeit submit RUN --split test2015"
    file = "v2_OpenEnded_mscoco_test-dev2015_questions.json"
    assert main(["submit", "check", "answers.json", "--questions", file]) == 1
    assert "a server rejects this file: 1 error, 0 warnings\n" in capsys.readouterr().out


def test_the_questions_of_another_file_are_found_beside_it(check: Callable[..., Any]) -> None:
    entries = [{"question_id": key, "answer": "yes"} for key in (1, 2, 3)]
    report = check(entries, 1)
    assert [each["code"] for each in report["findings"]] == ["wrong_split"], "nothing that would leave no answer"
    assert report["wrong_split"]["message"].endswith(f"to the questions of {file_of('val2014')}")
    assert "check them with --questions" in report["wrong_split"]["remedy"]
    report = check(GOOD, 1, asked="test-dev2015")
    assert report["wrong_split"]["message"].endswith("v2_OpenEnded_mscoco_test2015_questions.json")
    assert "wrong_split" not in check(GOOD[:4], 1), "the ids of no file"


def test_a_part_of_another_file_is_found_too(check: Callable[..., Any]) -> None:
    report = check([{"question_id": key, "answer": text} for key, text in ((1, "Yes"), (3, "no"))], 1)
    assert [each["code"] for each in report["findings"]] == ["wrong_split", "upper_case"]
    assert report["wrong_split"]["message"].endswith(f"to 2 of the 3 questions of {file_of('val2014')}")
    report = check(GOOD[:4], 1, asked="val2014")
    assert report["wrong_split"]["message"].endswith(f"4 of the 5 questions of {file_of('test-dev2015')}")
    assert "foreign" in check([*GOOD, {"question_id": 1, "answer": "no"}], 1), "not of val alone"


def test_val_is_for_scoring(check: Callable[..., Any]) -> None:
    report = check([{"question_id": key, "answer": "yes"} for key in (1, 2, 3)], 0, "--strict", asked="val2014")
    assert report["phases"] == [] and report["next"].startswith("vlbeit evaluate --predictions answers.json")
    assert "--annotations FILE --questions v2_OpenEnded_mscoco_val2014_questions.json" in report["next"]
    Path("v2_mscoco_val2014_annotations.json").touch()
    report = check([{"question_id": key, "answer": "yes"} for key in (1, 2, 3)], 0, asked="val2014")
    assert "--annotations v2_mscoco_val2014_annotations.json" in report["next"]


def test_printed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = "v2_OpenEnded_mscoco_test2015_questions.json"
    Path("answers.json").write_text(json.dumps([*changed(0, answer="Yes")[:8], {"question_id": 5, "answer": "a"}]))
    assert main(["submit", "check", "answers.json", "--questions", file]) == 1
    printed = capsys.readouterr().out
    assert "answers.json: 9 answers; " in printed and "12 questions test2015" in printed
    for part in ("4 (1009, 1010, 1011, ...)", "1 (5)", "'Yes'", "a server rejects this file: 2 errors, 2 warnings"):
        assert part in printed, part
    assert main(["submit", "check", "none.json", "--questions", file]) == 1
    assert main(["submit", "check", "answers.json", "--questions", "none.json"]) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert main(["submit", "check", "answers.json"]) == 2
    assert "--questions" in capsys.readouterr().err


def test_nothing_heavy_is_loaded(place: Path) -> None:
    Path("answers.json").write_text(json.dumps(GOOD))
    words = ["submit", "check", "answers.json", "--questions", "v2_OpenEnded_mscoco_test2015_questions.json"]
    code = f"import sys\nfrom vlbeit.cli import main\nassert main({words!r}) == 0\nassert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
