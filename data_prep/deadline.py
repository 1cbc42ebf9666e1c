"""One deadline for all of a request: a server that sends a byte now and then holds none of the threads for longer."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import httpcore2

_UNTIL = ContextVar("until", default=float("inf"))  # of the request that this thread is at, by time.monotonic


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """What is read and written below, through `TimedBackend`, ends after so many seconds in all."""
    token = _UNTIL.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _UNTIL.reset(token)


def too_late() -> bool:
    """Whether that time is over."""
    return time.monotonic() >= _UNTIL.get()


def _left(timeout: float | None) -> float | None:
    """The seconds that one operation may take. Raises httpcore2.ReadTimeout where none are left."""
    left = _UNTIL.get() - time.monotonic()
    if left <= 0:
        raise httpcore2.ReadTimeout("too slow")
    shortest = left if timeout is None else min(timeout, left)
    return None if shortest == float("inf") else shortest


class TimedBackend(httpcore2.NetworkBackend):
    """The connections of httpcore2 with the deadline in each of their operations. The look-up of a name has none."""

    def __init__(self) -> None:
        self._plain = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        return _Stream(self._plain.connect_tcp(host, port, _left(timeout), local_address, socket_options))

    def sleep(self, seconds: float) -> None:
        self._plain.sleep(seconds)


class _Stream(httpcore2.NetworkStream):
    def __init__(self, plain: httpcore2.NetworkStream) -> None:
        self._plain = plain

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._plain.read(max_bytes, _left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._plain.write(buffer, _left(timeout))

    def close(self) -> None:
        self._plain.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        return _Stream(self._plain.start_tls(ssl_context, server_hostname, _left(timeout)))

    def get_extra_info(self, info: str) -> Any:
        return self._plain.get_extra_info(info)
