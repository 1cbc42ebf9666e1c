"""Waiting for hours, coming back, and what a submission that is over has to show."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vlbeit.cli import main
from vlbeit.errors import DataError, Interrupted, UsageError
from vlbeit.leaderboard import tracking
from vlbeit.leaderboard.client import Client
from vlbeit.leaderboard.published import read_scores, search_scores

SCORES = {"overall": 70.1, "yes/no": 88.0, "number": 50.5, "other": 60.2}


def stuck(server: Any, looks: int = 100_000) -> int:
    server.steps = ("submitted",) * looks
    return server.add(server.phases[0], {"method_name": "m"}, b"[]")["id"]


def test_a_wait_grows_longer_and_is_bounded(server: Any, client: Client, waits: Any, lines: list[str]) -> None:
    number = stuck(server)
    with pytest.raises(DataError, match=f"still submitted after 12 h 0 min: .*`vlbeit submit status {number}`"):
        tracking.wait(client, number, 12 * 3600, lambda facts: None)
    assert waits.paused[:3] == [10, 15, 22.5] and max(waits.paused) == 300 and waits.time == 12 * 3600
    assert server.count("GET") < 180  # of a minute's 60 requests in twelve hours
    assert sum("left submissions waiting for days" in line for line in lines) == 1
    assert 40 < sum("still submitted after" in line for line in lines) < 50


def test_a_wait_survives_a_server_that_is_down(
    server: Any, client: Client, evalai_server: ModuleType, waits: Any, lines: list[str]
) -> None:
    number = stuck(server, looks=2)
    server.faults.append(evalai_server.Fault("GET", status=503, times=40, skip=1))
    server.faults.append(evalai_server.Fault("GET", after=0, times=20, skip=1))
    seen: list[str] = []
    with pytest.raises(DataError, match="no scores"):  # an empty list of answers fails; that is not the point here
        facts = tracking.wait(client, number, 12 * 3600, lambda facts: seen.append(facts["status"]))
        server.media.clear()
        facts["status"] = "finished"
        tracking.check_outcome(tracking.collect(client, facts, number, "test-dev", None))
    assert seen[0] == "submitted" and seen[-1] == "failed" and any("waiting on" in line for line in lines)


def test_a_wait_waits_as_long_as_the_server_asks(
    server: Any, client: Client, evalai_server: ModuleType, waits: Any
) -> None:
    number = stuck(server, looks=1)
    headers = {"Retry-After": "7200"}
    server.faults.append(evalai_server.Fault("GET", status=429, headers=headers, times=2))
    assert tracking.wait(client, number, 12 * 3600, lambda facts: None)["status"] == "failed"
    assert waits.paused[:2] == [7200, 7200]
    server.add(server.phases[0], {}, b"[]")
    server.faults.append(evalai_server.Fault("GET", status=429, headers=headers, times=2))
    with pytest.raises(DataError, match="unknown after 60 min"):
        tracking.wait(client, number, 3600, lambda facts: None)


def test_a_wait_does_not_survive_a_refusal(server: Any, client: Client) -> None:
    with pytest.raises(UsageError, match="Submission 5 does not exist"):
        tracking.wait(client, 5, 3600, lambda facts: None)
    with pytest.raises(UsageError, match="whose team sent it"):
        tracking.wait(client, 1, 3600, lambda facts: None)


def test_ctrl_c_leaves_the_submission(server: Any, run: Path, waits: Any, capsys: pytest.CaptureFixture[str]) -> None:
    server.steps = ("submitted",) * 50
    waits.break_at = 600.0
    assert main(["submit", "upload", str(run), "--phase", "test-dev", "--wait"]) == 130
    error = capsys.readouterr().err
    assert "stopped waiting" in error and "`vlbeit submit status 9000`" in error
    (receipt,) = run.glob("submissions/*/receipt.json")
    assert json.loads(receipt.read_text())["sendings"][0]["status"] == "submitted"
    waits.break_at = None
    assert main(["submit", "status", str(run), "--wait"]) == 0
    assert "66.67" in capsys.readouterr().out and len(server.submissions) == 1


def test_a_wait_that_ends_early_says_how_to_come_back(
    server: Any, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.steps = ("running",) * 1000
    assert main(["submit", "upload", str(run), "--phase", "test-dev", "--wait", "--timeout", "30m"]) == 1
    error = capsys.readouterr().err
    assert "still running after 30 min" in error and error.count("\n") == 1


def test_ctrl_c_is_our_own_word(client: Client, server: Any, waits: Any) -> None:
    waits.break_at = 1.0
    with pytest.raises(Interrupted, match="stopped waiting"):
        tracking.wait(client, stuck(server), 3600, lambda facts: None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (json.dumps([{"test-dev": SCORES}]), {"test-dev": SCORES}),
        (json.dumps([{"test-dev": SCORES}, {"test-standard": SCORES}]), {"test-dev": SCORES, "test-standard": SCORES}),
        (json.dumps({"test-dev": SCORES, "test-standard": SCORES}), {"test-dev": SCORES, "test-standard": SCORES}),
        (json.dumps(SCORES), {"Test-Dev": SCORES}),
        (str([{"test-dev": SCORES}]), {"test-dev": SCORES}),
        (json.dumps([{"test-dev": {"overall": 70, "perQuestionType": {}}}]), {"test-dev": {"overall": 70.0}}),
        ("", {}),
        ("[]", {}),
        ('""', {}),
        ("3", {}),
        ('[{"test-dev": {"overall": "n/a"}}]', {}),
        ("<html>gone</html>", {}),
    ],
)
def test_result_files(text: str, expected: dict[str, Any]) -> None:
    assert read_scores(text.encode(), "Test-Dev") == expected


def test_a_score_in_the_output_alone_is_found(server: Any, client: Client) -> None:
    output = f"loading\nTraceback: no such table\n{[{'test-dev': SCORES}]}\ndone\n"
    assert search_scores(output.encode(), "x") == {"test-dev": SCORES}
    server.media["/media/1/out.txt"] = output.encode()
    server.media["/media/1/result.json"] = b'""'
    facts = {"status": "finished", "stdout_file": "/media/1/out.txt", "submission_result_file": "/media/1/result.json"}
    outcome = tracking.collect(client, facts, 9000, "Test-Dev", None)
    assert outcome.scores == {"test-dev": SCORES}
    tracking.check_outcome(outcome)


def test_files_that_are_gone_are_said(server: Any, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "upload", str(run), "--phase", "test-dev"]) == 0
    server.evaluate(server.submissions[9000])
    server.media.clear()
    assert main(["submit", "status", str(run)]) == 1
    captured = capsys.readouterr()
    assert "note: result: the file store: HTTP 404" in captured.out
    assert "submission 9000 is finished and has no scores: result: the file store" in captured.err


@pytest.mark.parametrize(("status", "code"), [("cancelled", 1), ("archived", 1), ("partially_evaluated", 0)])
def test_other_ends(server: Any, run: Path, status: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "upload", str(run), "--phase", "test-dev"]) == 0
    server.submissions[9000].update(status=status, _steps=[status] * 9)
    assert main(["submit", "status", str(run)]) == code
    assert status in capsys.readouterr().out


def test_a_failed_one_without_a_reason(server: Any, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "upload", str(run), "--phase", "test-dev"]) == 0
    server.submissions[9000].update(status="failed", _steps=[])
    assert main(["submit", "status", str(run)]) == 1
    assert "submission 9000 failed: the server says no reason" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("runs/none", "no answer file, no run and no id of a submission"),
        (None, "no receipts in runs/*/submissions"),
        ("answers.json", "answers.json was not sent: `vlbeit submit upload"),
        ("12345", "Submission 12345 does not exist"),
    ],
)
def test_nothing_to_tell_of(
    server: Any, answers: Path, what: str | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "status", *([what] if what else [])]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.count("\n") == 1 and not captured.out
