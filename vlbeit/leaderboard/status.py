"""`vlbeit submit status`: the sendings that a word means, each asked for, its files fetched, its receipt brought up.

What is over and has its scores in the receipt is not asked for again: it can be shown when the server is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from vlbeit import ledger
from vlbeit.errors import UsageError
from vlbeit.leaderboard import evalai, receipts, tracking
from vlbeit.leaderboard.client import Client
from vlbeit.leaderboard.evalai import OVER
from vlbeit.leaderboard.published import Row
from vlbeit.leaderboard.receipts import Receipt, Sending
from vlbeit.leaderboard.tracking import Outcome

Connect = Callable[[str], Client]  # of a host


class Tracked(NamedTuple):
    """A submission to look after; `receipt` is None where nothing here tells of it."""

    sending: Sending
    receipt: Receipt | None


class Seen(NamedTuple):
    """A submission as it stands now; `outcome` is None where the receipt had told all."""

    sending: Sending
    outcome: Outcome | None

    def rows(self) -> list[Row]:
        """Its rows of the leaderboard, one for each split."""
        scores = self.sending.get("scores") or {}
        return [Row(self.sending.get("method") or "this one", split, each) for split, each in scores.items()]


def resolve(what: str | None, host: str, host_is_given: bool) -> list[Tracked]:
    """The sendings of a run, an answer file, an id of the ledger, a number of the server; without a word all here.

    Raises UsageError where there is none.
    """
    if what is None:
        found = [Tracked(sending, receipt) for receipt in receipts.here() for sending in receipt.sendings]
        remedy = "`vlbeit submit upload FILE --phase test-dev` sends one"
        return _numbered(found, f"no receipts in runs/*/{ledger.FOLDER}; {remedy}")
    try:
        receipt = Receipt(ledger.find(what))
    except UsageError:
        if not what.isdecimal():
            raise
        known = receipts.find_number(int(what), host if host_is_given else None)
        if known:
            return [Tracked(known[1], known[0])]
        return [Tracked({"number": int(what), "host": host, "status": "", "phase": "", "method": ""}, None)]
    file = receipt.submission.file
    found = [Tracked(sending, receipt) for sending in receipt.sendings]
    return _numbered(found, f"{file} was not sent: `vlbeit submit upload {file} --phase test-dev` sends it")


def look(tracked: Iterable[Tracked], connect: Connect, timeout: float | None) -> list[Seen]:
    """Ask for each; with a `timeout` in seconds wait until it is over."""
    return [_look(each, connect, timeout) for each in tracked]


def check(seen: Iterable[Seen]) -> None:
    """Raise the newest one's DataError, if it failed or has no scores to show."""
    *_, last = seen
    if last.outcome is not None:
        tracking.check_outcome(last.outcome)


def as_json(seen: Seen) -> dict[str, Any]:
    """What a program wants to know of it."""
    outcome = seen.outcome
    told = {name: seen.sending.get(name) for name in ("number", "host", "challenge", "phase", "method", "status")}
    told |= {name: seen.sending[name] for name in ("submitted_at", "participant_team_name") if name in seen.sending}
    told["scores"] = seen.sending.get("scores") or {}
    if outcome is not None:
        texts = {name: text.decode("utf-8", errors="replace") for name, text in outcome.texts.items()}
        told |= {"stderr": texts.get("stderr", ""), "problems": outcome.problems}
        told["written"] = [str(path) for path in outcome.written]
    return told


def _look(tracked: Tracked, connect: Connect, timeout: float | None) -> Seen:
    sending, receipt = tracked
    if sending["status"] in OVER and sending.get("scores"):
        return Seen(sending, None)

    def keep(facts: dict[str, Any]) -> None:
        if receipt is not None:
            receipt.update(sending, facts)

    number = sending["number"]
    with connect(sending["host"]) as client:
        if timeout is None:
            facts = evalai.read_submission(client, number)
            keep(facts)
        else:
            facts = tracking.wait(client, number, timeout, keep)
        folder = None if receipt is None else receipt.submission.folder / f"evalai-{number}"
        phase = sending["phase"] or f"phase {facts.get('challenge_phase', '?')}"
        outcome = tracking.collect(client, facts, number, phase, folder)
    sending.update(status=outcome.status, phase=phase, scores=outcome.scores)
    sending["method"] = sending["method"] or facts.get("method_name") or ""
    if receipt is not None:
        receipt.save(sending)
    return Seen(sending, outcome)


def _numbered(found: list[Tracked], otherwise: str) -> list[Tracked]:
    """Those that the server has given a number."""
    if found and all(each.sending["number"] is None for each in found):
        otherwise = "the sending was broken off before it arrived: the same `vlbeit submit upload` goes on"
    numbered = [each for each in found if each.sending["number"] is not None]
    if not numbered:
        raise UsageError(otherwise)
    return numbered
