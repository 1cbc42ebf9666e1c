"""One file from one address: gone on with where it broke off, begun anew where the file has changed meanwhile."""

from __future__ import annotations

import errno
import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from vlbeit.errors import DataError
from vlbeit.http import LATER, WAITS, httpx, open_client, retry_after

SECONDS = 30.0  # without a byte, and a connection counts as stalled
LONGEST_WAIT = 60.0  # that a server may ask for
LINE_EVERY = 10.0  # seconds, where the output is not a terminal
_FULL = {errno.ENOSPC, errno.EDQUOT}
Show = Callable[[int, int | None], None]  # (bytes that are here, bytes in all or None)


class Failed(Exception):
    """An address does not give the file; the text says why, in one line. Another address may."""


class _Later(Exception):
    """This try failed, the next one may not."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class _Origin(NamedTuple):
    """What the bytes of a partial file belong to; they are gone on with only if all of it is the same."""

    address: str
    validator: str  # strong ETag, else Last-Modified, else empty
    total: int | None


def download(address: str, partial: Path, *, size: int | None = None, show: Show = lambda done, total: None) -> None:
    """Bring the file at `address` to `partial`, which may hold its beginning already (`partial`.json says of what).

    Redirects are followed, proxies taken from the environment; stalls and broken connections are tried again.

    Args:
        partial: file to write, whole when this returns; what came stays there when it fails for lack of a connection.
        size: bytes that it must have, None where nobody knows.
        show: told of progress.

    Raises:
        Failed: the address does not give the file.
        DataError: the disk is full.
        UsageError: the proxy settings cannot be used.
    """
    file = _Partial(partial, address)
    host, came, tries = urlsplit(address).hostname, False, 0
    timeout, headers = httpx.Timeout(SECONDS, connect=10.0), {"Accept-Encoding": "identity"}
    with open_client(follow_redirects=True, timeout=timeout, headers=headers) as client:
        while not file.whole:
            before = file.length
            try:
                with client.stream("GET", address, headers=file.range()) as response:
                    came = True
                    _receive(response, file, size, show)
                return
            except httpx.HTTPError as error:
                failure = _Later(" ".join(f"{error}".split()) or type(error).__name__)
            except httpx.InvalidURL as error:
                raise Failed(f"{host}: {error}") from error
            except _Later as error:
                failure = error
            tries = 0 if file.length > before else tries + 1  # one that brought bytes starts the row of waits again
            if tries > (len(WAITS) if came else 1):  # a place that never answered is left soon
                raise Failed(f"{host}: {failure}") from failure
            time.sleep(max(WAITS[max(tries, 1) - 1], failure.wait))


def discard(partial: Path) -> None:
    """Remove a partial file and what is known of it."""
    partial.unlink(missing_ok=True)
    _note(partial).unlink(missing_ok=True)


def megabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:,.1f} MB" if count < 1e8 else f"{count / 1e6:,.0f} MB"


@contextmanager
def progress(name: str, report: Callable[[str], object]) -> Iterator[Show]:
    """A bar on a terminal, else a line to `report` every few seconds."""
    if sys.stdout.isatty():
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        with Progress(TextColumn(name, markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn()) as bar:
            task = bar.add_task(name, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    last = time.monotonic()

    def line(done: int, total: int | None) -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_EVERY:
            last = time.monotonic()
            report(f"{name}: {megabytes(done)}{f' of {megabytes(total)}' if total else ''}")

    yield line


class _Partial:
    """A file that is on its way, and the note beside it of what it is the beginning of."""

    def __init__(self, path: Path, address: str) -> None:
        self.path, self.address = path, address
        self.origin: _Origin | None = None
        with suppress(OSError, ValueError, TypeError):  # no note, or one that broke off
            self.origin = _Origin(**json.loads(_note(path).read_text()))
        if self.origin is None or self.origin.address != address or not path.exists():
            self.drop()

    @property
    def length(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def whole(self) -> bool:
        return self.origin is not None and self.origin.total == self.length

    def drop(self) -> None:
        discard(self.path)
        self.origin = None

    def begin(self, origin: _Origin) -> None:
        self.drop()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _note(self.path).write_text(json.dumps(origin._asdict()))
        self.origin = origin

    def range(self) -> dict[str, str]:
        """Headers that ask for the rest, if the file is still the one that was begun."""
        if self.origin is None or not self.length:
            return {}
        asked = {"Range": f"bytes={self.length}-"}
        return {**asked, "If-Range": self.origin.validator} if self.origin.validator else asked


def _receive(response: httpx.Response, file: _Partial, size: int | None, show: Show) -> None:
    """Write a response's bytes behind those that are here, or in their place."""
    host = urlsplit(file.address).hostname
    if response.status_code in LATER:
        raise _Later(f"HTTP {response.status_code}", min(retry_after(response), LONGEST_WAIT))
    if response.status_code == 416:  # the file is shorter now than what is here
        file.drop()
        raise _Later("HTTP 416")
    if response.status_code not in (200, 206):
        raise Failed(f"{host}: HTTP {response.status_code} {response.reason_phrase}".rstrip())
    if response.headers.get("content-type", "").startswith("text/html"):
        file.drop()
        raise Failed(f"{host}: answered with a web page instead of the file")
    origin, start = _describe(response, file.address)
    if start != (file.length if response.status_code == 206 else 0) or (start and origin != file.origin):
        file.drop()
        raise _Later("the file has changed")
    if response.status_code == 200:
        file.begin(origin)
    if size is not None and origin.total not in (None, size):
        file.drop()
        raise Failed(f"{host}: {origin.total} bytes, not the {size} of the published file")
    _room(file, origin.total)
    _write(response, file, show)
    if origin.total is not None and file.length != origin.total:
        raise _Later(f"broke off after {file.length} of {origin.total} bytes")


def _describe(response: httpx.Response, address: str) -> tuple[_Origin, int]:
    """The file that a response is a part of, and the byte at which the part begins."""
    etag = response.headers.get("etag", "")
    validator = etag if etag and not etag.startswith("W/") else response.headers.get("last-modified", "")
    start, total = 0, response.headers.get("content-length", "")
    if response.status_code == 206:
        found = re.match(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("content-range", ""))
        start, total = (int(found[1]), found[2]) if found else (-1, "")
    return _Origin(address, validator, int(total) if total.isdigit() else None), start


def _write(response: httpx.Response, file: _Partial, show: Show) -> None:
    done = file.length
    total = file.origin.total if file.origin else None
    try:
        with open(file.path, "ab") as out:
            for chunk in response.iter_raw():
                done += out.write(chunk)
                show(done, total)
    except OSError as error:
        if error.errno in _FULL:
            raise _no_room(file, total) from error
        raise


def _room(file: _Partial, total: int | None) -> None:
    if total is not None and shutil.disk_usage(file.path.parent).free < total - file.length:
        raise _no_room(file, total)


def _no_room(file: _Partial, total: int | None) -> DataError:
    missing = f"{megabytes(total - file.length)} are still missing" if total is not None else "the rest does not fit"
    return DataError(
        f"{file.path.parent}: the disk is full: {missing}; make room, or set HF_HOME to a folder on another disk "
        f"(what came, {megabytes(file.length)}, is kept and gone on with)"
    )


def _note(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.json")
