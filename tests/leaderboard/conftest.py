"""A server that speaks EvalAI's interface, a clock that runs by itself, and an answer file to send."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vlbeit import files, ledger
from vlbeit.leaderboard import clock
from vlbeit.leaderboard.client import Client

TOKEN = "tok3n-of-nobody"
TRUTH = {101: "yes", 102: "no", 103: "2", 104: "red", 105: "dog", 106: "yes"}
TYPES = {101: "yes/no", 102: "yes/no", 103: "number", 104: "other", 105: "other", 106: "yes/no"}


def score(entries: list[dict[str, Any]]) -> dict[str, float]:
    """Share of right answers in percent, over all and by type."""
    right = {entry["question_id"]: entry["answer"] == TRUTH[entry["question_id"]] for entry in entries}
    groups = {"overall": list(TRUTH), **{kind: [k for k in TRUTH if TYPES[k] == kind] for kind in set(TYPES.values())}}
    return {name: round(100 * sum(right[key] for key in keys) / len(keys), 2) for name, keys in groups.items()}


@pytest.fixture(scope="session")
def evalai_server(load_module: Callable[[Path], ModuleType]) -> ModuleType:
    """The module evalai_server.py beside this file."""
    return load_module(Path(__file__).with_name("evalai_server.py"))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in and an empty home; nothing of the machine's own account or proxy."""
    for name in ("EVALAI_TOKEN", "EVALAI_API_URL", "VLBEIT_CONFIG", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


class FakeClock:
    """Time that passes by waiting alone; `paused` are the waits. `at` may hold what happens when a time is reached."""

    def __init__(self) -> None:
        self.time = 0.0
        self.paused: list[float] = []
        self.break_at: float | None = None

    def pause(self, seconds: float) -> None:
        self.paused.append(seconds)
        self.time += seconds
        if self.break_at is not None and self.time >= self.break_at:
            raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    fake = FakeClock()
    monkeypatch.setattr(clock, "pause", fake.pause)
    monkeypatch.setattr(clock, "now", lambda: fake.time)
    return fake


@pytest.fixture
def server(evalai_server: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The server, with the token and the host set in the environment."""
    with evalai_server.EvalAI(TRUTH, score, [TOKEN]) as running:
        monkeypatch.setenv("EVALAI_API_URL", running.host)
        monkeypatch.setenv("EVALAI_TOKEN", TOKEN)
        yield running
        assert running.leaks == []  # the token went nowhere else


@pytest.fixture
def lines() -> list[str]:
    """What a client reports."""
    return []


@pytest.fixture
def client(server: Any, lines: list[str]) -> Iterator[Client]:
    with Client(server.host, TOKEN, lines.append) as opened:
        yield opened


@pytest.fixture
def questions(here: Path) -> Path:
    """The official question file of TRUTH."""
    rows = [{"question_id": key, "image_id": key // 2, "question": "what?"} for key in TRUTH]
    path = here / "v2_OpenEnded_mscoco_test2015_questions.json"
    path.write_text(json.dumps({"data_subtype": "test2015", "questions": rows}))
    return path


@pytest.fixture
def answers(here: Path) -> Path:
    """An answer file of another program: four of six right."""
    given = TRUTH | {103: "3", 105: "cat"}
    path = here / "answers.json"
    path.write_text(json.dumps([{"question_id": key, "answer": answer} for key, answer in given.items()]))
    return path


@pytest.fixture
def run(here: Path, answers: Path, questions: Path) -> Path:
    """A run with one finished submission of ours, as the ledger has it."""
    folder = here / "runs" / "vl-vqa"
    submission = ledger.open_submission(folder, {"weights": "abc"})
    files.write_bytes(submission.answers_file, answers.read_bytes())
    (folder / "config.yaml").write_text("run: runs/vl-vqa\n")
    of_them = {"file": str(questions), "subset": "test2015"}
    submission.write(sha256=files.sha256(submission.answers_file), questions=of_them)
    return folder
