"""What a server's refusal means and what to do about it, in one line. Read from EvalAI's two shapes of an error.

Its own views say {"error": text} or {"field": [texts]}, the framework below them {"detail": text}.
"""

from __future__ import annotations

import json
from typing import Any

from vlbeit.errors import DataError, UsageError, UserError

_LONGEST = 300  # characters of a server's text that are shown

_MIDNIGHT = "the count starts anew at midnight UTC; `vlbeit submit phases` shows what is left"
# What a refusal says -> what to do; the first that fits.
_REMEDIES = (
    ("verify your email", "open the mail that came when you registered, or have your profile page send it again"),
    ("maximum number of submission", _MIDNIGHT),
    ("exhausted", _MIDNIGHT),
    ("particip", "make a team and join the challenge on its page in a browser, then send the file again"),
    ("not public", "this phase is not open; `vlbeit submit phases` lists the others"),
    ("paused", "its hosts have paused it: send the file later"),
    ("not active", "it is closed: `vlbeit submit phases` shows which phases are open"),
    (
        "being processed",
        "wait until one of yours is evaluated (`vlbeit submit status`), then send the file; those left in `submitting` "
        "count too: cancel them on the challenge's page where it lets you",
    ),
    ("file url is missing", "the file did not arrive: send it again, with --large if it stays so"),
    ("input_file", "`vlbeit submit check` tells what is wrong with the file"),
)


class Unavailable(DataError):
    """The server does not answer as it should now; later it may: after `seconds`, where it says so, else 0."""

    def __init__(self, text: str, seconds: float = 0.0) -> None:
        super().__init__(text)
        self.seconds = seconds


class Unsure(Unavailable):
    """The line broke while something was asked for: it may have been carried out."""


class Refused(DataError):
    """The server says no; `status` is that of HTTP."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


def refusal(status: int, text: str, where: str) -> UserError:
    """The error for a response of 300 and above: the server's words and the remedy."""
    words = text.lower()
    remedy = next((remedy for sign, remedy in _REMEDIES if sign in words), None)
    start = f"{where}: HTTP {status}{f' {text}' if text else ''}"
    if status < 400:
        return UsageError(
            f"{start}: it sends us elsewhere: join the challenge on its page in a browser, or set --host to that server"
        )
    if status == 401 and "token" not in words and "credentials" not in words:
        return UsageError(f"{start}: not yours: use the token of the account whose team sent it")
    if status == 401:
        return UsageError(
            f"{start}: the token is wrong or has run out: copy the one of your profile page and store it with "
            "`vlbeit submit token` (EVALAI_TOKEN, where it is set, goes first)"
        )
    if status == 404:
        return UsageError(
            f"{start}: there is no such thing there: check --challenge, --host, or the submission's number, which "
            "`vlbeit submit status` lists for those sent from here"
        )
    if status == 413:
        return Refused(f"{start}: the file is too large for one request: add --large", status)
    return Refused(f"{start}: {remedy or 'nothing was stored; correct what it says and try again'}", status)


def said(response: Any) -> str:
    """The words of an error response in one line: either shape, field errors, else its text; nothing of web pages."""
    try:
        value = json.loads(response.text)
    except (ValueError, RuntimeError):  # no JSON, or a body that was not read
        return "" if "<" in response.text[:200] else _line(response.text)
    return _line(_words(value))


def _words(value: Any) -> str:
    if isinstance(value, dict):
        for key in ("error", "detail", "message"):
            if value.get(key):
                return _words(value[key])
        return "; ".join(f"{key}: {_words(each)}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    return str(value)


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."
