"""A server that speaks EvalAI's interface, for tests and rehearsals: phases, limits, both ways to upload, evaluation.

Replies have the shapes of Cloud-CV/EvalAI 0f04039; what can go wrong there is scripted by `Fault`s. A submission moves
one status on with every look at it. As a script it serves until Ctrl-C:

    python tests/leaderboard/evalai_server.py --questions Q.json --annotations A.json --token SECRET --port 8000
    EVALAI_API_URL=http://127.0.0.1:8000 EVALAI_TOKEN=SECRET vlbeit submit phases
"""

from __future__ import annotations

import argparse
import contextlib
import email.parser
import email.policy
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

CHALLENGE = 830
STEPS = ("submitted", "running")  # what the first looks at a submission see
IN_PROGRESS = ("submitted", "submitting", "resuming", "queued", "running")  # of which a phase takes three at a time
BUSY = (
    "You have 3 submissions that are being processed.                        Please wait for them to finish and then "
    "try again."
)
Scorer = Callable[[list[dict[str, Any]]], dict[str, float]]


@dataclass
class Fault:
    """Something that goes wrong `times` times with requests whose method and path match."""

    match: str  # regular expression of "METHOD /path"
    status: int = 0  # reply with this status; 0: cut the connection
    body: Any = ""  # of the reply: text, or a JSON value
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1
    skip: int = 0  # requests that go well before
    hold: float = 0.0  # seconds before
    after: int | None = 0  # bytes of the request read before the cut; None: carried out, and its reply is cut off


@dataclass
class Phase:
    id: int
    name: str
    codename: str
    is_active: bool = True
    per_day: int = 10
    in_all: int = 100


@dataclass
class Upload:
    phase: Phase
    number: int
    parts: dict[int, bytes] = field(default_factory=dict)
    is_expired: bool = False


def default_phases() -> list[Phase]:
    """Names as people write them; numbers that no client can know."""
    return [
        Phase(4101, "Test-Dev", "test-dev-2021"),
        Phase(4102, "Test-Standard Phase", "test-standard-2021", per_day=1, in_all=5),
        Phase(4103, "Test-Challenge", "test-challenge-2021", is_active=False, per_day=1, in_all=5),
    ]


class EvalAI:
    """The server's memory, and what it does with a file. `with EvalAI(...) as server:` serves at `server.host`."""

    def __init__(self, question_ids: Collection[int], score: Scorer, tokens: Collection[str] = ("SECRET",)) -> None:
        self.question_ids = set(question_ids)
        self.score = score
        self.tokens = set(tokens)
        self.challenge = CHALLENGE
        self.phases = default_phases()
        self.is_participant = True
        self.page = 2  # rows of a page of a list
        self.submissions: dict[int, dict[str, Any]] = {}
        self.uploads: dict[str, Upload] = {}
        self.media: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []  # "METHOD /path"
        self.leaks: list[str] = []  # places outside the interface that a token was sent to, or addresses that hold one
        self.steps: tuple[str, ...] = STEPS
        self.lock = threading.RLock()
        self._http: ThreadingHTTPServer | None = None

    def __enter__(self) -> EvalAI:
        self.serve(0)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._http is not None
        self._http.shutdown()
        self._http.server_close()

    def serve(self, port: int) -> None:
        """Begin to answer in a thread; port 0 takes a free one."""
        handler = type("Handler", (_Handler,), {"evalai": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def host(self) -> str:
        assert self._http is not None
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def count(self, pattern: str) -> int:
        """Requests so far that match."""
        return sum(bool(re.search(pattern, request)) for request in self.requests)

    def add(self, phase: Phase, fields: dict[str, str], content: bytes | None) -> dict[str, Any]:
        number = max(self.submissions, default=8999) + 1
        self.submissions[number] = {
            "id": number, "challenge_phase": phase.id, "participant_team_name": "tiny team", "execution_time": "None",
            "status": "submitting" if content is None else "submitted", "submitted_at": "2026-11-23T14:00:00Z",
            "method_name": fields.get("method_name", ""), "is_public": fields.get("is_public") == "true",
            "stdout_file": None, "stderr_file": None, "submission_result_file": None, "_content": content,
            "_steps": list(self.steps), "_fields": fields, "input_file": None,
        }  # fmt: skip
        if content is not None:
            self.keep_input(self.submissions[number])
        return self.submissions[number]

    def keep_input(self, submission: dict[str, Any]) -> None:
        submission["input_file"] = self._store(submission, "input.json", submission["_content"].decode())

    def step(self, submission: dict[str, Any]) -> None:
        """One look: the next status; after the last one the evaluation is over."""
        if submission["status"] == "submitting" or submission["status"] in ("finished", "failed", "cancelled"):
            return
        if submission["_steps"]:
            submission["status"] = submission["_steps"].pop(0)
            return
        self.evaluate(submission)

    def evaluate(self, submission: dict[str, Any]) -> None:
        phase = next(each for each in self.phases if each.id == submission["challenge_phase"])
        problem, scores = self._scored(submission["_content"])
        submission["execution_time"] = "240.0"
        if problem:
            submission["status"] = "failed"
            submission["stderr_file"] = self._store(submission, "stderr.txt", f"Traceback\nValueError: {problem}\n")
            return
        own = "test-dev" if phase.name == "Test-Dev" else phase.codename.removesuffix("-2021")
        splits = ["test-dev"] if own == "test-dev" else ["test-dev", own]
        result = json.dumps([{split: scores} for split in splits])
        submission["status"] = "finished"
        submission["submission_result_file"] = self._store(submission, "result.json", result)
        submission["stdout_file"] = self._store(submission, "stdout.txt", "evaluating\n")
        submission["stderr_file"] = self._store(submission, "stderr.txt", "")

    def _scored(self, content: bytes) -> tuple[str, dict[str, float]]:
        """What the evaluation finds wrong, else the scores."""
        try:
            entries = json.loads(content)
            if not isinstance(entries, list):
                return "results is not an array of objects", {}
            if {entry["question_id"] for entry in entries} != self.question_ids:
                return "you need to upload predictions on ALL test questions", {}
            if not all(isinstance(entry["answer"], str) for entry in entries):
                return "'int' object has no attribute 'replace'", {}
        except (ValueError, KeyError, TypeError) as error:
            return repr(error), {}
        return "", self.score(entries)

    def _store(self, submission: dict[str, Any], name: str, text: str) -> str:
        path = f"/media/{submission['id']}/{name}"
        self.media[path] = text.encode()
        return self.host + path

    def limits(self, phase: Phase) -> dict[str, Any]:
        counted = [
            each for each in self.submissions.values()
            if each["challenge_phase"] == phase.id and each["status"] not in ("failed", "cancelled")
        ]  # fmt: skip
        if len(counted) >= phase.in_all:
            return {"message": "You have exhausted maximum submission limit!", "submission_limit_exceeded": True}
        if len(counted) >= phase.per_day:
            return {"message": "You have exhausted today's submission limit!", "remaining_time": "32400.000000"}
        today, in_all = phase.per_day - len(counted), phase.in_all - len(counted)
        return {
            "remaining_submissions_this_month_count": in_all,
            "remaining_submissions_today_count": min(today, in_all),
            "remaining_submissions_count": in_all,
        }


class _Reply(Exception):
    """An answer other than the usual one."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(status)
        self.status, self.body = status, body


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every reply waits 40 ms for an acknowledgement
    wbufsize = -1
    evalai: EvalAI

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PUT = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        request = f"{self.command} {self.path}"
        server = self.evalai
        with server.lock:
            server.requests.append(request)
            if any(token in self.path for token in server.tokens):
                server.leaks.append(request)
            fault = self._fault(request)
        if fault is not None:
            time.sleep(fault.hold)
        if fault is not None and fault.after is not None:
            if fault.status == 0:
                self._cut(fault.after)
                return
            self._body()
            self._send(fault.status, fault.body, fault.headers)
            return
        body = self._body()
        with server.lock:
            try:
                status, value, headers = self._answer(body)
            except _Reply as reply:
                status, value, headers = reply.status, reply.body, {}
        if fault is not None:
            self._cut(0)
            return
        self._send(status, value, headers)

    def _fault(self, request: str) -> Fault | None:
        for fault in self.evalai.faults:
            if fault.times and re.search(fault.match, request):
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                return fault
        return None

    def _cut(self, after: int) -> None:
        if after:
            self.rfile.read(after)
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _body(self) -> bytes:
        size = self.headers.get("Content-Length")
        if size is None and self.headers.get("Transfer-Encoding"):
            raise AssertionError("a storage takes no body without a length")
        return self.rfile.read(int(size or 0))

    def _send(self, status: int, value: Any, headers: dict[str, str]) -> None:
        content = value if isinstance(value, bytes) else value.encode() if isinstance(value, str) else None
        if content is None:
            content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, text in headers.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(content)

    def _answer(self, body: bytes) -> tuple[int, Any, dict[str, str]]:
        path = urlsplit(self.path).path
        if path.startswith(("/media/", "/storage/")):
            return self._stored(path, body)
        self._authorize()
        for method, pattern, call in _CALLS:
            match = re.fullmatch(pattern, path)
            if method == self.command and match:
                status, value = call(self, body, *map(int, match.groups()))
                return status, value, {}
        raise _Reply(404, {"detail": "Not found."})

    def _authorize(self) -> None:
        given = self.headers.get("Authorization", "")
        if given and given.removeprefix("Bearer ") not in self.evalai.tokens:
            raise _Reply(401, {
                "detail": "Given token not valid for any token type", "code": "token_not_valid", "messages": [],
            })  # fmt: skip
        if not given and not self.path.startswith("/api/challenges/"):
            raise _Reply(401, {"detail": "Authentication credentials were not provided."})

    def _stored(self, path: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        if "Authorization" in self.headers:
            self.evalai.leaks.append(f"{self.command} {path}")
        if self.command == "GET":
            if path not in self.evalai.media:
                raise _Reply(404, "<Error><Code>NoSuchKey</Code></Error>")
            return 200, self.evalai.media[path], {}
        _, _, upload_id, part = path.split("/")
        upload = self.evalai.uploads[upload_id]
        if upload.is_expired:
            raise _Reply(403, "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>")
        upload.parts[int(part)] = body
        return 200, b"", {"ETag": f'"{len(body)}-{part}"'}

    def _phase(self, number: int) -> Phase:
        for phase in self.evalai.phases:
            if phase.id == number:
                return phase
        raise _Reply(400, {"error": "Challenge Phase does not exist"})

    def _challenge(self, number: int) -> None:
        if number != self.evalai.challenge:
            raise _Reply(404, {"error": f"Challenge {number} does not exist"})

    def _may_send(self, phase: Phase) -> None:
        server = self.evalai
        if not server.is_participant:
            raise _Reply(403, {"error": "You haven't participated in the challenge"})
        if not phase.is_active:
            raise _Reply(406, {"error": "Sorry, cannot accept submissions since challenge phase is not active"})
        if "message" in server.limits(phase):
            raise _Reply(403, {"error": "The maximum number of submission for today has been reached"})
        going_on = [each for each in server.submissions.values() if each["status"] in IN_PROGRESS]
        if len([each for each in going_on if each["challenge_phase"] == phase.id]) >= 3:
            raise _Reply(406, {"error": BUSY})

    def _list_phases(self, body: bytes, challenge: int) -> tuple[int, Any]:
        self._challenge(challenge)
        rows = [
            {
                "id": phase.id, "name": phase.name, "codename": phase.codename, "is_active": phase.is_active,
                "is_public": True, "max_submissions_per_day": phase.per_day, "challenge": challenge,
            }
            for phase in self.evalai.phases
        ]  # fmt: skip
        return 200, self._paged(rows)

    def _paged(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """As the framework pages; the next page's address names the host as the server sees it, behind its proxy."""
        url = urlsplit(self.path)
        page, size = int(parse_qs(url.query).get("page", ["1"])[0]), self.evalai.page
        more = page * size < len(rows)
        return {
            "count": len(rows), "next": f"http://django:8000{url.path}?page={page + 1}" if more else None,
            "previous": None, "results": rows[(page - 1) * size : page * size],
        }  # fmt: skip

    def _limits(self, body: bytes, challenge: int) -> tuple[int, Any]:
        self._challenge(challenge)
        if not self.evalai.is_participant:
            raise _Reply(403, {"error": "You haven't participated in the challenge"})
        rows = [{"id": each.id, "name": each.name, "limits": self.evalai.limits(each)} for each in self.evalai.phases]
        return 200, {"participant_team": "tiny team", "participant_team_id": 7, "phases": rows}

    def _submit(self, body: bytes, challenge: int, number: int) -> tuple[int, Any]:
        self._challenge(challenge)
        phase = self._phase(number)
        self._may_send(phase)
        fields, content = _multipart(self.headers["Content-Type"], body)
        if content is None:
            raise _Reply(400, {"error": "The file URL is missing!"})
        if fields.get("status") != "submitting" or fields.get("submission_metadata") != "[]":
            raise _Reply(406, {"submission_metadata": ["This field is required."]})
        return 201, _public(self.evalai.add(phase, fields, content))

    def _mine(self, body: bytes, challenge: int, number: int) -> tuple[int, Any]:
        rows = [_public(each) for each in self.evalai.submissions.values() if each["challenge_phase"] == number]
        return 200, self._paged(rows[::-1])

    def _status(self, body: bytes, number: int) -> tuple[int, Any]:
        if number == 1:
            raise _Reply(401, {"error": "Sorry, you are not authorized to access this submission"})
        if number not in self.evalai.submissions:
            raise _Reply(404, {"error": f"Submission {number} does not exist"})
        submission = self.evalai.submissions[number]
        self.evalai.step(submission)
        return 200, _public(submission)

    def _presign(self, body: bytes, number: int) -> tuple[int, Any]:
        phase = self._phase(number)
        self._may_send(phase)
        fields = {name: texts[0] for name, texts in parse_qs(body.decode()).items()}
        submission = self.evalai.add(phase, fields, None)
        upload_id = f"upload{submission['id']}"
        self.evalai.uploads[upload_id] = Upload(phase, submission["id"])
        count = int(fields["num_file_chunks"])
        base = f"{self.evalai.host}/storage/{upload_id}"
        urls = [{"partNumber": part, "url": f"{base}/{part}?X-Signature=abc"} for part in range(1, count + 1)]
        return 201, {"presigned_urls": urls, "upload_id": upload_id, "submission_pk": submission["id"]}

    def _finish(self, body: bytes, phase: int, number: int) -> tuple[int, Any]:
        fields = {name: texts[0] for name, texts in parse_qs(body.decode()).items()}
        upload = self.evalai.uploads.get(fields["upload_id"])
        if upload is None or upload.number != number:
            raise _Reply(400, {"error": "Could not finish the upload: NoSuchUpload"})
        parts = json.loads(fields["parts"])
        expected = [
            {"ETag": f'"{len(content)}-{part}"', "PartNumber": part} for part, content in sorted(upload.parts.items())
        ]
        if parts != expected:
            raise _Reply(400, {"error": "Could not finish the upload: InvalidPart"})
        del self.evalai.uploads[fields["upload_id"]]
        content = b"".join(content for _, content in sorted(upload.parts.items()))
        self.evalai.submissions[number]["_content"] = content
        self.evalai.keep_input(self.evalai.submissions[number])
        return 201, {"upload_id": fields["upload_id"], "submission_pk": number}

    def _message(self, body: bytes, phase: int, number: int) -> tuple[int, Any]:
        submission = self.evalai.submissions[number]
        submission["status"] = "submitted"
        submission["_messages"] = submission.get("_messages", 0) + 1
        return 200, {}


_CALLS = (
    ("GET", r"/api/challenges/challenge/(\d+)/challenge_phase", _Handler._list_phases),
    ("GET", r"/api/jobs/(\d+)/remaining_submissions/", _Handler._limits),
    ("POST", r"/api/jobs/challenge/(\d+)/challenge_phase/(\d+)/submission/", _Handler._submit),
    ("GET", r"/api/jobs/challenge/(\d+)/challenge_phase/(\d+)/submission/", _Handler._mine),
    ("GET", r"/api/jobs/submission/(\d+)", _Handler._status),
    ("POST", r"/api/jobs/phases/(\d+)/get_submission_file_presigned_url/", _Handler._presign),
    ("POST", r"/api/jobs/phases/(\d+)/finish_submission_file_upload/(\d+)/", _Handler._finish),
    ("POST", r"/api/jobs/phases/(\d+)/send_submission_message/(\d+)/", _Handler._message),
)


def _public(submission: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in submission.items() if not name.startswith("_")}


def _multipart(kind: str, body: bytes) -> tuple[dict[str, str], bytes | None]:
    """Form fields, and the file `input_file`."""
    head = f"Content-Type: {kind}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
    fields: dict[str, str] = {}
    content = None
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        payload = part.get_payload(decode=True)
        if name == "input_file":
            content = payload
        else:
            fields[name] = payload.decode()
    return fields, content


def scorer(annotations: Path) -> Scorer:
    """Official accuracy of a submission against an annotation file."""
    from vlbeit.tasks.vqa.rules import answer_score

    rows = json.loads(annotations.read_text(encoding="utf-8"))["annotations"]
    truth = {row["question_id"]: row for row in rows}

    def score(entries: list[dict[str, Any]]) -> dict[str, float]:
        given = {entry["question_id"]: entry["answer"] for entry in entries}
        by_type: dict[str, list[float]] = {"overall": []}
        for key, row in truth.items():
            points = 100 * answer_score(given[key], [each["answer"] for each in row["answers"]])
            by_type["overall"].append(points)
            by_type.setdefault(row["answer_type"], []).append(points)
        return {name: round(sum(points) / len(points), 2) for name, points in by_type.items()}

    return score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--challenge", type=int, default=CHALLENGE, help="830 takes test2015 alone")
    parser.add_argument("--token", default="SECRET")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    rows = json.loads(arguments.questions.read_text(encoding="utf-8"))["questions"]
    server = EvalAI([row["question_id"] for row in rows], scorer(arguments.annotations), [arguments.token])
    server.challenge = arguments.challenge
    server.serve(arguments.port)
    print(f"EvalAI's interface at {server.host}, challenge {server.challenge}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()


if __name__ == "__main__":
    main()
