"""`vlbeit submit status`: the sendings that a word means, each asked for, its files fetched, its receipt brought up.

What is over and has its scores in the receipt is not asked for again: it can be shown when the server is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from vlbeit import ledger
from vlbeit.errors import Interrupted, UsageError, UserError
from vlbeit.leaderboard import clock, evalai, receipts, tracking
from vlbeit.leaderboard.client import Client
from vlbeit.leaderboard.evalai import OVER
from vlbeit.leaderboard.published import Row
from vlbeit.leaderboard.receipts import Receipt, Sending
from vlbeit.leaderboard.refusals import Unavailable
from vlbeit.leaderboard.tracking import Outcome

Connect = Callable[[str], Client]  # of a host


class Tracked(NamedTuple):
    """A submission to look after; `receipt` is None where nothing here tells of it."""

    sending: Sending
    receipt: Receipt | None


class Seen(NamedTuple):
    """A submission as it stands now; `outcome` is None where the receipt had told all, or it could not be asked for."""

    sending: Sending
    outcome: Outcome | None = None
    receipt: Receipt | None = None
    error: UserError | None = None  # why it could not be asked for

    def rows(self) -> list[Row]:
        """Its rows of the leaderboard, one for each split."""
        scores = self.sending.get("scores") or {}
        return [Row(self.sending.get("method") or "this one", split, each) for split, each in scores.items()]


def resolve(what: str | None, host: str, host_is_given: bool) -> list[Tracked]:
    """The sendings of a run, an answer file, an id of the ledger, a number of the server; without a word all here.

    The oldest first. Raises UsageError where there is none.
    """
    if what is None:
        remedy = "`vlbeit submit upload FILE --phase test-dev` sends one"
        return _numbered(list(receipts.here()), f"no receipts in runs/*/{ledger.FOLDER}; {remedy}")
    try:
        found = [Receipt(each) for each in ledger.find_all(what)]
    except UsageError:
        if not what.isdecimal():
            raise
        known = receipts.find_number(int(what), host if host_is_given else None)
        if known:
            return [Tracked(known[1], known[0])]
        return [Tracked({"number": int(what), "host": host, "status": "", "phase": "", "method": ""}, None)]
    file = found[0].submission.file
    return _numbered(found, f"{file} was not sent: `vlbeit submit upload {file} --phase test-dev` sends it")


def look(tracked: Iterable[Tracked], connect: Connect, timeout: float | None) -> list[Seen]:
    """Ask for each; with a `timeout` in seconds, for all of them together, wait until it is over.

    Of several, what cannot be asked for has its error, and a server that does not answer is not asked for the others.
    """
    seen: list[Seen] = []
    silent: dict[str, Unavailable] = {}
    start = clock.now()
    for each in tracked:
        host = each.sending["host"]
        left = None if timeout is None else max(0.0, timeout - (clock.now() - start))
        try:
            if host in silent:
                raise silent[host]
            seen.append(_look(each, connect, left))
        except Interrupted:
            raise
        except UserError as error:
            if isinstance(error, Unavailable):
                silent[host] = error
            seen.append(Seen(each.sending, None, each.receipt, error))
    if len(seen) == 1 and seen[0].error is not None:
        raise seen[0].error
    return seen


def check(seen: Sequence[Seen]) -> None:
    """Raise the newest one's error of those that failed, have no scores to show, or could not be asked for.

    One whose file was sent to the same phase again afterwards is left out.
    """
    places: set[tuple[Any, ...]] = set()
    for each in reversed(seen):
        if _place(each) in places:
            continue
        places.add(_place(each))
        if each.error is not None:
            raise each.error
        if each.outcome is not None:
            tracking.check_outcome(each.outcome)


def _place(seen: Seen) -> tuple[Any, ...]:
    """What a later sending has in common with the one that it makes up for."""
    sending = seen.sending
    if seen.receipt is None:
        return sending["host"], sending["number"]
    return sending["host"], sending["phase_id"], seen.receipt.submission.folder


def describe(seen: Seen) -> dict[str, Any]:
    """What a program wants to know of it."""
    outcome = seen.outcome
    told = {name: seen.sending.get(name) for name in ("number", "host", "challenge", "phase", "method", "status")}
    told |= {name: seen.sending[name] for name in ("submitted_at", "participant_team_name") if name in seen.sending}
    told["scores"] = seen.sending.get("scores") or {}
    if seen.error is not None:
        told["error"] = str(seen.error)
    if outcome is not None:
        texts = {name: text.decode("utf-8", errors="replace") for name, text in outcome.texts.items()}
        told |= {"stderr": texts.get("stderr", ""), "problems": outcome.problems}
        told["written"] = [str(path) for path in outcome.written]
    return told


def _look(tracked: Tracked, connect: Connect, timeout: float | None) -> Seen:
    sending, receipt = tracked
    if sending["status"] in OVER and sending.get("scores"):
        return Seen(sending, None, receipt)

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
    return Seen(sending, outcome, receipt)


def _numbered(found: Sequence[Receipt], otherwise: str) -> list[Tracked]:
    """The sendings that the server has given a number, the oldest first."""
    sendings = [Tracked(sending, receipt) for receipt in found for sending in receipt.sendings]
    numbered = [each for each in sendings if each.sending["number"] is not None]
    if sendings and not numbered:
        otherwise = "the sending was broken off before it arrived: the same `vlbeit submit upload` goes on"
    if not numbered:
        raise UsageError(otherwise)
    return sorted(numbered, key=lambda each: each.sending["started"])
