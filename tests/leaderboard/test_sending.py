"""Bringing a file to the server through cut lines, kills, expired addresses and full limits: once, whole, or not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vlbeit import ledger
from vlbeit.cli import main
from vlbeit.errors import DataError, Interrupted, UsageError
from vlbeit.http import WAITS
from vlbeit.leaderboard import account, sending, upload
from vlbeit.leaderboard.client import Client
from vlbeit.leaderboard.receipts import Receipt
from vlbeit.leaderboard.refusals import Refused, Unavailable
from vlbeit.leaderboard.sending import Order

TOKEN = "tok3n-of-nobody"  # of conftest.py
SMALL_CHUNK = 52  # bytes: the answer file is five of them


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "CHUNK", SMALL_CHUNK)
    monkeypatch.setattr(upload, "_BLOCK", 10)


def order(file: Path, **more: Any) -> Order:
    submission = ledger.find(file)
    asked = {"phase": "test-dev", "challenge": 830, "fields": {"method_name": "m"}, "large": None, "again": False}
    return Order(submission, **(asked | more))


def arrived(server: Any) -> list[tuple[int, str]]:
    """Numbers and statuses of the submissions whose file the server has whole."""
    return [(number, each["status"]) for number, each in server.submissions.items() if each["_content"]]


def states() -> list[Path]:
    return list(account.config_folder().glob("uploads/*.json"))


def test_chunks_are_put_in_order_and_joined(
    server: Any, client: Client, answers: Path, small_chunks: None, lines: list[str]
) -> None:
    receipt, sent = sending.send(client, order(answers))
    count = -(-answers.stat().st_size // SMALL_CHUNK)
    assert count == 5 and server.count("PUT /storage") == count
    assert server.submissions[9000]["_content"] == answers.read_bytes()
    assert sent["number"] == 9000 and server.submissions[9000]["_messages"] == 1
    assert server.submissions[9000]["_fields"]["file_name"] == "answers.json"  # no folder of this machine
    assert states() == [] and receipt.sendings == [sent]


@pytest.mark.parametrize("after", [None, 0, 30])
def test_a_cut_in_a_chunk_goes_on_with_that_chunk(
    server: Any, client: Client, answers: Path, small_chunks: None, evalai_server: ModuleType, waits: Any,
    after: int | None,
) -> None:  # fmt: skip
    server.faults.append(evalai_server.Fault(r"PUT /storage/\w+/3", after=after, times=2))
    sending.send(client, order(answers))
    puts = [int(re.search(r"/(\d+)\?", each)[1]) for each in server.requests if each.startswith("PUT")]
    assert puts == [1, 2, 3, 3, 3, 4, 5] and waits.paused == [1, 2]
    assert server.submissions[9000]["_content"] == answers.read_bytes()


def test_a_killed_upload_goes_on_with_the_chunks_that_are_missing(
    server: Any, client: Client, answers: Path, small_chunks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Client.put

    def killed(self: Client, url: str, *rest: Any) -> str:
        if "/4?" in url:
            raise KeyboardInterrupt
        return put(self, url, *rest)

    monkeypatch.setattr(Client, "put", killed)
    with pytest.raises(Interrupted, match="the same command goes on"):
        sending.send(client, order(answers))
    (state,) = states()
    assert state.stat().st_mode & 0o777 == 0o600
    assert "X-Signature" not in ledger.find(answers).receipt_file.read_text()
    monkeypatch.setattr(Client, "put", put)
    _, sent = sending.send(client, order(answers))
    assert re.findall(r"PUT \S+/(\d)\?", " ".join(server.requests)) == list("12345")
    assert arrived(server) == [(9000, "submitted")] and sent["number"] == 9000 and states() == []


def test_a_process_that_is_killed_in_a_chunk(
    server: Any, client: Client, answers: Path, questions: Path, small_chunks: None, evalai_server: ModuleType
) -> None:
    server.faults.append(evalai_server.Fault(r"PUT /storage/\w+/3", hold=3))
    code = (
        "from vlbeit.leaderboard import upload; from vlbeit.cli import main; "
        f"upload.CHUNK = {SMALL_CHUNK}; "
        "main(['submit', 'upload', 'answers.json', '--phase', 'test-dev', '--method', 'm', '--questions', "
        f"'{questions}'])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    while not server.count("PUT .*/3"):
        assert process.poll() is None, "ended before the third chunk"
        time.sleep(0.02)
    process.kill()
    process.wait()
    _, sent = sending.send(client, order(answers))
    assert re.findall(r"PUT \S+/(\d)\?", " ".join(server.requests)) == list("123345")
    assert arrived(server) == [(9000, "submitted")] and sent["number"] == 9000


def test_two_processes_send_a_file_once(
    server: Any, answers: Path, evalai_server: ModuleType, lines: list[str]
) -> None:
    server.faults.append(evalai_server.Fault("GET .*remaining", hold=0.5, status=502))  # the first one takes its time

    def one() -> str:
        with Client(server.host, TOKEN, lines.append) as own:
            try:
                return str(sending.send(own, order(answers))[1]["number"])
            except UsageError as error:
                return str(error)

    with ThreadPoolExecutor(4) as pool:
        found = [each.result() for each in [pool.submit(one) for _ in range(4)]]
    assert found.count("9000") == 1 and sum("--again" in each for each in found) == 3
    assert len(server.submissions) == 1 and "another process is sending this file: waiting for it" in lines


def test_addresses_that_have_run_out_are_asked_for_anew(
    server: Any, client: Client, answers: Path, small_chunks: None, evalai_server: ModuleType, lines: list[str]
) -> None:
    server.faults.append(evalai_server.Fault(r"PUT /storage/\w+/4", status=503, times=len(WAITS) + 1))
    with pytest.raises(Unavailable, match="the storage: HTTP 503"):
        sending.send(client, order(answers))
    server.uploads["upload9000"].is_expired = True
    _, sent = sending.send(client, order(answers))
    assert sent["number"] == 9001 and arrived(server) == [(9001, "submitted")]
    assert any("have run out; beginning anew" in line for line in lines)


def test_a_storage_that_refuses_is_not_asked_for_ever(
    server: Any, client: Client, answers: Path, small_chunks: None, evalai_server: ModuleType
) -> None:
    server.faults.append(evalai_server.Fault("PUT", status=403, times=100))
    with pytest.raises(Refused, match="the storage: HTTP 403"):
        sending.send(client, order(answers))
    assert server.count("PUT") == 1


@pytest.mark.parametrize("after", [None, 0])
def test_a_cut_before_the_first_chunk(
    server: Any, client: Client, answers: Path, small_chunks: None, evalai_server: ModuleType, after: int | None
) -> None:
    server.faults.append(evalai_server.Fault("presigned", after=after))
    with pytest.raises(Unavailable, match="the same command begins again"):
        sending.send(client, order(answers))
    receipt, sent = sending.send(client, order(answers))
    assert arrived(server) == [(sent["number"], "submitted")] and receipt.sendings == [sent]


@pytest.mark.parametrize("call", ["finish_submission_file_upload", "send_submission_message"])
@pytest.mark.parametrize("fault", [{"after": None}, {"after": 0}, {"status": 502}])
def test_a_cut_at_the_end_of_a_chunked_upload(
    server: Any, client: Client, answers: Path, small_chunks: None, evalai_server: ModuleType, call: str,
    fault: dict[str, Any],
) -> None:  # fmt: skip
    server.faults.append(evalai_server.Fault(call, **fault))
    _, sent = sending.send(client, order(answers))
    assert [number for number, _ in arrived(server)] == [9000] and sent["status"] in ("submitted", "running")
    assert server.submissions[9000]["_messages"] == 1 and server.submissions[9000]["_content"] == answers.read_bytes()


def test_a_kill_between_joining_and_starting(
    server: Any, client: Client, answers: Path, small_chunks: None, evalai_server: ModuleType
) -> None:
    server.faults.append(evalai_server.Fault("finish_sub", after=None, times=1))
    server.faults.append(evalai_server.Fault("GET /api/jobs/submission", status=503, times=len(WAITS) + 1))
    with pytest.raises(Unavailable):
        sending.send(client, order(answers))
    sending.send(client, order(answers))  # the storage has joined the chunks: asking again is refused
    assert arrived(server) == [(9000, "submitted")] and server.submissions[9000]["_messages"] == 1


def test_a_refused_end_stays_refused(
    server: Any, client: Client, answers: Path, small_chunks: None, evalai_server: ModuleType
) -> None:
    server.faults.append(evalai_server.Fault("finish_sub", status=406, body={"error": "phase is not active"}, times=2))
    for _ in range(2):
        with pytest.raises(Refused, match="phase is not active"):
            sending.send(client, order(answers))
    sending.send(client, order(answers))
    assert arrived(server) == [(9000, "submitted")]


@pytest.mark.parametrize("fault", [{"after": 0}, {"after": 100}, {"status": 502}])
def test_a_file_that_did_not_arrive_is_sent_again(
    server: Any, client: Client, answers: Path, evalai_server: ModuleType, fault: dict[str, Any]
) -> None:
    server.add(server.phases[0], {"method_name": "m"}, b"older, of the same name")["status"] = "finished"
    server.faults.append(evalai_server.Fault("POST", **fault, times=2))
    _, sent = sending.send(client, order(answers))
    assert sent["number"] == 9001 and list(server.submissions) == [9000, 9001]
    assert server.submissions[9001]["_content"] == answers.read_bytes()


def test_a_file_that_arrived_is_not_sent_again_though_the_reply_was_lost(
    server: Any, client: Client, answers: Path, evalai_server: ModuleType, lines: list[str]
) -> None:
    for _ in range(3):  # older ones of the same name, on two pages of the list
        server.add(server.phases[0], {"method_name": "m"}, b"[]")["status"] = "finished"
    server.faults.append(evalai_server.Fault("POST", after=None))
    receipt, sent = sending.send(client, order(answers))
    assert server.count("POST") == 1 and sent["number"] == 9003
    assert any("looking whether the file arrived" in line for line in lines)
    assert Receipt(receipt.submission).sendings[0]["number"] == 9003


def test_a_kill_before_the_reply_is_found_by_the_next_command(
    server: Any, client: Client, answers: Path, evalai_server: ModuleType, monkeypatch: pytest.MonkeyPatch,
    lines: list[str],
) -> None:  # fmt: skip
    whole = upload.send_whole

    def killed(*given: Any) -> int:
        whole(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(sending, "send_whole", killed)
    with pytest.raises(Interrupted):
        sending.send(client, order(answers))
    assert Receipt(ledger.find(answers)).sendings[0]["status"] == "sending"
    monkeypatch.setattr(sending, "send_whole", whole)
    _, sent = sending.send(client, order(answers))
    assert sent["number"] == 9000 and server.count("POST") == 1
    assert any("had arrived: it is submission 9000" in line for line in lines)
    with pytest.raises(UsageError, match="--again"):
        sending.send(client, order(answers))


@pytest.mark.parametrize("large", [True, False])
def test_another_file_of_the_same_method_is_not_taken_for_a_lost_one(
    server: Any, client: Client, answers: Path, small_chunks: None, evalai_server: ModuleType, large: bool
) -> None:
    server.faults.append(evalai_server.Fault("POST", after=0, times=sending.TRIES))
    with pytest.raises(Unavailable):
        sending.send(client, order(answers, large=False))
    other = answers.with_name("other.json")
    other.write_text(answers.read_text().replace("cat", "cow"))
    server.add(server.phases[0], {"method_name": "m"}, other.read_bytes())  # from another machine: no receipt here
    _, sent = sending.send(client, order(answers, large=large))
    assert sent["number"] == 9001 and server.submissions[9001]["_content"] == answers.read_bytes()


def test_a_lost_one_that_cannot_be_told_is_not_guessed(
    server: Any, client: Client, answers: Path, evalai_server: ModuleType, lines: list[str]
) -> None:
    server.faults.append(evalai_server.Fault("POST", after=0, times=sending.TRIES))
    with pytest.raises(Unavailable):
        sending.send(client, order(answers))
    for number in (9000, 9001):
        server.add(server.phases[0], {"method_name": "m"}, b"[]")
        server.media.pop(f"/media/{number}/input.json")
    server.submissions[9001]["input_file"] = None
    server.add(server.phases[0], {"method_name": "of another"}, b"[]")["input_file"] = None
    server.submissions[9002]["status"] = "finished"
    with pytest.raises(UsageError, match=r"whether it is submission 9001, 9000: .*--again"):
        sending.send(client, order(answers))
    assert server.count("POST") == sending.TRIES and any("9000: the file store: HTTP 404" in line for line in lines)
    _, sent = sending.send(client, order(answers, again=True))
    assert sent["number"] == 9003


def test_what_receipts_tell_of_is_no_candidate(
    server: Any, client: Client, answers: Path, evalai_server: ModuleType
) -> None:
    server.faults.append(evalai_server.Fault("POST", after=0, times=sending.TRIES))
    with pytest.raises(Unavailable):
        sending.send(client, order(answers))
    other = answers.with_name("other.json")
    other.write_text(answers.read_text().replace("cat", "cow"))
    sending.send(client, order(other))
    server.submissions[9000]["input_file"] = None
    assert sending.send(client, order(answers))[1]["number"] == 9001


def test_a_kill_before_anything_arrived_leaves_nothing_behind(
    server: Any, client: Client, answers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*given: Any) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(sending, "send_whole", killed)
        with pytest.raises(Interrupted):
            sending.send(client, order(answers))
    assert main(["submit", "status", str(answers)]) == 2
    receipt, sent = sending.send(client, order(answers))
    assert sent["number"] == 9000 and receipt.sendings == [sent]


def test_a_line_that_always_breaks_is_given_up(
    server: Any, client: Client, answers: Path, evalai_server: ModuleType
) -> None:
    server.faults.append(evalai_server.Fault("POST", after=50, times=100))
    with pytest.raises(Unavailable, match="3 times; the same command tries again, --large in chunks"):
        sending.send(client, order(answers))
    assert server.count("POST") == sending.TRIES


def test_the_days_limit_is_known_before_anything_is_sent(server: Any, client: Client, answers: Path) -> None:
    server.add(server.phases[1], {}, b"[]")["status"] = "finished"
    with pytest.raises(DataError, match=r"exhausted today's submission limit; again in 9 h 0 min.*do not count"):
        sending.send(client, order(answers, phase="test-standard"))
    server.phases[1].in_all = 1
    with pytest.raises(DataError, match="exhausted maximum submission limit; failed"):
        sending.send(client, order(answers, phase="test-standard"))
    assert server.count("POST") == 0 and not (answers.parent / "submissions").exists()


def test_a_failed_one_does_not_count(server: Any, client: Client, answers: Path) -> None:
    server.add(server.phases[1], {}, b"[]")["status"] = "failed"  # of the one that test-standard takes a day
    receipt, sent = sending.send(client, order(answers, phase="test-standard"))
    assert receipt.sendings == [sent] and server.submissions[sent["number"]]["challenge_phase"] == server.phases[1].id
    with pytest.raises(DataError, match="exhausted"):
        sending.send(client, order(answers, phase="test-standard", again=True))


def test_a_limit_that_is_reached_meanwhile(
    server: Any, client: Client, answers: Path, evalai_server: ModuleType
) -> None:
    body = {"error": "The maximum number of submission for today has been reached"}
    server.faults.append(evalai_server.Fault("POST", status=403, body=body))
    with pytest.raises(Refused, match="midnight UTC"):
        sending.send(client, order(answers))
    assert Receipt(ledger.find(answers)).sendings == []


def test_a_closed_phase(server: Any, client: Client, answers: Path) -> None:
    with pytest.raises(DataError, match="phase Test-Challenge of challenge 830 is closed"):
        sending.send(client, order(answers, phase="test-challenge"))


def test_a_team_that_has_not_joined(server: Any, client: Client, answers: Path) -> None:
    server.is_participant = False
    with pytest.raises(Refused, match="make a team and join the challenge"):
        sending.send(client, order(answers))


def test_three_at_a_time(server: Any, client: Client, answers: Path) -> None:
    for _ in range(3):
        server.add(server.phases[0], {}, b"[]")
    with pytest.raises(Refused, match=r"3 submissions that are being processed.*wait until one of yours is evaluated"):
        sending.send(client, order(answers))


def test_uploads_that_broke_off_leave_room_for_others(
    server: Any, client: Client, answers: Path, small_chunks: None, evalai_server: ModuleType
) -> None:
    server.faults.append(evalai_server.Fault("presigned", after=None, times=9))
    for _ in range(sending.MOST_LEFT):
        with pytest.raises(Unavailable, match="the same command begins again"):
            sending.send(client, order(answers))
    with pytest.raises(DataError, match=r"Test-Dev: submissions 9001, 9000 wait for files .* --small"):
        sending.send(client, order(answers))
    _, sent = sending.send(client, order(answers, large=False))
    assert arrived(server) == [(9002, "submitted")] and sent["number"] == 9002


def test_a_wrong_token(server: Any, answers: Path) -> None:
    with (
        Client(server.host, "wrong", lambda line: None) as foreign,
        pytest.raises(UsageError, match="token is wrong or has run out"),
    ):
        sending.send(foreign, order(answers))


@pytest.mark.parametrize("large", [True, False])
def test_a_file_that_changes_while_it_is_sent(
    server: Any, client: Client, answers: Path, small_chunks: None, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    asked = order(answers, large=large)
    post = Client.post

    def changing(self: Client, path: str, *rest: Any) -> Any:
        answers.write_text(answers.read_text().replace("cat", "cow"))
        return post(self, path, *rest)

    monkeypatch.setattr(Client, "post", changing)
    with pytest.raises(DataError, match="was changed while it was sent"):
        sending.send(client, asked)


def test_a_file_that_becomes_shorter_is_not_sent_on(
    server: Any, client: Client, answers: Path, small_chunks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = order(answers)
    begin = upload.ChunkedUpload.begin

    def shortening(self: upload.ChunkedUpload) -> int:
        answers.write_text("[]")
        return begin(self)

    monkeypatch.setattr(upload.ChunkedUpload, "begin", shortening)
    with pytest.raises(DataError, match="became shorter while it was sent"):
        sending.send(client, asked)


def test_a_file_is_read_in_blocks(answers: Path, client: Client) -> None:
    size = answers.stat().st_size
    target = upload.Target(answers, "abc", size, 830, 4101, {})
    shown: list[int] = []
    chunked = upload.ChunkedUpload(client, target)
    blocks = list(chunked._blocks(100, size - 100, lambda done, total: shown.append(done)))
    assert b"".join(blocks) == answers.read_bytes()[100:] and shown[-1] == size


def test_a_damaged_receipt_is_named(client: Client, answers: Path) -> None:
    submission = ledger.find(answers)
    ledger.write_receipt(submission, {"sendings": [3]})
    with pytest.raises(DataError, match=r"receipt\.json is not as"):
        sending.send(client, order(answers))


def test_a_damaged_note_of_an_upload_is_left_alone(
    server: Any, client: Client, answers: Path, small_chunks: None, evalai_server: ModuleType
) -> None:
    server.faults.append(evalai_server.Fault("PUT", after=0, times=len(WAITS) + 1))
    with pytest.raises(Unavailable):
        sending.send(client, order(answers))
    states()[0].write_text("{")
    _, sent = sending.send(client, order(answers))
    assert sent["number"] == 9001 and json.loads(server.submissions[9001]["_content"])
