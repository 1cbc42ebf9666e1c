"""Host and token: where they come from, and that the token stays where it is."""

from __future__ import annotations

import io
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from vlbeit.cli import main
from vlbeit.errors import DataError, UsageError
from vlbeit.leaderboard import account

TOKEN = "tok3n-of-nobody"  # of conftest.py


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def test_the_token_is_looked_for_in_three_places(monkeypatch: pytest.MonkeyPatch) -> None:
    assert account.find_token() is None
    with pytest.raises(UsageError, match=r"no token: .* `vlbeit submit token`.*EVALAI_TOKEN"):
        account.require_token("https://eval.ai")
    write(Path.home() / ".evalai" / "token.json", '{"token": "official"}')
    assert account.find_token() == "official"
    account.store_token("ours\n")
    assert account.find_token() == "ours" and account.token_file() == Path.home() / ".config/vlbeit/evalai.json"
    monkeypatch.setenv("EVALAI_TOKEN", "variable")
    assert account.find_token() == "variable"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620])
def test_a_file_that_others_can_read_is_refused(mode: int) -> None:
    file = write(Path.home() / ".evalai" / "token.json", f'{{"token": "{TOKEN}"}}', mode)
    with pytest.raises(UsageError, match=f"chmod 600 {file}") as caught:
        account.find_token()
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("text", [f'{{"token": "{TOKEN}"', TOKEN, f'["{TOKEN}"]', '{"token": 3}', '{"token": ""}', ""])
def test_a_damaged_file_is_named_and_not_shown(text: str) -> None:
    file = write(account.token_file(), text)
    with pytest.raises((DataError, UsageError)) as caught:
        account.find_token()
    assert str(file) in str(caught.value) and TOKEN not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["two words", "línea", "a\nHost: evil", "   "])
def test_what_cannot_be_a_token_is_refused_and_not_shown(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALAI_TOKEN", value)
    with pytest.raises(UsageError, match="EVALAI_TOKEN holds no token") as caught:
        account.find_token()
    assert value.strip() == "" or value not in str(caught.value)


def test_token_verb_stores_it_for_the_owner_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(Path.home() / "settings"))
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{TOKEN}\n"))
    before = os.umask(0)
    try:
        assert main(["submit", "token"]) == 0
    finally:
        os.umask(before)
    file = Path.home() / "settings" / "vlbeit" / "evalai.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and json.loads(file.read_text()) == {"token": TOKEN}
    captured = capsys.readouterr()
    assert "goes first" not in captured.out
    assert TOKEN not in captured.out + captured.err and str(file) in captured.out
    assert account.find_token() == TOKEN
    monkeypatch.setenv(account.VARIABLE, "another-token")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{TOKEN}\n"))
    assert main(["submit", "token"]) == 0
    assert "EVALAI_TOKEN is set and goes first" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "variable", "host"),
    [
        (None, None, "https://eval.ai"),
        (None, "https://lab.example/evalai/", "https://lab.example/evalai"),
        ("http://localhost:8000", "https://lab.example", "http://localhost:8000"),
    ],
)
def test_host(option: str | None, variable: str | None, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if variable:
        monkeypatch.setenv("EVALAI_API_URL", variable)
    assert account.choose_host(option) == host


@pytest.mark.parametrize(
    "host", ["eval.ai", "ftp://eval.ai", "https://", "https://me:secret@eval.ai", "http://eval.ai", "https://a:x"]
)
def test_a_wrong_host_is_refused(host: str) -> None:
    with pytest.raises(UsageError, match="--host") as caught:
        account.choose_host(host)
    assert "secret" not in str(caught.value)


def test_the_token_is_nowhere_but_in_the_header(
    server: Any, run: Path, here: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """After a full round with failures: in no file, no output, no log line, no address, no other server."""
    caplog.set_level("DEBUG")
    import sys

    fault = sys.modules["evalai_server"].Fault
    server.faults += [
        fault("GET .*remaining", status=502, body=f"gateway of {TOKEN}"),
        fault("PUT", status=500),
        fault("submission/9000", status=200, body={"status": "submitted", "participant_team_name": TOKEN}),
    ]
    for words in (
        ("upload", str(run), "--phase", "test-dev", "--large", "--wait"),
        ("upload", str(run), "--phase", "test-standard", "--small", "--wait"),
        ("upload", str(run), "--phase", "test-standard", "--again"),
        ("status", str(run), "--json"),
        ("phases",),
    ):
        main(["submit", *words])
    assert [each["status"] for each in server.submissions.values()] == ["finished", "finished"]
    captured = capfd.readouterr()
    places = {"stdout": captured.out, "stderr": captured.err, "log": caplog.text, "paths": " ".join(server.requests)}
    places |= {str(path): path.read_text() for path in here.parent.rglob("*") if path.is_file()}
    assert len(places) > 8 and "finished" in captured.out
    assert [name for name, text in places.items() if TOKEN in text] == []
    assert server.leaks == [] and server.count("PUT /storage") == 2 and server.count("GET /media") > 3
