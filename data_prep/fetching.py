"""One request to one address: the picture, where else it lies, or why it did not come and whether to ask again."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import NamedTuple

import httpcore2

from vlbeit.http import LATER, httpx, open_client, proxies_set_up, retry_after

from .addresses import Refused, Transport, check_host
from .deadline import too_late, within

REDIRECTS = 5
SECONDS = 10.0  # to connect, and without a byte
LONGEST = 60.0  # seconds for a request, from connecting to the last byte
_OPT_OUT = {"noai", "noimageai", "noindex", "noimageindex"}  # of X-Robots-Tag, as img2dataset honours them
_MOVED = {301, 302, 303, 307, 308}
_NETWORK = (httpx.TransportError, httpcore2.NetworkError, httpcore2.TimeoutException, httpcore2.ProtocolError, OSError)
_TOO_LARGE = re.compile(r"more than (\S+) MB")
_TIMEOUT = (httpx.TimeoutException, httpcore2.TimeoutException)


class Bounds(NamedTuple):
    """What is asked of a server at most."""

    bytes: int
    allow_local: bool = False


class Moved(NamedTuple):
    """The picture lies at another address."""

    url: str


class Unfetched(Exception):
    """Why an address gave no picture; the reason is one of few, so that it can be counted."""

    def __init__(self, reason: str, *, again: bool = False, wait: float = 0.0, answered: bool = True) -> None:
        """`again`: another try may help; `wait`: seconds that the server asks for; `answered`: a server was there."""
        super().__init__(reason)
        self.reason, self.again, self.wait, self.answered = reason, again, wait, answered


def client(connections: int, bounds: Bounds) -> httpx.Client:
    """For `fetch`. UsageError where a proxy that the environment names cannot be used."""
    with proxies_set_up():
        transport = Transport(connections, bounds.allow_local)
    return open_client(
        timeout=httpx.Timeout(SECONDS, pool=LONGEST),
        headers={"Accept-Encoding": "identity", "Accept": "image/*,*/*;q=0.5"},
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # takes none
        transport=transport,
    )


def may_pass(reason: str) -> bool:
    """Whether a row that failed for this reason may be had at another time."""
    later = (f"HTTP {status}" for status in LATER)
    return reason in (*later, "timed out", "connection failed", "no such host", "too slow")


def now_allowed(reason: str, bounds: Bounds) -> bool:
    """Whether a row that failed for this reason was refused by bounds narrower than these."""
    if reason.startswith("refused: private"):
        return bounds.allow_local
    size = _TOO_LARGE.fullmatch(reason)
    return size is not None and float(size[1]) < bounds.bytes / 10**6


def refusal(address: str, bounds: Bounds) -> str:
    """Why an address will not be asked, as far as its own words tell; "" where they do not."""
    try:
        url = httpx.URL(address)
        if url.host and not bounds.allow_local:
            check_host(url.raw_host.decode())
    except (httpx.InvalidURL, UnicodeError, ValueError):
        return ""  # `fetch` says what is wrong with it
    except Refused as error:
        return f"refused: {error}"
    return ""


def fetch(asker: httpx.Client, address: str, bounds: Bounds) -> bytes | Moved:
    """What an address answers, asked once: the bytes, or the address of a redirect. Raises `Unfetched`."""
    try:
        url = httpx.URL(address)
        if url.scheme not in ("http", "https") or not url.host:
            raise Unfetched("no URL that can be asked for")
        with within(LONGEST):
            return _answer(asker, url, bounds.bytes)
    except (httpx.InvalidURL, UnicodeError, ValueError) as error:
        raise Unfetched("no URL that can be asked for") from error
    except Refused as error:
        raise Unfetched(f"refused: {error}") from error


def _answer(asker: httpx.Client, url: httpx.URL, most: int) -> bytes | Moved:
    try:
        with asker.stream("GET", url) as response:
            if response.status_code not in _MOVED:
                return _body(response, most)
            if not (place := response.headers.get("location", "")):
                raise Unfetched("redirect without an address")
            return Moved(str(url.join(place)))
    except _NETWORK as error:
        raise (Unfetched("too slow", again=True) if too_late() else _failure(error)) from error


def _body(response: httpx.Response, most: int) -> bytes:
    status = response.status_code
    if status != 200:
        wait = retry_after(response) if status in (429, 503) else 0.0
        raise Unfetched(f"HTTP {status}", again=status in LATER, wait=wait)
    if refused := _OPT_OUT & set(_directives(response)):
        raise Unfetched(f"opted out: X-Robots-Tag {min(refused)}")
    if response.headers.get("content-type", "").startswith("text/html"):
        raise Unfetched("a web page instead of a picture")
    if response.headers.get("content-encoding", "identity").lower() not in ("", "identity"):
        raise Unfetched("sent packed though asked not to")  # it could unpack to any size
    if int(response.headers.get("content-length", "0") or 0) > most:
        raise _too_large(most)
    parts, size = [], 0
    for chunk in response.iter_raw():
        parts.append(chunk)
        size += len(chunk)
        if size > most:
            raise _too_large(most)
    return b"".join(parts)


def _too_large(most: int) -> Unfetched:
    """With all digits: `now_allowed` compares them."""
    return Unfetched(f"more than {most / 10**6:.15g} MB")


def _directives(response: httpx.Response) -> Iterator[str]:
    """Of X-Robots-Tag, those that are not meant for one crawler alone (`googlebot: noindex`)."""
    for line in response.headers.get_list("x-robots-tag"):
        if ":" not in line:
            yield from (part.strip().lower() for part in line.split(","))


def _failure(error: Exception) -> Unfetched:
    causes = [error, error.__cause__, error.__context__]
    if any(isinstance(cause, _TIMEOUT) for cause in causes):
        return Unfetched("timed out", again=True, answered=False)
    if any(isinstance(cause, ssl.SSLError) for cause in causes) or "certificate" in str(error).lower():
        return Unfetched("no valid certificate")
    if "no such host" in str(error) or "Name or service not known" in str(error):
        return Unfetched("no such host", answered=False)
    return Unfetched("connection failed", again=True, answered=False)
