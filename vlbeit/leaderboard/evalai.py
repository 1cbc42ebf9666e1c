"""EvalAI's calls by name: phases, limits, submissions. Numbers of phases are never assumed, they are looked up.

Paths and replies as in Cloud-CV/EvalAI 0f04039 (2026-08-21), apps/jobs and apps/challenges.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from vlbeit import registry
from vlbeit.errors import DataError, UsageError
from vlbeit.leaderboard import clock
from vlbeit.leaderboard.client import Client

SUBMITTING = "submitting"  # the server waits for the file; counts in the limits all the same
FINISHED, FAILED = "finished", "failed"
OVER = (FINISHED, FAILED, "cancelled", "archived")  # the others may still change
UNCOUNTED = (FAILED, "cancelled")  # do not count in the limits, and do not stand in the way of another try


class Phase(NamedTuple):
    """A phase of a challenge, such as test-dev."""

    id: int
    name: str
    codename: str
    is_active: bool
    is_public: bool
    per_day: int | None  # submissions that a team may make

    @property
    def slug(self) -> str:
        return slug(self.name)


class Limits(NamedTuple):
    """What a team may still send to a phase; None where the server does not tell."""

    today: int | None = None
    in_all: int | None = None
    message: str = ""  # why nothing may be sent
    seconds: float | None = None  # until something may

    @property
    def is_exhausted(self) -> bool:
        return bool(self.message) or 0 in (self.today, self.in_all)

    def describe(self) -> str:
        """`3 left today, 5 in all`, or why there is nothing left and for how long."""
        if self.is_exhausted:
            wait = "" if self.seconds is None else f"; again in {clock.spell_duration(self.seconds)}"
            return f"{self.message.rstrip('!. ') or 'nothing left'}{wait}"
        known = [f"{count} {of}" for count, of in ((self.today, "left today"), (self.in_all, "in all")) if count]
        return ", ".join(known) or "not told"


def slug(name: str) -> str:
    """A name as it is compared: `Test-Dev Phase` and `test_dev` are test-dev."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-").removesuffix("-phase")


def list_phases(client: Client, challenge: int) -> list[Phase]:
    """The phases of a challenge in the server's order."""
    path = f"/api/challenges/challenge/{challenge}/challenge_phase"
    try:
        return [
            Phase(
                int(row["id"]), str(row["name"]), str(row.get("codename") or ""), bool(row.get("is_active", True)),
                bool(row.get("is_public", True)), row.get("max_submissions_per_day"),
            )
            for row in client.pages(path)
        ]  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise _foreign(client, path, error) from error


def find_phase(phases: Sequence[Phase], wanted: str) -> Phase:
    """The phase of a name: the same, the same codename, else the only one whose name has it in it.

    Raises UsageError, with the names that there are, where none or several fit.
    """
    name = slug(wanted)
    for fits in (
        [phase for phase in phases if name == phase.slug],
        [phase for phase in phases if name == slug(phase.codename)],
        [phase for phase in phases if f"-{name}-" in f"-{phase.slug}-"],
    ):
        if len(fits) == 1:
            return fits[0]
        if fits:
            break
    names = [phase.slug for phase in fits or phases]
    if fits or not names:
        there = f"several fit: {', '.join(names)}" if fits else "there is none that you may see"
        raise UsageError(f"--phase {wanted}: {there}")
    raise UsageError(f"--phase {wanted}: no such phase: {registry.nearest(name, names)}")


def list_limits(client: Client, challenge: int) -> dict[int, Limits]:
    """Phase id -> what the team of the token may still send."""
    path = f"/api/jobs/{challenge}/remaining_submissions/"
    reply = client.get(path)
    try:
        return {int(row["id"]): _limits(row.get("limits") or {}) for row in reply["phases"]}
    except (KeyError, TypeError, ValueError) as error:
        raise _foreign(client, path, error) from error


def read_submission(client: Client, number: int) -> dict[str, Any]:
    """What the server knows of a submission: status, files, times, team."""
    reply = client.get(f"/api/jobs/submission/{number}")
    if not isinstance(reply, dict) or "status" not in reply:
        raise _foreign(client, f"/api/jobs/submission/{number}", "no status")
    return reply


def my_submissions(client: Client, challenge: int, phase: int) -> Iterator[dict[str, Any]]:
    """The team's submissions to a phase."""
    return client.pages(f"{phase_path(challenge, phase)}submission/")


def phase_path(challenge: int, phase: int) -> str:
    """Where a phase's submissions are posted and listed."""
    return f"/api/jobs/challenge/{challenge}/challenge_phase/{phase}/"


def _limits(reply: dict[str, Any]) -> Limits:
    remaining = reply.get("remaining_time")
    return Limits(
        reply.get("remaining_submissions_today_count"),
        reply.get("remaining_submissions_count"),
        str(reply.get("message") or ""),
        None if remaining is None else float(remaining),
    )


def _foreign(client: Client, path: str, error: object) -> DataError:
    return DataError(f"{client.host}{path}: the reply is not EvalAI's ({error}); is --host right?")
