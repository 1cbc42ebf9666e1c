"""Fetching by name, from a server on this machine that misbehaves in the ways that servers do."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vlbeit.errors import DataError, UsageError
from vlbeit.models import download, fetch
from vlbeit.models.foreign import is_foreign
from vlbeit.models.known import Published
from vlbeit.models.weights import read_weights

WEIGHTS = b"PK\x03\x04" + random.Random(0).randbytes(1_500_000)
OTHERS = b"PK\x03\x04" + random.Random(1).randbytes(1_500_000)
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
CUT = 600_000


class Handler(BaseHTTPRequestHandler):
    """Hands a request to the next behaviour of its path; the last one stays."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Range")))
        behaviours = self.server.paths.get(self.path, [status(404)])
        (behaviours.pop(0) if len(behaviours) > 1 else behaviours[0])(self)

    def log_message(self, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.paths: dict[str, list[Behaviour]] = {}
        self.asked: list[tuple[str, str | None]] = []

    def handle_error(self, *request: Any) -> None:
        """Clients that leave in the middle of an answer are what is tested."""

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"


Behaviour = Callable[[Handler], None]


def serve(
    data: bytes = WEIGHTS, etag: str = '"a"', stop: int | None = None, stall: float = 0.0, **how: bool
) -> Behaviour:
    """The file, with Range unless `whole`; only `stop` bytes of the answer, then `stall` seconds of nothing.

    `careless` answers a Range although the file is another one; `unsized` tells no length.
    """

    def answer(handler: Handler) -> None:
        asked, same = handler.headers.get("Range"), handler.headers.get("If-Range") in (None, etag)
        start = int(asked[6:-1]) if asked and not how.get("whole") and (same or how.get("careless")) else 0
        if start >= len(data):
            return status(416)(handler)
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if etag:
            handler.send_header("ETag", etag)
        if not how.get("unsized"):
            handler.send_header("Content-Length", str(len(data) - start))
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(data[start : None if stop is None else start + stop])
        handler.wfile.flush()
        time.sleep(stall)
        handler.close_connection = True

    return answer


def status(code: int, body: bytes = b"", **headers: str) -> Behaviour:
    def answer(handler: Handler) -> None:
        handler.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of its own, quick tries, and no proxy of the machine."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr(download, "WAITS", (0.01, 0.02, 0.03))
    monkeypatch.setattr(download, "SECONDS", 0.3)
    for name in [name for name in os.environ if "PROXY" in name.upper() or name.endswith("_OFFLINE")]:
        monkeypatch.delenv(name)
    return tmp_path / "home" / "vlbeit"


def published(*addresses: str, **facts: Any) -> Published:
    return Published("some_weights", "weights", "mim", addresses, "MIT", "https://page", {}, **facts)


def fetched(server: Server, *behaviours: Behaviour, **facts: Any) -> Path:
    server.paths["/w.pth"] = list(behaviours)
    path = fetch.fetch(published(server.url("/w.pth"), **facts), report=lambda line: None)
    left = {each.name for each in path.parent.iterdir()}
    assert left == {path.name, f"{path.name}.sha256", f"{path.name}.lock"}, "partial files are left"
    return path


def refused(server: Server, *behaviours: Behaviour, **facts: Any) -> str:
    server.paths["/w.pth"] = list(behaviours)
    with pytest.raises(DataError) as raised:
        fetch.fetch(published(server.url("/w.pth"), **facts), report=lambda line: None)
    message = str(raised.value)
    assert "\n" not in message and server.url("/w.pth") in message and "some_weights.pth" in message
    return message


def test_a_file_is_fetched_once_and_its_hash_recorded(server: Server, home: Path) -> None:
    path = fetched(server, serve())
    assert path == home / "some_weights.pth" and path.read_bytes() == WEIGHTS
    assert (home / "some_weights.pth.sha256").read_text() == f"{SHA256}  some_weights.pth\n"
    assert fetched(server, serve()) == path and len(server.asked) == 1


@pytest.mark.parametrize(
    ("etag", "stall"),
    [('"a"', 0.0), ('"a"', 5.0), ("", 0.0), ('W/"a"', 0.0)],
    ids=["cut", "stalled", "untagged", "weak"],
)
def test_what_broke_off_is_gone_on_with(server: Server, etag: str, stall: float) -> None:
    begun = time.monotonic()
    path = fetched(server, serve(stop=CUT, etag=etag, stall=stall), sha256=SHA256)
    assert time.monotonic() - begun < 4
    assert path.read_bytes() == WEIGHTS
    assert [asked for _, asked in server.asked] == [None, f"bytes={CUT}-", f"bytes={2 * CUT}-"]


def test_a_later_run_goes_on_where_an_earlier_one_gave_up(server: Server, home: Path) -> None:
    message = refused(server, serve(stop=CUT), status(503))
    assert "HTTP 503" in message and (home / "some_weights.pth.partial").stat().st_size == CUT
    server.asked.clear()
    assert fetched(server, serve()).read_bytes() == WEIGHTS
    assert server.asked == [("/w.pth", f"bytes={CUT}-")]


def test_a_server_that_ignores_range_is_asked_for_all_of_it_again(server: Server) -> None:
    assert fetched(server, serve(stop=CUT, whole=True), serve(whole=True)).read_bytes() == WEIGHTS
    assert len(server.asked) == 2


@pytest.mark.parametrize("careless", [False, True], ids=["If-Range is heeded", "If-Range is not heeded"])
@pytest.mark.parametrize("length", [len(OTHERS), 1_100_000], ids=["same size", "shorter"])
def test_a_file_that_has_changed_meanwhile_is_begun_anew(server: Server, careless: bool, length: int) -> None:
    changed = serve(OTHERS[:length], etag='"b"', careless=careless)
    assert fetched(server, serve(stop=CUT), changed).read_bytes() == OTHERS[:length]
    assert len(server.asked) == (3 if careless else 2)


def test_a_file_shorter_now_than_what_is_here_is_begun_anew(server: Server) -> None:
    path = fetched(server, serve(stop=1_400_000), serve(OTHERS[:1_100_000], etag='"b"', careless=True))
    assert path.read_bytes() == OTHERS[:1_100_000]


def test_an_answer_of_unknown_length(server: Server) -> None:
    assert fetched(server, serve(unsized=True), sha256=SHA256).read_bytes() == WEIGHTS


def test_redirects_are_followed_also_when_going_on(server: Server) -> None:
    server.paths["/elsewhere"] = [serve(stop=CUT), serve()]
    moved = status(302, Location=server.url("/elsewhere"))
    assert fetched(server, moved).read_bytes() == WEIGHTS
    assert server.asked[-1] == ("/elsewhere", f"bytes={CUT}-")


def test_a_server_that_is_busy_is_asked_again(server: Server) -> None:
    assert fetched(server, status(503), status(429, Retry_After="0"), serve()).read_bytes() == WEIGHTS


def test_a_server_that_asks_for_a_wait_gets_it(server: Server) -> None:
    begun = time.monotonic()
    fetched(server, status(503, Retry_After="1"), serve())
    assert time.monotonic() - begun > 1


def test_tries_come_to_an_end(server: Server) -> None:
    assert "HTTP 503" in refused(server, status(503))
    assert len(server.asked) == 1 + len(download.WAITS)


def test_a_server_that_never_gets_on_is_left(server: Server) -> None:
    assert "peer closed connection" in refused(server, serve(stop=0))
    assert len(server.asked) == 1 + len(download.WAITS)


@pytest.mark.parametrize(
    ("answer", "facts", "said"),
    [
        (status(404), {}, "HTTP 404 Not Found"),
        (status(200, b"<html>moved</html>", Content_Type="text/html"), {}, "a web page"),
        (status(200, b"\xef\xbb\xbf<?xml version='1.0'?><Error>" + bytes(1_500_000)), {}, "a web page"),
        (status(200, b"version https://git-lfs"), {}, "it has 23 bytes, too few for a checkpoint"),
        (serve(OTHERS), {"sha256": SHA256}, f"that of the published file {SHA256}"),
        (serve(OTHERS), {"sha256": SHA256[:8]}, f"that of the published file {SHA256[:8]}"),
        (serve(), {"size": 1_000_000}, "1500004 bytes, not the 1000000 of the published file"),
        (serve(unsized=True), {"size": 1_600_000}, "1500004 bytes, the published file has 1600000"),
    ],
    ids=["404", "web page", "web page as a file", "too small", "hash", "hash prefix", "size told", "size"],
)
def test_what_is_not_the_file_is_refused_and_removed(
    server: Server, home: Path, answer: Behaviour, facts: dict[str, Any], said: str
) -> None:
    message = refused(server, answer, **facts)
    assert said in message and "By hand: download" in message and str(home / "some_weights.pth") in message
    assert {each.name for each in home.iterdir()} == {"some_weights.pth.lock"} and len(server.asked) == 1


def test_the_right_hash_or_its_first_digits_are_taken(server: Server) -> None:
    assert fetched(server, serve(), sha256=SHA256[:8], size=len(WEIGHTS)).read_bytes() == WEIGHTS


def test_mirrors_are_tried_in_their_order(server: Server) -> None:
    server.paths.update({"/a.pth": [status(404)], "/b.pth": [serve(OTHERS)], "/c.pth": [serve()], "/d.pth": [serve()]})
    lines: list[str] = []
    weights = published(*(server.url(f"/{name}.pth") for name in "abcd"), sha256=SHA256)
    assert fetch.fetch(weights, lines.append).read_bytes() == WEIGHTS
    assert [path for path, _ in server.asked] == ["/a.pth", "/b.pth", "/c.pth"]
    assert any("HTTP 404" in line and server.url("/b.pth") in line for line in lines)


def test_a_host_that_is_not_there_is_left_soon(server: Server) -> None:
    server.server_close()
    begun = time.monotonic()
    with pytest.raises(DataError, match=r"127\.0\.0\.1: .*refused"):
        fetch.fetch(published(server.url("/w.pth")), print)
    assert time.monotonic() - begun < 2


def test_the_proxy_of_the_environment_is_used(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", server.url(""))
    server.paths["http://nowhere.invalid/w.pth"] = [serve()]
    assert fetch.fetch(published("http://nowhere.invalid/w.pth"), print).read_bytes() == WEIGHTS


def test_a_proxy_that_cannot_be_used_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "gopher://proxy:1")
    with pytest.raises(UsageError, match="proxy"):
        fetch.fetch(published("http://nowhere.invalid/w.pth"), print)


def test_offline_nothing_is_asked_and_the_way_by_hand_is_told(
    server: Server, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = refused(server, serve())
    assert "HF_HUB_OFFLINE is set" in message and f"put it at {home / 'some_weights.pth'}" in message
    assert server.asked == []
    home.mkdir(parents=True, exist_ok=True)
    (home / "some_weights.pth").write_bytes(WEIGHTS)  # as told
    path = fetch.fetch(published(server.url("/w.pth"), sha256=SHA256), print)
    assert path.read_bytes() == WEIGHTS and (home / "some_weights.pth.sha256").read_text().startswith(SHA256)


def test_a_file_put_there_by_hand_that_is_another_one_is_refused(server: Server, home: Path) -> None:
    home.mkdir(parents=True)
    (home / "some_weights.pth").write_bytes(OTHERS)
    with pytest.raises(DataError, match="remove it, and it is fetched anew"):
        fetch.fetch(published(server.url("/w.pth"), sha256=SHA256), print)


def test_a_file_that_has_changed_since_it_was_fetched_is_refused(server: Server) -> None:
    path = fetched(server, serve())
    path.write_bytes(OTHERS)
    with pytest.raises(DataError, match=r"has changed since it was fetched .* remove both"):
        fetch.fetch(published(server.url("/w.pth")), print)


def test_two_processes_at_once_fetch_it_once(server: Server, tmp_path: Path) -> None:
    server.paths["/w.pth"] = [serve(stall=0.5), status(500)]
    code = (
        "from vlbeit.models import fetch, download\n"
        "from vlbeit.models.known import Published\n"
        f"weights = Published('some_weights', '', 'mim', ({server.url('/w.pth')!r},), 'MIT', 'https://page', {{}})\n"
        "print(fetch.fetch(weights, print))"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "shared")}
    runs = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True) for _ in "ab"
    ]
    printed = [run.communicate(timeout=60)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0] and len(server.asked) == 1
    assert printed[0].splitlines()[-1] == printed[1].splitlines()[-1]
    assert (tmp_path / "shared" / "vlbeit" / "some_weights.pth").read_bytes() == WEIGHTS


def test_who_waits_for_another_process_says_so(server: Server, home: Path) -> None:
    home.mkdir(parents=True)
    server.paths["/w.pth"] = [serve()]
    lines: list[str] = []
    with open(home / "some_weights.pth.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        threading.Timer(0.4, fcntl.flock, (held, fcntl.LOCK_UN)).start()
        fetch.fetch(published(server.url("/w.pth")), lines.append)
    assert lines[0] == "another process is fetching some_weights.pth: waiting for it"


class FullDisk:
    """Stands for a file on a disk that is full."""

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def write(self, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_told_before_and_while_writing(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.paths["/w.pth"] = [serve()]
    weights = published(server.url("/w.pth"))
    with monkeypatch.context() as little, pytest.raises(DataError, match=r"the disk is full: 1.5 MB are .*HF_HOME"):
        little.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1_000_000))
        fetch.fetch(weights, print)
    with monkeypatch.context() as full, pytest.raises(DataError, match="the disk is full"):
        full.setattr(download, "open", lambda *args: FullDisk(), raising=False)
        fetch.fetch(weights, print)
    assert fetch.fetch(weights, print).read_bytes() == WEIGHTS


def test_progress_is_told_in_lines_where_there_is_no_terminal(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "LINE_EVERY", 0.0)
    server.paths["/w.pth"] = [serve()]
    lines: list[str] = []
    path = fetch.fetch(published(server.url("/w.pth")), lines.append)
    assert lines[0] == f"fetching some_weights from {server.url('/w.pth')}"
    assert "some_weights: 1.5 MB of 1.5 MB" in lines and lines[-1] == f"{path} (1.5 MB, SHA-256 {SHA256})"


def test_a_bar_on_a_terminal(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    fetched(server, serve())
    assert "some_weights" in capsys.readouterr().out


class Hub:
    """Stands for huggingface_hub.snapshot_download: repositories in a folder, by name and revision."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[tuple[str, str | None]] = []

    def add(self, name: str, *files: str) -> Path:
        folder = self.root / name
        folder.mkdir(parents=True)
        for file in files:
            (folder / file).write_bytes(WEIGHTS)
        return folder

    def download(self, name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        from huggingface_hub.errors import RepositoryNotFoundError

        self.asked.append((name, revision))
        if not (self.root / name).exists():
            raise RepositoryNotFoundError("404\nRepository Not Found", response=_response())
        into = self.root / "snapshots" / name
        into.mkdir(parents=True, exist_ok=True)
        for pattern in allow_patterns:
            for file in (self.root / name).glob(pattern):
                (into / file.name).write_bytes(file.read_bytes())
        return str(into)


def _response() -> Any:
    return download.httpx.Response(404, request=download.httpx.Request("GET", "https://hub"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path / "repositories")
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.download)
    monkeypatch.setattr("vlbeit.hub._answers", lambda endpoint: True)
    return hub


def test_the_hub_stands_in_for_a_file_that_is_gone(server: Server, hub: Hub) -> None:
    hub.add("org/weights", "config.json", "model.safetensors", "pytorch_model.bin", "training_args.bin")
    folder = fetch.fetch(published(server.url("/gone.pth"), "org/weights"), print)
    assert {each.name for each in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert server.asked == [("/gone.pth", None)]


def test_a_repository_without_safetensors_gives_its_other_weights(hub: Hub) -> None:
    hub.add("org/old", "config.json", "pytorch_model.bin", "training_args.bin")
    assert {each.name for each in fetch.locate("org/old@v1").iterdir()} == {"config.json", "pytorch_model.bin"}
    assert set(hub.asked) == {("org/old", "v1")}
    hub.add("org/empty", "config.json")
    with pytest.raises(UsageError, match="org/empty has no weights"):
        fetch.locate("org/empty")


@pytest.mark.parametrize("file", ["beit.pth", "beit.pt", "last.ckpt", "beit.safetensors", "pytorch_model.bin"])
def test_what_is_fetched_is_read(hub: Hub, file: str) -> None:
    """A folder with one file of weights, whatever its name, on all of the way."""
    state = {"w": torch.arange(3.0)}
    folder = hub.add("org/one")
    save_file(state, folder / file) if file.endswith("safetensors") else torch.save(state, folder / file)
    found = fetch.locate("org/one")
    assert is_foreign(found) and torch.equal(read_weights(found)["w"], state["w"])


def test_a_repository_in_the_cache_goes_before_a_file_that_is_not_here(server: Server, hub: Hub, home: Path) -> None:
    hub.add("org/weights", "model.safetensors")
    snapshot = home.parent / "hub" / "models--org--weights" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").touch()
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    server.paths["/w.pth"] = [serve()]
    weights = published(server.url("/w.pth"), "org/weights")
    assert fetch.here(weights) == snapshot
    assert fetch.fetch(weights, print).is_dir() and server.asked == []


def test_a_hub_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fail(*args: Any, **options: Any) -> str:
        raise LocalEntryNotFoundError("nothing here\nand a long explanation")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    monkeypatch.setattr("vlbeit.hub._answers", lambda endpoint: True)
    with pytest.raises(DataError) as raised:
        fetch.fetch(published("org/weights"), print)
    assert "the hub does not answer, and org/weights is not in its cache. By hand: `hf download" in str(raised.value)


def test_a_file_or_folder_that_exists_wins(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("dalle_encoder", "weights.pth", "org"):
        (tmp_path / name).mkdir()
    (tmp_path / "org" / "weights").touch()
    for name in ("dalle_encoder", "weights.pth", "org/weights"):
        assert fetch.locate(name) == Path(name)
    assert fetch.locate("~/weights.pth") == tmp_path / "weights.pth" and hub.asked == []


def test_a_known_name_is_fetched(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fetch.KNOWN, "some_weights", published(server.url("/w.pth")))  # type: ignore[arg-type]
    server.paths["/w.pth"] = [serve()]
    assert fetch.locate("some_weights", lambda line: None).read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vlmo_base_patch16_480_vqq", "did you mean vlmo_base_patch16_480_vqa"),
        ("beit_base_patch16_224_pt22k.pth", "did you mean beit_base_patch16_224_pt22k"),
        ("models/missing.pth", "no such file or folder, and no published name"),
        ("/nowhere/at/all", "no such file or folder"),
        ("qqqqq", "no published name: none is near; `vlbeit models` lists them all"),
        ("", "no such file or folder"),
        ("timm/beit_base_patch16_224", "the hub has no repository timm/beit_base_patch16_224"),
    ],
)
def test_an_unknown_name_is_a_usage_error_with_the_nearest(name: str, said: str, hub: Hub) -> None:
    with pytest.raises(UsageError) as raised:
        fetch.locate(name)
    assert said in str(raised.value) and "\n" not in str(raised.value)
    assert hub.asked == ([("timm/beit_base_patch16_224", None)] if name.startswith("timm/") else [])


@pytest.mark.parametrize(
    ("head", "page"),
    [
        (b"<!DOCTYPE html>", True),
        (b"\n <HTML>", True),
        (b'{"error": "gone"}', True),
        (b"PK\x03\x04", False),
        (b"\x80\x02}q", False),
        (b"\x3c\x01\0\0\0\0\0\0{", False),
        (b"", False),
    ],
)
def test_is_page(head: bytes, page: bool) -> None:
    assert fetch.is_page(head) is page
