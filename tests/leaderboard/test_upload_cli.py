"""`vlbeit submit upload`, `status` and `phases` against a server, from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vlbeit import ledger
from vlbeit.cli import main
from vlbeit.leaderboard import checking

SEND = ("--phase", "test-dev", "--method", "VLMo-B 480")


def receipt(run: Path) -> list[dict[str, Any]]:
    (path,) = run.glob("submissions/*/receipt.json")
    return json.loads(path.read_text())["sendings"]


def test_a_run_is_sent_waited_for_and_ranked(server: Any, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "upload", str(run), *SEND, "--wait"]) == 0
    out = capsys.readouterr().out
    assert "Test-Dev of challenge 830: 10 left today, 100 in all" in out
    rows = [line.split() for line in out.splitlines()]
    assert [">", "VLMo-B", "480", "test-dev", "66.67", "100.00", "0.00", "50.00"] in rows
    assert ["VLMo", "test-standard", "81.30", "94.68", "67.26", "72.87"] in rows
    (sent,) = receipt(run)
    assert sent["status"] == "finished" and sent["number"] == 9000 and sent["phase"] == "Test-Dev"
    assert sent["scores"] == {"test-dev": {"overall": 66.67, "yes/no": 100.0, "number": 0.0, "other": 50.0}}
    (result,) = run.glob("submissions/*/evalai-9000/result.json")
    assert json.loads(result.read_bytes())[0]["test-dev"]["overall"] == 66.67
    assert server.submissions[9000]["_fields"]["method_name"] == "VLMo-B 480"
    assert out.splitlines()[-1].startswith("next: ")


def test_status_shows_a_score_without_the_server(server: Any, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "upload", str(run), *SEND, "--wait"]) == 0
    server.faults.append(_any_fault(server, times=100))
    asked = len(server.requests)
    for what in (str(run), "9000", str(next(run.glob("submissions/*/answers.json")))):
        capsys.readouterr()
        assert main(["submit", "status", what]) == 0
        assert "66.67" in capsys.readouterr().out
    assert len(server.requests) == asked


def test_status_goes_on_with_what_was_only_sent(server: Any, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "upload", str(run), *SEND]) == 0
    assert f"next: vlbeit submit status {run} --wait" in capsys.readouterr().out
    assert main(["submit", "status"]) == 0
    assert "running" in capsys.readouterr().out and receipt(run)[0]["status"] == "running"
    assert main(["submit", "status", "9000", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["submissions"][0]["scores"]["test-dev"]["overall"] == 66.67
    assert found["published"][0] == {
        "method": "VLMo", "split": "test-standard", "overall": 81.3, "yes/no": 94.68, "number": 67.26, "other": 72.87,
    }  # fmt: skip


def test_a_number_of_elsewhere_is_looked_up(server: Any, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "upload", str(run), *SEND]) == 0
    for path in run.glob("submissions/*/receipt.json"):
        path.unlink()
    assert main(["submit", "status", "9000", "--wait"]) == 0
    assert "66.67" in capsys.readouterr().out and not list(run.glob("submissions/*/evalai*"))


def test_a_file_of_another_program_has_its_receipt_beside_it(
    server: Any, answers: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["submit", "upload", "answers.json", "--phase", "test_dev", "--wait"]
    assert main(words) == 1 and not server.submissions
    said = "answers.json answers 6 questions, and every phase wants the 447793 of test2015"
    assert said in capsys.readouterr().err
    monkeypatch.setattr(checking, "QUESTIONS", 6)
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "the question file is not known" in out and "> answers" in out
    assert receipt(answers.parent)[0]["method"] == "answers"
    assert main(["submit", "status", "answers.json"]) == 0


def test_another_phase_of_the_same_file_shows_both_splits(
    server: Any, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "upload", str(run), *SEND, "--wait"]) == 0
    assert main(["submit", "upload", str(run), "--phase", "test-standard", "--wait", "--private"]) == 0
    assert [each["phase"] for each in receipt(run)] == ["Test-Dev", "Test-Standard Phase"]
    assert set(receipt(run)[1]["scores"]) == {"test-dev", "test-standard"}
    assert server.submissions[9001]["_fields"]["is_public"] == "false"
    assert "is_public" not in server.submissions[9000]["_fields"]


def test_the_same_file_is_not_sent_twice_by_mistake(
    server: Any, run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "upload", str(run), *SEND]) == 0
    copy = here / "runs" / "copy.json"
    copy.write_bytes(next(run.glob("submissions/*/answers.json")).read_bytes())
    for what in (str(run), str(copy)):
        assert main(["submit", "upload", what, *SEND]) == 2
        error = capsys.readouterr().err
        assert "as submission 9000" in error and "--again" in error and error.count("\n") == 1
    assert len(server.submissions) == 1
    assert main(["submit", "upload", str(run), *SEND, "--again"]) == 0
    assert len(server.submissions) == 2 and [each["number"] for each in receipt(run)] == [9000, 9001]


def test_a_failed_submission_says_why_and_may_be_sent_again(
    server: Any, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.question_ids.add(999)
    assert main(["submit", "upload", str(run), *SEND, "--wait"]) == 1
    captured = capsys.readouterr()
    assert "ValueError: you need to upload predictions on ALL test questions" in captured.out
    assert captured.err.startswith("error: submission 9000 failed: ValueError: you need") and "check" in captured.err
    (stderr,) = run.glob("submissions/*/evalai-9000/stderr.txt")
    assert "ALL test questions" in stderr.read_text()
    assert receipt(run)[0]["status"] == "failed"
    server.question_ids.discard(999)
    assert main(["submit", "upload", str(run), *SEND, "--wait"]) == 0
    assert "submission 9000 of the same file failed: sending it again" in capsys.readouterr().out
    assert receipt(run)[1]["status"] == "finished"


def test_phases(server: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["submit", "phases"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[1].split()[:3] == ["test-dev", "Test-Dev", "4101"] and rows[1].endswith("10 left today, 100 in all")
    assert rows[2].startswith("test-standard") and rows[3].split()[:4] == [
        "test-challenge",
        "Test-Challenge",
        "4103",
        "no",
    ]
    assert main(["submit", "phases", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[1]["limits"]["in_all"] == 5
    monkeypatch.delenv("EVALAI_TOKEN")
    assert main(["submit", "phases"]) == 0
    assert "vlbeit submit token" in capsys.readouterr().out
    assert main(["submit", "phases", "--challenge", "514"]) == 2
    assert "--challenge" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--phase", "test-reserve"),
            "no such phase: did you mean test-dev? there is test-challenge, test-dev, test-standard",
        ),
        (("--phase", "test"), "several fit: test-dev, test-standard, test-challenge"),
        (("--phase", "test-dev", "--timeout", "soon"), "--timeout soon: give a length of time such as"),
        (("--phase", "test-dev", "--host", "eval.ai"), "--host is not the address of a server"),
        (("--phase", "test-dev", "--host", "http://eval.ai"), "use https://"),
    ],
)
def test_wrong_words_are_one_line(
    server: Any, run: Path, words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "upload", str(run), *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not server.submissions


def test_a_bad_file_costs_no_submission(server: Any, run: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = here / "bad.json"
    bad.write_text(json.dumps([{"question_id": 101, "answer": "yes"}, {"question_id": 101, "answer": 2}]))
    questions = next(here.glob("v2_*questions.json"))
    assert main(["submit", "upload", str(bad), *SEND]) == 1
    assert "whose answer is no text: 1 (101), and 1 more errors" in capsys.readouterr().err
    (here / "few.json").write_text(json.dumps([{"question_id": 101, "answer": "yes"}]))
    assert main(["submit", "upload", "few.json", *SEND, "--questions", str(questions)]) == 1
    assert "questions without an answer: 5 (102, 103, 104, ...)" in capsys.readouterr().err
    assert main(["submit", "upload", "gone.json", *SEND]) == 2
    part = here / "v2_OpenEnded_mscoco_test-dev2015_questions.json"
    part.write_text(json.dumps({"data_subtype": "test-dev2015", "questions": [{"question_id": 101}]}))
    assert main(["submit", "upload", "few.json", *SEND, "--questions", str(part)]) == 1
    assert "every phase, test-dev too, wants all questions of test2015" in capsys.readouterr().err
    (next(run.glob("submissions/*/answers.json"))).write_text("[]")
    assert main(["submit", "upload", str(run), *SEND]) == 1
    assert not server.requests and not server.submissions


@pytest.mark.parametrize("is_there", [True, False])
def test_answers_to_another_split_are_not_sent_to_the_challenge(
    server: Any, run: Path, here: Path, capsys: pytest.CaptureFixture[str], is_there: bool
) -> None:
    (file,) = here.glob("v2_*questions.json")
    file.write_text(file.read_text().replace("test2015", "val2014"))
    submission = ledger.find(run)
    submission.write(questions=submission.facts["questions"] | {"subset": "val2014", "of": 6})
    if not is_there:
        file.unlink()
    assert main(["submit", "upload", str(run), *SEND]) == 1 and not server.submissions
    said = "answers the questions of val2014" if is_there else "answers 6 questions, and every phase wants the 447793"
    assert said in capsys.readouterr().err
    server.challenge = 7
    assert main(["submit", "upload", str(run), *SEND, "--challenge", "7"]) == 0


def test_our_own_answers_to_all_of_it_are_sent_without_the_question_file(server: Any, run: Path, here: Path) -> None:
    submission = ledger.find(run)
    submission.write(questions=submission.facts["questions"] | {"of": 6})
    next(here.glob("v2_*questions.json")).unlink()
    assert main(["submit", "upload", str(run), *SEND]) == 0


def test_a_run_is_asked_for_all_that_it_sent(server: Any, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "upload", str(run), *SEND]) == 0
    newer = ledger.open_submission(run, {"weights": "newer"})
    newer.answers_file.parent.mkdir(parents=True)
    newer.answers_file.write_text("[]")
    newer.write(sha256="x")
    capsys.readouterr()
    for what in (str(run), run.name):
        assert main(["submit", "status", what]) == 0
        assert "9000" in capsys.readouterr().out


def sent(server: Any, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two files that were sent, the run's own first."""
    assert main(["submit", "upload", str(run), *SEND]) == 0
    (own,) = run.glob("submissions/*/answers.json")
    other = run.parent.parent / "other.json"
    other.write_text(own.read_text().replace("cat", "cow"))
    questions = next(run.parent.parent.glob("v2_*questions.json"))
    assert main(["submit", "upload", str(other), *SEND, "--questions", str(questions)]) == 0
    capsys.readouterr()


def test_a_submission_that_is_gone_does_not_hide_the_others(
    server: Any, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sent(server, run, capsys)
    del server.submissions[9000]
    assert main(["submit", "status", "--wait"]) == 2
    captured = capsys.readouterr()
    assert "note: submission 9000: " in captured.out and "Submission 9000 does not exist" in captured.err
    assert ["9001", "Test-Dev", "finished"] in [line.split()[:3] for line in captured.out.splitlines()]
    assert main(["submit", "status", "--json"]) == 2
    first, second = json.loads(capsys.readouterr().out)["submissions"]
    assert "does not exist" in first["error"] and "error" not in second


def test_a_server_that_is_silent_is_not_asked_for_each(
    server: Any, run: Path, waits: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    sent(server, run, capsys)
    server.faults.append(_any_fault(server, status=503, times=1000))
    asked = len(server.requests)
    assert main(["submit", "status"]) == 1
    assert len(server.requests) - asked == 6 and capsys.readouterr().out.count("note: submission 900") == 2


def test_the_newest_is_the_one_that_was_sent_last(server: Any, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sent(server, run, capsys)
    for number in (9000, 9001):
        server.submissions[number].update(status="failed", _steps=[])
        assert main(["submit", "status"]) == 1
        captured = capsys.readouterr()
        assert f"submission {number} failed" in captured.err
        rows = [line.split()[0] for line in captured.out.splitlines() if line.startswith("900")]
        assert rows == ["9000", "9001"]
    questions = next(run.parent.parent.glob("v2_*questions.json"))
    for what in (str(run), "other.json"):
        assert main(["submit", "upload", what, *SEND, "--questions", str(questions), "--wait"]) == 0
    assert main(["submit", "status"]) == 0  # what failed was sent again


def test_phases_are_listed_without_a_team(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    server.is_participant = False
    assert main(["submit", "phases"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[1].split() == ["test-dev", "Test-Dev", "4101", "yes", "10", "refused"]
    assert "your team: http" in out and "make a team and join the challenge" in out
    assert main(["submit", "phases", "--json"]) == 0
    assert "participated" in json.loads(capsys.readouterr().out)[0]["limits"]["message"]


def _any_fault(server: Any, **more: Any) -> Any:
    import sys

    return sys.modules["evalai_server"].Fault(".", **more)
