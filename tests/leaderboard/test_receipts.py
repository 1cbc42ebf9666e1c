"""Receipts: several processes write into one, several places hold them, one of them may be damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vlbeit import ledger
from vlbeit.cli import main
from vlbeit.leaderboard import receipts
from vlbeit.leaderboard.receipts import Receipt

SEND = ("--phase", "test-dev", "--method", "m")


def begin(receipt: Receipt, phase: int, host: str = "h", **more: Any) -> receipts.Sending:
    facts = {"challenge": 830, "phase": f"phase {phase}", "method": "m", "newest_before": 0}
    return receipt.begin(host=host, phase_id=phase, **(facts | more))


def phases_of(submission: ledger.Submission) -> list[int]:
    return [each["phase_id"] for each in Receipt(submission).sendings]


def test_a_process_that_waits_does_not_lose_what_others_send(answers: Path) -> None:
    submission = ledger.find(answers)
    waiting = Receipt(submission)
    first = begin(waiting, 1)
    other = Receipt(ledger.find(answers))
    second = begin(other, 2)
    second["number"] = 2
    other.save(second)
    waiting.update(first, {"status": "running"})
    found = Receipt(submission).sendings
    assert [(each["phase_id"], each["number"], each["status"]) for each in found] == [
        (1, None, "running"),
        (2, 2, "sending"),
    ]
    begin(other, 1, again=True)
    waiting.drop(first)
    assert phases_of(submission) == [2, 1] and waiting.last("h", 830, 1)["again"]


def test_receipts_are_found_where_the_ledger_finds_submissions(here: Path) -> None:
    for place in ("study/run", "runs/deep/run", "."):
        folder = here / place / "submissions" / f"x{len(place)}"
        folder.mkdir(parents=True)
        submission = ledger.Submission(folder, {"sha256": place})
        submission.write(sha256=place)
        sending = begin(Receipt(submission), 1)
        sending["number"] = len(place)
        Receipt(submission).save(sending)
    assert {receipt.sendings[0]["number"] for receipt in receipts.here()} == {1, len("runs/deep/run")}
    assert receipts.find_number(len("runs/deep/run"), None) is not None


def test_one_damaged_file_does_not_hide_the_rest(
    server: Any, run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "upload", str(run), *SEND]) == 0
    for name, file in (("bad", "submission.json"), ("worse", "receipt.json")):
        folder = here / "runs" / name / "submissions" / "12345678"
        folder.mkdir(parents=True)
        (folder / "submission.json").write_text(json.dumps({"sha256": "x"}))
        (folder / file).write_text("{")
    capsys.readouterr()
    assert main(["submit", "status"]) == 0
    captured = capsys.readouterr()
    assert "9000" in captured.out
    assert "runs/bad/submissions/12345678/submission.json cannot be read" in captured.err
    assert "runs/worse/submissions/12345678/receipt.json cannot be read" in captured.err
    assert main(["submit", "status", "bad"]) == main(["submit", "status", "worse"]) == 1
