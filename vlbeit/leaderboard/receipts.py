"""Receipts: every time that a submission was sent, where to, and what became of it.

    receipt.json = {"sendings": [{"host", "challenge", "phase", "phase_id", "method", "started", "newest_before",
                                  "number", "status", ...}, ...]}

A sending is written before the first byte goes out, so that one that was killed is found again. Processes that send or
wait for the same file at once each change their own sendings alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from filelock import FileLock

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
        self.sendings: list[Sending] = self._read()

    def _read(self) -> list[Sending]:
        found = (ledger.read_receipt(self.submission) or {}).get("sendings", [])
        if not isinstance(found, list) or not all(isinstance(each, dict) and "status" in each for each in found):
            raise DataError(f"{self.submission.receipt_file} is not as `vlbeit submit upload` writes it: move it away")
        return found

    def last(self, host: str, challenge: int, phase: int) -> Sending | None:
        """The newest sending to a phase."""
        place = (host, challenge, phase)
        to_it = [each for each in self.sendings if (each["host"], each["challenge"], each["phase_id"]) == place]
        return to_it[-1] if to_it else None

    def begin(self, **facts: Any) -> Sending:
        """A new sending, on disk before anything is sent."""
        started = datetime.now(UTC).isoformat(timespec="microseconds")
        sending: Sending = {"started": started, "number": None, "status": SENDING, **facts}
        self.save(sending)
        return sending

    def drop(self, sending: Sending) -> None:
        """Forget a sending that surely never arrived."""
        self._change(sending, [])

    def update(self, sending: Sending, reply: dict[str, Any]) -> None:
        """Take over what the server says of a sending."""
        sending.update({name: reply[name] for name in _TAKEN if reply.get(name) not in (None, "None", "")})
        sending["looked"] = clock.stamp()
        self.save(sending)

    def save(self, sending: Sending) -> None:
        """Write a sending, new or changed."""
        self._change(sending, [sending])

    def _change(self, sending: Sending, by: list[Sending]) -> None:
        """Put `by` in a sending's place among those that are on disk now: other processes write theirs too."""
        folder = self.submission.folder
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".receipt.lock"):
            others = [each for each in self._read() if _identity(each) != _identity(sending)]
            self.sendings = sorted([*others, *by], key=lambda each: each["started"])
            ledger.write_receipt(self.submission, {"sendings": self.sendings})


def _identity(sending: Sending) -> tuple[Any, ...]:
    return sending["host"], sending["phase_id"], sending["started"]


def find_number(number: int, host: str | None) -> tuple[Receipt, Sending] | None:
    """The receipt that tells of a submission's number, among those of the runs here; None where none does."""
    for receipt in here():
        for sending in receipt.sendings:
            if sending["number"] == number and host in (None, sending["host"]):
                return receipt, sending
    return None


def here() -> Iterator[Receipt]:
    """The receipts of all submissions that the ledger finds from this folder, those that were sent; a damaged one is
    left out, with a line on stderr."""
    for submission in ledger.nearby():
        try:
            receipt = Receipt(submission)
        except DataError as error:
            print(f"note: left out: {error}", file=sys.stderr)
            continue
        if receipt.sendings:
            yield receipt
