"""The verbs of the leaderboard below `vlbeit submit`: they parse words and print. No torch before `estimate` runs."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlbeit import table
from vlbeit.leaderboard import CHALLENGE

if TYPE_CHECKING:
    from vlbeit.leaderboard.client import Client
    from vlbeit.leaderboard.status import Seen

Host = Annotated[
    str | None, typer.Option(metavar="URL", help="server; else EVALAI_API_URL, else eval.ai", show_default=False)
]
Challenge = Annotated[int, typer.Option(metavar="N", help="number of the challenge")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait for the score; Ctrl-C leaves it, `status` comes back to it.")]
Timeout = Annotated[str, typer.Option(metavar="12h", help="longest wait: 90s, 30m, 12h, 2d")]


def add_to(app: typer.Typer) -> None:
    """Add `upload`, `status`, `phases`, `token` and `estimate` to the group `submit`."""
    for verb in (upload, status, phases, token):
        app.command()(verb)
    app.command(context_settings={"ignore_unknown_options": True})(estimate)


def upload(
    what: Annotated[str, typer.Argument(metavar="FILE", help="answer file, or a run: its newest", show_default=False)],
    phase: Annotated[str, typer.Option(help="test-dev | test-standard | test-challenge", show_default=False)],
    method: Annotated[str | None, typer.Option(help="name on the leaderboard", show_default=False)] = None,
    description: Annotated[str, typer.Option(help="of the method", show_default=False)] = "",
    project_url: Annotated[str, typer.Option(metavar="URL", help="of its code", show_default=False)] = "",
    publication_url: Annotated[str, typer.Option(metavar="URL", help="of its paper", show_default=False)] = "",
    public: Annotated[
        bool | None, typer.Option("--public/--private", help="on the leaderboard, or not", show_default="the phase's")
    ] = None,
    large: Annotated[
        bool | None, typer.Option("--large/--small", help="in chunks, or at once", show_default="from 20 MiB")
    ] = None,
    questions: Annotated[
        Path | None, typer.Option(help="official question file to check it against", show_default=False)
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Send a file that was sent to this phase before.")] = False,
    wait: Wait = False,
    timeout: Timeout = "12h",
    challenge: Challenge = CHALLENGE,
    host: Host = None,
    as_json: AsJson = False,
) -> None:
    """Send an answer file to the leaderboard: checked, within the limits, once; with --wait until it has its score."""
    from vlbeit import ledger
    from vlbeit.leaderboard import account, clock, sending
    from vlbeit.leaderboard.checking import check_before
    from vlbeit.leaderboard.status import Seen, Tracked, check, look

    seconds = clock.read_duration(timeout, "--timeout")
    server, report = account.choose_host(host), _reporter(as_json)
    submission = ledger.find(what)
    check_before(submission, challenge, questions, report)
    fields = {
        "method_name": method or sending.default_method(submission),
        "method_description": description,
        "project_url": project_url,
        "publication_url": publication_url,
        "is_public": "" if public is None else str(public).lower(),
    }
    order = sending.Order(
        submission, phase, challenge, {name: text for name, text in fields.items() if text}, large, again
    )
    with _connect(server, report) as client:
        receipt, sent = sending.send(client, order)
    report(f"wrote {submission.receipt_file}")
    seen = [Seen(sent, None, receipt)]
    if wait:
        seen = look([Tracked(sent, receipt)], lambda at: _connect(at, report), seconds)
    _show(seen, what, as_json)
    check(seen)


def status(
    what: Annotated[
        str | None, typer.Argument(metavar="[RUN|FILE|NUMBER]", help="without: all", show_default=False)
    ] = None,
    wait: Wait = False,
    timeout: Timeout = "12h",
    host: Host = None,
    as_json: AsJson = False,
) -> None:
    """Say what became of what was sent: its score beside the published ones, or why the server refused it."""
    from vlbeit.leaderboard import account, clock
    from vlbeit.leaderboard.status import check, look, resolve

    seconds = clock.read_duration(timeout, "--timeout")
    report = _reporter(as_json)
    tracked = resolve(what, account.choose_host(host), host is not None)
    seen = look(tracked, lambda at: _connect(at, report), seconds if wait else None)
    _show(seen, what, as_json)
    check(seen)


def phases(challenge: Challenge = CHALLENGE, host: Host = None, as_json: AsJson = False) -> None:
    """List the phases of the challenge, which are open, and how often your team may still send."""
    from vlbeit.leaderboard import account, evalai
    from vlbeit.leaderboard.client import Client
    from vlbeit.leaderboard.refusals import Refused

    server, own, refused = account.choose_host(host), account.find_token(), ""
    with Client(server, own, _reporter(as_json)) as client:
        found = evalai.list_phases(client, challenge)
        try:
            limits = evalai.list_limits(client, challenge) if own else {}
        except Refused as error:  # no team, or it has not joined: the phases are there all the same
            limits = {each.id: evalai.Limits(message=str(error)) for each in found}
            refused = str(error)
    if as_json:
        left = {number: each._asdict() for number, each in limits.items()}
        print(json.dumps([{**each._asdict(), "limits": left.get(each.id)} for each in found], indent=1))
        return
    rows = [
        (
            each.slug, each.name, each.id, "yes" if each.is_active else "no", each.per_day or "",
            "refused" if refused else limits[each.id].describe() if each.id in limits else "",
        )
        for each in found
    ]  # fmt: skip
    table.show(("--phase", "name", "number", "open", "a day", "your team"), rows)
    if refused:
        print(f"your team: {refused}\nnext: vlbeit submit phases, when your team has joined")
    elif own:
        print("next: vlbeit submit upload FILE --phase test-dev --method NAME")
    else:
        print("next: vlbeit submit token stores your token, which sending needs; then this shows what is left too")


def token() -> None:
    """Store your EvalAI token, asked for or from standard input, in a file that only you can read."""
    from vlbeit.leaderboard import account

    text = getpass.getpass("EvalAI token (not shown): ") if sys.stdin.isatty() else sys.stdin.readline()
    print(f"wrote {account.store_token(text)}")
    if os.environ.get(account.VARIABLE):
        print(f"note: {account.VARIABLE} is set and goes first: unset it for the stored token to be used")
    print("next: vlbeit submit phases")


def estimate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="run folder", show_default=False)],
    words: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...", show_default=False)] = None,
    split: Annotated[str | None, typer.Option(help="held-out part", show_default="rest_val, or the run's own")] = None,
    as_json: AsJson = False,
) -> None:
    """Predict the score without the server, from images that were held out of training; says what it leans to."""
    from vlbeit.leaderboard import estimate as held_out

    with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):
        found = held_out.estimate(run, words or [], split=split)
    if found is None:  # not the main process
        return
    if as_json:
        print(json.dumps(found.as_json(), indent=1))
        return
    table.show(("", "predicted", "95 % interval", "questions"), found.rows())
    print(f"over {found.questions} questions about {found.images} images of {found.split}, which are drawn together")
    print(*(f"bias: {line}" for line in found.bias), sep="\n")
    print(f"wrote {found.written}\nnext: vlbeit submit {shlex.quote(run)} --split test2015")


def _connect(host: str, report: Callable[[str], object]) -> Client:
    from vlbeit.leaderboard import account
    from vlbeit.leaderboard.client import Client

    return Client(host, account.require_token(host), report)


def _reporter(as_json: bool) -> Callable[[str], object]:
    """Where lines on the way go: not between the JSON."""
    return lambda line: print(line, file=sys.stderr if as_json else sys.stdout, flush=True)


def _show(seen: Sequence[Seen], what: str | None, as_json: bool) -> None:
    """What was seen of the submissions that a word means, all of them with None."""
    from vlbeit.leaderboard.evalai import OVER
    from vlbeit.leaderboard.published import NAMES, PUBLISHED, beside_published
    from vlbeit.leaderboard.status import describe

    rows = [row for each in seen for row in each.rows()]
    if as_json:
        published = [{"method": row.method, "split": row.split, **row.scores} for row in PUBLISHED]
        found: dict[str, Any] = {"submissions": list(map(describe, seen)), "published": published}
        print(json.dumps(found, ensure_ascii=False, indent=1))
        return
    names = ("number", "phase", "status", "submitted_at", "method")
    cells = [[each.sending.get(name) or "" for name in names] for each in seen]
    table.show(("submission", "phase", "status", "submitted", "method"), cells)
    for each in seen:
        if each.error is not None:
            print(f"note: submission {each.sending['number']}: {each.error}")
    for outcome in (each.outcome for each in seen if each.outcome is not None):
        print(*(f"note: {problem}" for problem in outcome.problems), sep="\n", end="\n" if outcome.problems else "")
        if outcome.texts.get("stderr", b"").strip():
            text = outcome.texts["stderr"].decode("utf-8", errors="replace").strip()
            print(f"error file of submission {outcome.number}:", *text.splitlines()[-10:], sep="\n  ")
        if outcome.written:
            print(f"wrote {', '.join(map(str, outcome.written))}")
    if rows:
        print()
        table.show(("method", "split", *NAMES), [row.cells() for row in beside_published(rows)])
    if any(each.error is None and each.sending["status"] not in OVER for each in seen):
        print(f"next: vlbeit submit status {f'{shlex.quote(what)} ' if what else ''}--wait")
    else:
        print("next: vlbeit submit phases shows how often you may still send")
