"""What became of a submission: asked for once, or waited for over hours; its result and error files are fetched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from vlbeit import files
from vlbeit.errors import DataError, Interrupted
from vlbeit.leaderboard import clock, evalai
from vlbeit.leaderboard.client import Client
from vlbeit.leaderboard.evalai import FAILED, OVER
from vlbeit.leaderboard.published import Scores, read_scores, search_scores
from vlbeit.leaderboard.refusals import Unavailable

FIRST_WAIT, LONGEST_WAIT, GROWTH = 10.0, 300.0, 1.5  # seconds between two looks
HEALTHY = 240.0  # seconds that an evaluation takes when the server is well
PATIENCE = 3600.0  # seconds after which a waiting submission counts as stuck
SAY_EVERY = 900.0  # seconds without news, and a line says that we are still waiting
_FILES = {"result": "submission_result_file", "stderr": "stderr_file", "stdout": "stdout_file"}
_NAMES = {"result": "result.json", "stderr": "stderr.txt", "stdout": "stdout.txt"}


class Outcome(NamedTuple):
    """What the server has made of a submission."""

    number: int
    status: str
    scores: dict[str, Scores]  # split -> percent; {} unless it was evaluated
    texts: dict[str, bytes]  # result, stderr, stdout: those that there are
    problems: list[str]  # files that could not be fetched
    written: list[Path]

    def reason(self) -> str:
        """The last line that the evaluation wrote to its error file; empty where there is none."""
        lines = self.texts.get("stderr", b"").decode("utf-8", errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""


def wait(client: Client, number: int, timeout: float, see: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """The server's facts of a submission when it is over; asked for ever more seldom, through failures of the line.

    Args:
        timeout: seconds after which to give up.
        see: told of every reply, so that it is on disk when the wait is broken off.

    Raises:
        DataError: it was not over in time.
        Interrupted: Ctrl-C. Either way the submission stays at the server and can be asked for later.
    """
    start, interval = clock.now(), FIRST_WAIT
    shown, spoke, warned = "", start, False
    try:
        while True:
            status, facts, asked = _look(client, number, shown)
            if facts:
                see(facts)
            if status in OVER:
                return facts
            now = clock.now()
            waited = now - start
            if status != shown:
                client.report(f"submission {number}: {status}; an evaluation takes about "
                              f"{clock.spell_duration(HEALTHY)} when the server is well")  # fmt: skip
                shown, spoke = status, now
            elif now - spoke >= SAY_EVERY:
                client.report(f"submission {number}: still {status} after {clock.spell_duration(waited)}")
                spoke = now
            if waited >= PATIENCE and not warned:
                warned = True
                client.report(f"the server has left submissions waiting for days before; {_later(number)}")
            if waited >= timeout:
                raise DataError(f"submission {number} is still {status or 'unknown'} after "
                                f"{clock.spell_duration(waited)}: {_later(number)}")  # fmt: skip
            clock.pause(min(max(interval, asked), timeout - waited))
            interval = min(interval * GROWTH, LONGEST_WAIT)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped waiting; {_later(number)}") from None


def collect(client: Client, facts: dict[str, Any], number: int, phase: str, folder: Path | None) -> Outcome:
    """Fetch the files of a submission that is over, and write them to `folder` where one is given."""
    status = str(facts["status"])
    texts: dict[str, bytes] = {}
    problems: list[str] = []
    written: list[Path] = []
    for name, field in _FILES.items():
        if status in OVER and facts.get(field):
            try:
                texts[name] = client.fetch(str(facts[field]))
            except DataError as error:
                problems.append(f"{name}: {error}")
    if folder is not None:
        written = [files.write_bytes(folder / _NAMES[name], content) for name, content in texts.items()]
    scores = read_scores(texts.get("result", b""), phase) or search_scores(texts.get("stdout", b""), phase)
    return Outcome(number, status, scores, texts, problems, written)


def check_outcome(outcome: Outcome) -> None:
    """Raise DataError for a submission that failed, or that is finished and has no scores to show."""
    problem = outcome.problems[0] if outcome.problems else ""
    if outcome.status == FAILED:
        reason = outcome.reason() or problem or "the server says no reason"
        raise DataError(
            f"submission {outcome.number} failed: {reason[:300]}; `vlbeit submit check` finds what a server refuses; "
            "good files have failed for the server's own reasons too: then send it again"
        )
    if outcome.status in OVER and not outcome.scores:
        raise DataError(
            f"submission {outcome.number} is {outcome.status} and has no scores"
            f"{f': {problem}' if problem else ' in its result file'}; look at its page in a browser"
        )


def _look(client: Client, number: int, status: str) -> tuple[str, dict[str, Any], float]:
    """Status, facts, 0; where the server cannot be asked now, the status known so far, {}, and for how many seconds."""
    try:
        facts = evalai.read_submission(client, number)
    except Unavailable as error:
        client.report(f"{error}; waiting on")
        return status, {}, error.seconds
    return str(facts["status"]), facts, 0.0


def _later(number: int) -> str:
    return f"it stays at the server, and `vlbeit submit status {number}` asks for it at any time"
