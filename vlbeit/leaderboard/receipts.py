"""Receipts: every time that a submission was sent, where to, and what became of it.

    receipt.json = {"sendings": [{"host", "challenge", "phase", "phase_id", "method", "started", "newest_before",
                                  "number", "status", ...}, ...]}

A sending is written before the first byte goes out, so that one that was killed is found again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlbeit import ledger
from vlbeit.errors import DataError
from vlbeit.leaderboard import clock
from vlbeit.ledger import Submission

SENDING = "sending"  # our own status: nobody knows yet whether the server has it
_TAKEN = ("status", "submitted_at", "completed_at", "execution_time", "participant_team_name", "is_public")
Sending = dict[str, Any]


class Receipt:
    """The sendings of one answer file; every change is on disk when it returns."""

    def __init__(self, submission: Submission) -> None:
        """Raises DataError for a damaged receipt."""
        self.submission = submission
        found = (ledger.read_receipt(submission) or {}).get("sendings", [])
        if not isinstance(found, list) or not all(isinstance(each, dict) and "status" in each for each in found):
            raise DataError(f"{submission.receipt_file} is not as `vlbeit submit upload` writes it: move it away")
        self.sendings: list[Sending] = found

    def last(self, host: str, challenge: int, phase: int) -> Sending | None:
        """The newest sending to a phase."""
        place = (host, challenge, phase)
        to_it = [each for each in self.sendings if (each["host"], each["challenge"], each["phase_id"]) == place]
        return to_it[-1] if to_it else None

    def begin(self, **facts: Any) -> Sending:
        """A new sending, on disk before anything is sent."""
        self.sendings.append({"started": clock.stamp(), "number": None, "status": SENDING, **facts})
        self.save()
        return self.sendings[-1]

    def drop(self, sending: Sending) -> None:
        """Forget a sending that surely never arrived."""
        self.sendings.remove(sending)
        self.save()

    def update(self, sending: Sending, reply: dict[str, Any]) -> None:
        """Take over what the server says of a sending."""
        sending.update({name: reply[name] for name in _TAKEN if reply.get(name) not in (None, "None", "")})
        sending["looked"] = clock.stamp()
        self.save()

    def save(self) -> None:
        """Write all of it."""
        ledger.write_receipt(self.submission, {"sendings": self.sendings})


def find_number(number: int, host: str | None) -> tuple[Receipt, Sending] | None:
    """The receipt that tells of a submission's number, among those of the runs here; None where none does."""
    for receipt in here():
        for sending in receipt.sendings:
            if sending["number"] == number and host in (None, sending["host"]):
                return receipt, sending
    return None


def here() -> Iterator[Receipt]:
    """The receipts of the runs in `runs/` and of answer files in this folder; those that were sent."""
    for folder in (Path(), *sorted(Path("runs").glob("*"))):
        yield from (receipt for each in ledger.submissions_of(folder) if (receipt := Receipt(each)).sendings)
