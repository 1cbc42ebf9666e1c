"""A web server on this machine whose answers are told by the path that is asked for."""

from __future__ import annotations

import gzip
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """`/ok/N.jpg` gives picture N; `asked` counts the requests by path, `times` holds when each came."""

    daemon_threads = True

    def __init__(self, picture: Callable[[int], bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.picture, self.asked, self.times = picture, Counter[str](), list[float]()
        self.cookies: list[str] = []  # that came
        self.down = False  # closes every connection without an answer

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        server = self.server
        server.asked[self.path] += 1
        server.times.append(time.monotonic())
        if server.down or self.path.startswith("/drop"):
            self.close_connection = True
            return
        kind, _, rest = self.path.lstrip("/").partition("/")
        number = int("".join(filter(str.isdigit, rest)) or 0)
        if kind == "status":
            self._answer(number)
        elif kind == "flaky" and server.asked[self.path] <= 2:  # the third time it works
            self._answer(429 if number % 2 else 503, {"Retry-After": "0.02"})
        elif kind == "wait" and server.asked[self.path] == 1:
            self._answer(429, {"Retry-After": "0.2"})
        elif kind == "to":
            self._answer(302, {"Location": f"/{rest}"})
        elif kind == "loop":
            self._answer(302, {"Location": self.path})
        elif kind == "nowhere":
            self._answer(302)
        elif kind == "drip":  # a header now and then
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            while not self.wfile.closed:
                try:
                    self.wfile.write(b"X-Wait: 1\r\n")
                except OSError:
                    return
                time.sleep(0.02)
        elif kind == "packed":
            self._answer(200, {"Content-Encoding": "gzip"}, gzip.compress(server.picture(number)))
        elif kind == "cookie":
            server.cookies += self.headers.get_all("Cookie", [])
            self._answer(200, {"Set-Cookie": f"c{number}=1; Path=/"}, server.picture(number))
        elif kind == "page":
            self._answer(200, {"Content-Type": "text/html"}, b"<html>")
        elif kind == "noai":
            self._answer(200, {"X-Robots-Tag": "noai, noindex"}, server.picture(number))
        elif kind == "big":
            self._answer(200, {}, bytes(2_000_000))
        elif kind == "junk":
            self._answer(200, {"Content-Type": "image/jpeg"}, b"no picture")
        elif kind == "cut":
            self._answer(200, {"Content-Type": "image/jpeg"}, server.picture(number)[:-200])
        else:
            time.sleep(0.02 if kind == "slow" else 0)
            self._answer(200, {"Content-Type": "image/jpeg"}, server.picture(number))

    def _answer(self, status: int, headers: dict[str, str] | None = None, data: bytes = b"") -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        """Nothing."""


@contextmanager
def serving(picture: Callable[[int], bytes]) -> Iterator[Server]:
    server = Server(picture)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
