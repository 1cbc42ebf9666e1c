"""Every refusal and failure of the server, as one line with what to do."""

from __future__ import annotations

import socket
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import ModuleType
from typing import Any

import pytest

from vlbeit.errors import DataError, UsageError, UserError
from vlbeit.http import WAITS, httpx, retry_after
from vlbeit.leaderboard import client as client_module
from vlbeit.leaderboard.client import Client
from vlbeit.leaderboard.refusals import Refused, Unavailable, Unsure

TOKEN = "tok3n-of-nobody"  # of conftest.py

PATH = "/api/jobs/submission/9000"


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (
            401,
            {"detail": "Given token not valid for any token type", "code": "token_not_valid", "messages": []},
            UsageError,
            ("Given token not valid", "`vlbeit submit token`", "EVALAI_TOKEN"),
        ),
        (401, {"error": "Sorry, you are not authorized"}, UsageError, ("not authorized", "whose team sent it")),
        (403, {"detail": "Please verify your email!"}, Refused, ("Please verify your email!", "open the mail")),
        (403, {"error": "You haven't participated in the challenge"}, Refused, ("make a team and join",)),
        (
            403,
            {"error": "The maximum number of submission for today has been reached"},
            Refused,
            ("midnight UTC", "vlbeit submit phases"),
        ),
        (403, {"error": "Sorry, cannot accept submissions since challenge phase is not public"}, Refused, ("phases",)),
        (404, {"error": "Submission 9000 does not exist"}, UsageError, ("does not exist", "--challenge")),
        (404, {"detail": "Not found."}, UsageError, ("Not found.", "--host")),
        (406, {"error": "challenge phase is not active"}, Refused, ("it is closed",)),
        (406, {"error": "Challenge is paused"}, Refused, ("send the file later",)),
        (
            406,
            {"error": f"You have 3 submissions that are being processed.{' ' * 24}Please wait for them to finish."},
            Refused,
            ("being processed. Please wait", "wait until one of yours", "`submitting` count too"),
        ),
        (406, {"input_file": ["No file was submitted."]}, Refused, ("input_file: No file", "vlbeit submit check")),
        (400, {"error": "The file URL is missing!"}, Refused, ("--large",)),
        (400, {"error": "Challenge Phase does not exist"}, Refused, ("Challenge Phase does not exist",)),
        (413, "<html>Request Entity Too Large</html>", Refused, ("--large",)),
        (302, "", UsageError, ("join the challenge", "--host")),
        (418, ["odd", {"a": "shape"}], Refused, ("odd, a: shape",)),
    ],
)
def test_a_refusal_is_one_line_in_the_servers_words(
    server: Any, client: Client, evalai_server: ModuleType, status: int, body: Any, kind: type, words: tuple[str, ...]
) -> None:
    server.faults.append(evalai_server.Fault(f"GET {PATH}", status=status, body=body))
    with pytest.raises(kind) as caught:
        client.get(PATH)
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert f"HTTP {status}" in text and "\n" not in text and "<html" not in text and len(text) < 600
    assert client.host in text and server.count("GET") == 1


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_may_pass_is_asked_again(
    server: Any, client: Client, evalai_server: ModuleType, waits: Any, lines: list[str], status: int
) -> None:
    server.add(server.phases[0], {}, b"[]")
    server.faults.append(evalai_server.Fault(PATH, status=status, body="<html>bad</html>", times=3))
    assert client.get(PATH)["id"] == 9000
    assert waits.paused == [1, 2, 4] and len(lines) == 3 and f"HTTP {status}; again in 1 s" in lines[0]


@pytest.mark.parametrize(("after", "said"), [(0, "no connection"), (None, "no connection")])
def test_a_cut_connection_is_made_again(
    server: Any, client: Client, evalai_server: ModuleType, waits: Any, after: int | None, said: str
) -> None:
    server.add(server.phases[0], {}, b"[]")
    server.faults.append(evalai_server.Fault(PATH, after=after, times=2))
    assert client.get(PATH)["id"] == 9000 and waits.paused == [1, 2]
    server.faults.append(evalai_server.Fault(PATH, after=after, times=100))
    with pytest.raises(Unavailable, match=f"{said}.*try the same command again later"):
        client.get(PATH)
    assert waits.paused == [1, 2, *WAITS]


def test_retry_after_is_kept_to(server: Any, client: Client, evalai_server: ModuleType, waits: Any) -> None:
    server.add(server.phases[0], {}, b"[]")
    body = {"detail": "Request was throttled. Expected available in 36 seconds."}
    server.faults.append(evalai_server.Fault(PATH, status=429, body=body, headers={"Retry-After": "36"}))
    assert client.get(PATH)["id"] == 9000 and waits.paused == [36]
    server.faults.append(evalai_server.Fault(PATH, status=429, body=body, headers={"Retry-After": "7200"}))
    with pytest.raises(Unavailable, match="try the same command again in 2 h 0 min"):
        client.get(PATH)
    assert waits.paused == [36]


def test_retry_after_may_be_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert 80 < retry_after(httpx.Response(429, headers={"Retry-After": later})) <= 90
    for text in ("soon", "", "-5", "Mon, 01 Jan 2001 00:00:00 GMT"):
        assert retry_after(httpx.Response(429, headers={"Retry-After": text})) == 0
    for text in ("9" * 400, "Fri, 31 Dec 9999 23:59:59 -2359"):
        assert retry_after(httpx.Response(429, headers={"Retry-After": text})) <= 30 * 86400


def test_a_server_that_hangs(
    server: Any, client: Client, monkeypatch: pytest.MonkeyPatch, waits: Any, lines: list[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # takes connections and says nothing
        monkeypatch.setattr(client_module, "_TIMEOUT", httpx.Timeout(0.05))
        monkeypatch.setattr(client_module, "WAITS", (1.0,))
        with Client(f"http://127.0.0.1:{deaf.getsockname()[1]}", TOKEN, lines.append) as slow:
            with pytest.raises(Unavailable, match="timed out"):
                slow.get(PATH)
            with pytest.raises(Unsure, match="timed out"):
                slow.post("/api/x", {})


def test_nobody_listens(waits: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with Client(f"http://127.0.0.1:{port}", TOKEN, lambda line: None) as lost:
        for ask in (lambda: lost.get(PATH), lambda: lost.post(PATH, {})):
            with pytest.raises(Unavailable, match="no connection") as caught:
                ask()
            assert not isinstance(caught.value, Unsure)  # it surely did not arrive


@pytest.mark.parametrize("fault", [{"status": 502}, {"after": None}, {"after": 0}])
def test_a_post_is_not_repeated_where_it_may_have_worked(
    server: Any, client: Client, evalai_server: ModuleType, fault: dict[str, Any]
) -> None:
    server.faults.append(evalai_server.Fault("POST", **fault))
    with pytest.raises(Unsure):
        client.post("/api/jobs/phases/4101/get_submission_file_presigned_url/", {"num_file_chunks": "1"})
    assert server.count("POST") == 1


def test_a_post_that_was_throttled_is_repeated(
    server: Any, client: Client, evalai_server: ModuleType, waits: Any
) -> None:
    server.faults.append(evalai_server.Fault("POST", status=429, headers={"Retry-After": "5"}, times=2))
    reply = client.post("/api/jobs/phases/4101/get_submission_file_presigned_url/", {"num_file_chunks": "1"})
    assert reply["submission_pk"] == 9000 and waits.paused == [5, 5]


def test_other_servers_are_told_from_evalai(server: Any, client: Client, evalai_server: ModuleType) -> None:
    server.faults.append(evalai_server.Fault(PATH, status=200, body="<html>Welcome to the hotel</html>"))
    with pytest.raises(DataError, match="is it an EvalAI server"):
        client.get(PATH)
    server.faults.append(evalai_server.Fault(PATH, status=200, body={"hello": "world"}))
    with pytest.raises(DataError, match="is no list"):
        list(client.pages(PATH))


def test_a_redirect_does_not_take_the_token_along(server: Any, client: Client, evalai_server: ModuleType) -> None:
    headers = {"Location": f"{server.host}/storage/elsewhere/1"}
    server.faults.append(evalai_server.Fault(PATH, status=302, headers=headers))
    with pytest.raises(UsageError, match="/storage/elsewhere/1"):
        client.get(PATH)
    assert server.count("storage") == 0


def test_pages_are_read_from_the_host_that_was_asked(server: Any, client: Client) -> None:
    for _ in range(5):
        server.add(server.phases[0], {}, b"[]")
    path = "/api/jobs/challenge/830/challenge_phase/4101/submission/"
    assert [row["id"] for row in client.pages(path)] == [9004, 9003, 9002, 9001, 9000]
    assert server.count("GET .*page=") == 2  # `next` named http://django:8000


def test_a_redirect_to_an_address_with_the_token_does_not_show_it(
    server: Any, client: Client, evalai_server: ModuleType
) -> None:
    for address in (f"https://x.y/login?t={TOKEN}&u=s3cret", f"https://x.y/login/{TOKEN}#s3cret"):
        server.faults.append(evalai_server.Fault(PATH, status=302, headers={"Location": address}))
        with pytest.raises(UsageError, match=r" to https://x\.y/login") as caught:
            client.get(PATH)
        assert TOKEN not in str(caught.value) and "s3cret" not in str(caught.value)


@pytest.mark.parametrize("status", [200, 403])
def test_a_token_that_the_server_repeats_is_not_shown(
    server: Any, client: Client, evalai_server: ModuleType, status: int
) -> None:
    server.faults.append(evalai_server.Fault(PATH, status=status, body={"error": f"seen {TOKEN}", "status": "x"}))
    try:
        text = str(client.get(PATH))
    except UserError as error:
        text = str(error)
    assert TOKEN not in text and "seen ***" in text


def test_a_file_is_fetched_without_the_token(
    server: Any, client: Client, evalai_server: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.media["/media/1/a.txt"] = b"x" * 100
    assert client.fetch(f"{server.host}/media/1/a.txt") == client.fetch("/media/1/a.txt") == b"x" * 100
    server.faults.append(evalai_server.Fault("media", after=None))
    assert len(client.fetch("/media/1/a.txt")) == 100
    with pytest.raises(Refused, match="HTTP 404"):
        client.fetch("/media/1/none.txt")
    monkeypatch.setattr(client_module, "MOST_BYTES", 50)
    with pytest.raises(DataError, match="more than 50 bytes"):
        client.fetch("/media/1/a.txt")
