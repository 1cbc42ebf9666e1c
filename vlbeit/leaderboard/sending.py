"""Sending an answer file to a phase, once: found, checked, allowed, brought there, and noted in its receipt."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from vlbeit import files
from vlbeit.errors import DataError, Interrupted, UsageError
from vlbeit.leaderboard import account, clock, evalai, receipts, upload
from vlbeit.leaderboard.client import Client
from vlbeit.leaderboard.evalai import SUBMITTING, UNCOUNTED, Limits, Phase
from vlbeit.leaderboard.receipts import Receipt, Sending
from vlbeit.leaderboard.refusals import Refused, Unavailable, Unsure
from vlbeit.leaderboard.upload import ChunkedUpload, Target, send_whole
from vlbeit.ledger import Submission
from vlbeit.models.download import megabytes, progress

TRIES = 3  # of a whole file whose connection broke, when the server turns out not to have it
MOST_LEFT = 2  # submissions left waiting for a file that cannot come, of the three at a time that the server takes
SETTLE = 10.0  # seconds until a submission that did arrive is in the server's list


class Order(NamedTuple):
    """What is to be sent where."""

    submission: Submission
    phase: str
    challenge: int
    fields: Mapping[str, str]  # method_name, ...
    large: bool | None  # in chunks; None: where the file is larger than one
    again: bool  # although it was sent before


def send(client: Client, order: Order) -> tuple[Receipt, Sending]:
    """Bring the file to the server unless it is there; returns its receipt, with the submission's number.

    Of two processes that send the same file at once the second one waits, and then finds it sent.

    Raises:
        UsageError: no such phase, or the file was sent to it before and `again` is not set.
        DataError: the phase is closed, the limit is reached, the file has changed, or the server refuses it.
        Interrupted: Ctrl-C; the same command goes on.
    """
    lock = FileLock(account.config_folder() / "uploads" / f"{str(order.submission.sha256)[:16]}.lock")
    Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        lock.acquire(timeout=0.1)
    except Timeout:
        client.report("another process is sending this file: waiting for it")
        lock.acquire()
    try:
        return _send(client, order)
    finally:
        lock.release()


def _send(client: Client, order: Order) -> tuple[Receipt, Sending]:
    phase = evalai.find_phase(evalai.list_phases(client, order.challenge), order.phase)
    receipt = Receipt(order.submission)
    target = _target(order, phase)
    earlier = receipt.last(client.host, order.challenge, phase.id)
    sending, arrived = _take_up(client, receipt, earlier, target, order.again) if earlier else (None, False)
    if sending is not None and arrived:
        return receipt, sending
    if sending is None:
        _allowed(client, order.challenge, phase)
        newest = max((int(row.get("id") or 0) for row in evalai.my_submissions(client, order.challenge, phase.id)),
                     default=0)  # fmt: skip
        sending = receipt.begin(
            host=client.host, challenge=order.challenge, phase=phase.name, phase_id=phase.id,
            method=target.fields.get("method_name", ""), newest_before=newest,
        )  # fmt: skip
    try:
        _bring(client, order, receipt, sending, target)
    except KeyboardInterrupt:
        raise Interrupted("stopped while sending: the same command goes on where it stopped") from None
    _unchanged(target, order)
    receipt.update(sending, evalai.read_submission(client, sending["number"]))
    return receipt, sending


def _target(order: Order, phase: Phase) -> Target:
    file = order.submission.file
    if not file.is_file():
        raise DataError(f"{file}: the answer file is gone; `vlbeit submit` writes it again")
    digest = files.sha256(file)
    if digest != order.submission.sha256:
        raise DataError(f"{file} has changed since it was written: `vlbeit submit` writes it again")
    return Target(file, digest, file.stat().st_size, order.challenge, phase.id, order.fields)


def _unchanged(target: Target, order: Order) -> None:
    if files.sha256(target.file) != target.sha256:
        raise DataError(
            f"{target.file} was changed while it was sent: what the server has may be a mixture; send the file again"
        )


def _allowed(client: Client, challenge: int, phase: Phase) -> Limits:
    """Whether the phase takes a submission now; says what is left."""
    if not phase.is_active:
        raise DataError(f"phase {phase.name} of challenge {challenge} is closed: `vlbeit submit phases` shows the open")
    limits = evalai.list_limits(client, challenge).get(phase.id, Limits())
    if limits.is_exhausted:
        raise DataError(
            f"{phase.name}: {limits.describe()}; failed and cancelled ones do not count, days are those of UTC"
        )
    client.report(f"{phase.name} of challenge {challenge}: {limits.describe()}")
    return limits


def _take_up(
    client: Client, receipt: Receipt, sending: Sending, target: Target, again: bool
) -> tuple[Sending | None, bool]:
    """An earlier sending that is to go on, None to begin a new one; and whether it has arrived meanwhile.

    Raises UsageError for one that was complete, unless it failed or `again` is set.
    """
    if sending["number"] is None:
        return _take_up_broken(client, receipt, sending, target, again)
    if sending["status"] != SUBMITTING and again:
        return None, False
    receipt.update(sending, evalai.read_submission(client, sending["number"]))
    number, status = sending["number"], sending["status"]
    if status == SUBMITTING:
        return sending, False
    if status not in UNCOUNTED:
        raise UsageError(
            f"{target.file} was sent to {sending['phase']} as submission {number} ({status}): `vlbeit submit status "
            f"{number}` says what became of it, --again sends it once more"
        )
    client.report(f"submission {number} of the same file {status}: sending it again")
    return None, False


def _take_up_broken(
    client: Client, receipt: Receipt, sending: Sending, target: Target, again: bool
) -> tuple[Sending | None, bool]:
    """A sending that was broken off before the server's number was known here."""
    if ChunkedUpload(client, target).number is not None:
        return sending, False
    number = _find_lost(client, sending, target, again)
    if number is None:
        receipt.drop(sending)
        return None, False
    sending["number"] = number
    receipt.update(sending, evalai.read_submission(client, number))
    client.report(f"{target.file} had arrived: it is submission {number} ({sending['status']})")
    return sending, True


def _find_lost(client: Client, sending: Sending, target: Target, again: bool = False) -> int | None:
    """The number of a submission that arrived although its reply did not: newer than those before, of our
    method, with our bytes.

    Raises UsageError where the server does not show the bytes of one that may be it, unless `again` is set.
    """
    doubtful = []
    for row in _unknown(client, sending, target):
        number = row["id"]
        is_ours = number > sending["newest_before"] and (row.get("method_name") or "") == sending["method"]
        if not is_ours or row.get("status") == SUBMITTING:
            continue
        try:
            content = client.fetch(str(row["input_file"])) if row.get("input_file") else None
        except DataError as error:
            client.report(f"submission {number}: {error}")
            content = None
        if content is None:
            doubtful.append(number)
        elif hashlib.sha256(content).hexdigest() == target.sha256:
            return number
    if doubtful and not again:
        numbers = ", ".join(map(str, doubtful))
        raise UsageError(
            f"{target.file} was sent, its reply was lost, and the server does not show whether it is submission "
            f"{numbers}: `vlbeit submit status NUMBER` shows what one has scored; --again sends the file anew"
        )
    return None


def _unknown(client: Client, sending: Sending, target: Target) -> list[dict[str, Any]]:
    """The team's submissions to the phase that no other sending of the receipts here tells of."""
    known = {
        each["number"]
        for receipt in receipts.here()
        for each in receipt.sendings
        if each["host"] == client.host and each["started"] != sending["started"]
    }
    rows = evalai.my_submissions(client, target.challenge, target.phase)
    return [row for row in rows if type(row.get("id")) is int and row["id"] not in known]


def _may_begin(client: Client, sending: Sending, target: Target) -> None:
    """Raise DataError where broken uploads have left so many submissions behind that others have no room."""
    left = [row["id"] for row in _unknown(client, sending, target) if row.get("status") == SUBMITTING]
    if len(left) >= MOST_LEFT:
        raise DataError(
            f"{sending['phase']}: submissions {', '.join(map(str, left))} wait for files whose upload broke off, and "
            "count among the three at a time that the server takes: cancel them on the challenge's page where "
            "it lets you, or send this file in one request with --small"
        )


def _bring(client: Client, order: Order, receipt: Receipt, sending: Sending, target: Target) -> None:
    chunks = ChunkedUpload(client, target)
    in_chunks = chunks.number is not None or (target.size > upload.CHUNK if order.large is None else order.large)
    size = megabytes(target.size)
    client.report(f"sending {target.file} ({size}) {'in chunks' if in_chunks else 'in one request'}")
    if in_chunks:
        _bring_chunks(client, chunks, receipt, sending)
    else:
        _bring_whole(client, receipt, sending, target)
    client.report(f"{target.file} is submission {sending['number']} of {sending['phase']}")


def _bring_whole(client: Client, receipt: Receipt, sending: Sending, target: Target) -> None:
    """In one request. Where the line broke, the server's list tells whether it has it, before it is sent again."""
    for attempt in range(1, TRIES + 1):
        try:
            sending["number"] = send_whole(client, target)
        except Unsure as error:
            client.report(f"{error}: looking whether the file arrived")
            clock.pause(SETTLE)
            sending["number"] = _find_lost(client, sending, target)
            if sending["number"] is None and attempt == TRIES:
                raise Unavailable(f"{error}, {TRIES} times; the same command tries again, --large in chunks") from error
        except (Refused, UsageError):
            receipt.drop(sending)
            raise
        if sending["number"] is not None:
            receipt.save(sending)
            return


def _bring_chunks(client: Client, chunks: ChunkedUpload, receipt: Receipt, sending: Sending) -> None:
    """In chunks; where the addresses of an earlier upload have run out, all of it anew."""
    with progress("upload", client.report) as show:
        for _ in range(2):
            resumed = chunks.is_resumed
            try:
                if not resumed:
                    _may_begin(client, sending, chunks.target)
                sending["number"] = chunks.begin()
                sending["status"] = SUBMITTING
                receipt.save(sending)
                chunks.put_chunks(show)
                break
            except Unsure as error:  # of `begin`: what it may have left at the server waits for a file in vain
                raise Unavailable(f"{error}: the same command begins again") from error
            except DataError as error:
                if sending["number"] is None:
                    receipt.drop(sending)
                if not (resumed and isinstance(error, Refused) and error.status in (400, 403, 404)):
                    raise
                client.report(f"{error}: the addresses of the earlier upload have run out; beginning anew")
                chunks.forget()
    chunks.finish()


def default_method(submission: Submission) -> str:
    """A name for the leaderboard where none is given: that of the run, else of the answer file."""
    folder = submission.folder.absolute().parent.parent
    return folder.name if (folder / "config.yaml").exists() else submission.file.stem
