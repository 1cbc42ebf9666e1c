"""HTTP with an EvalAI server: what may be asked again is asked again, and a refusal becomes one line with a remedy.

The token goes into the header of requests to the server itself, and nowhere else: neither to the storage that chunks
are put to, nor to where result files lie, nor along a redirect.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from vlbeit.errors import DataError
from vlbeit.http import LATER, WAITS, httpx, open_client, retry_after
from vlbeit.leaderboard import clock
from vlbeit.leaderboard.refusals import Refused, Unavailable, Unsure, refusal, said

LONGEST_WAIT = 120.0  # seconds that one request waits when a server asks for it; its limit is 60 requests a minute
MOST_BYTES = 64 << 20  # of a result or error file
_SECRET = 8  # letters; a shorter word is a rehearsal's, and may be a part of any other
_TIMEOUT = httpx.Timeout(60.0, connect=15.0)
_NOT_ARRIVED = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)


class Client:
    """Requests to one server, as the owner of a token or, with None, as anybody."""

    def __init__(self, host: str, token: str | None, report: Callable[[str], object] = print) -> None:
        """`host` as of `account.choose_host`. UsageError where the proxy of the environment cannot be used."""
        self.host = host
        self.report = report
        self._token = token
        self._http = open_client(timeout=_TIMEOUT, follow_redirects=False)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str) -> Any:
        """The JSON value at a path of the server; tried again where the server or the line fails.

        Raises Unavailable when it goes on failing, UsageError or DataError for a refusal.
        """
        return self._json(self._again(lambda: self._ask("GET", path)))

    def pages(self, path: str) -> Iterator[dict[str, Any]]:
        """The results of a list, page by page. Of the next page's address only path and query are used: it may name
        a host behind the one that we speak to."""
        seen: set[str] = set()
        while path not in seen:
            seen.add(path)
            page = self.get(path)
            rows = page.get("results") if isinstance(page, dict) else page
            if not isinstance(rows, list):
                raise DataError(f"{self.host}: {path} is no list; is it an EvalAI server? Set --host")
            yield from (row for row in rows if isinstance(row, dict))
            if not isinstance(page, dict) or not page.get("next"):
                return
            following = urlsplit(page["next"])
            path = f"{following.path}?{following.query}"

    def post(self, path: str, fields: Mapping[str, str], file: Path | None = None) -> Any:
        """Post form fields, with a file as `input_file` where there is one, streamed from disk; the JSON of the reply.

        Asked again only where it surely was not carried out.
        Raises Unsure where nobody knows whether it was, otherwise as `get`.
        """
        return self._json(self._again(lambda: self._post_once(path, fields, file)))

    def put(self, url: str, content: Callable[[], Iterable[bytes]], size: int) -> str:
        """Put bytes to an address that was given for them, without the token; returns the ETag.

        Args:
            content: makes the blocks anew for every try; `size` bytes in all.

        Raises:
            Unavailable: it went on failing.
            Refused: the storage does not take it; with status 403 the address has run out.
        """
        headers = {"Content-Length": str(size)}
        response = self._again(lambda: self._http.put(url, content=content(), headers=headers), "the storage")
        if response.status_code >= 300:
            text = f"the storage: HTTP {response.status_code} {self._said(response)}".rstrip()
            raise Refused(f"{text}: it does not take this part of the file; send the file again", response.status_code)
        if "etag" not in response.headers:
            raise Unavailable("the storage took a part of the file but gave no ETag for it; send the file again")
        return response.headers["etag"]

    def fetch(self, url: str) -> bytes:
        """The bytes of a result or error file, asked for without the token; a path is taken to lie on the server."""

        def ask() -> httpx.Response:
            with self._http.stream("GET", urljoin(f"{self.host}/", url), follow_redirects=True) as response:
                taken = bytearray()
                for block in response.iter_bytes():
                    taken += block
                    if len(taken) > MOST_BYTES:
                        raise DataError(f"{urlsplit(url).path}: more than {MOST_BYTES} bytes; fetch it in a browser")
                return httpx.Response(response.status_code, content=bytes(taken), request=response.request)

        response = self._again(ask, "the file store")
        if response.status_code != 200:
            text = f"the file store: HTTP {response.status_code} {self._said(response)}".rstrip()
            raise Refused(f"{text}: look at the submission's page in a browser", response.status_code)
        return response.content

    def _post_once(self, path: str, fields: Mapping[str, str], file: Path | None) -> httpx.Response:
        try:
            if file is None:
                response = self._ask("POST", path, data=dict(fields))
            else:
                with open(file, "rb") as opened:
                    part = {"input_file": (file.name, opened, "application/json")}
                    response = self._ask("POST", path, data=dict(fields), files=part)
        except _NOT_ARRIVED:
            raise
        except httpx.TransportError as error:
            raise Unsure(f"{self.host}: the connection broke off ({_text(error)})") from error
        if response.status_code >= 500:
            raise Unsure(f"{self.host}: HTTP {response.status_code} {self._said(response)}".rstrip())
        return response

    def _ask(self, method: str, path: str, **body: Any) -> httpx.Response:
        headers = {} if self._token is None else {"Authorization": f"Bearer {self._token}"}
        return self._http.request(method, f"{self.host}{path}", headers=headers, **body)

    def _again(self, ask: Callable[[], httpx.Response], where: str = "") -> httpx.Response:
        """The response of the first try that is neither cut off nor asked to come later."""
        where = where or self.host
        for wait in (*WAITS, None):
            try:
                response = ask()
            except httpx.TransportError as error:
                reason, asked = f"no connection ({_text(error)})", 0.0
            except (httpx.InvalidURL, httpx.TooManyRedirects, httpx.DecodingError) as error:
                raise DataError(f"{where}: {_text(error)}; set --host or EVALAI_API_URL to an EvalAI server") from error
            else:
                if response.status_code not in LATER:
                    return response
                reason, asked = f"HTTP {response.status_code} {self._said(response)}".rstrip(), retry_after(response)
            if wait is None or asked > LONGEST_WAIT:
                later = f" in {clock.spell_duration(asked)}" if asked else " later"
                raise Unavailable(f"{where}: {reason}; try the same command again{later}", asked)
            self.report(f"{where}: {reason}; again in {max(wait, asked):g} s")
            clock.pause(max(wait, asked))
        raise AssertionError("the last try returns or raises")

    def _json(self, response: httpx.Response) -> Any:
        if response.status_code >= 300:
            address = re.split("[?#]", response.headers.get("location", ""))[0]  # what follows is often secret
            moved = self._hidden(f" to {address}") if address else ""
            raise refusal(response.status_code, self._said(response) + moved, self.host)
        if not response.content:
            return {}
        try:
            return json.loads(self._hidden(response.text))
        except ValueError as error:
            raise DataError(
                f"{self.host} answers with something else than JSON: is it an EvalAI server? Set --host"
            ) from error

    def _said(self, response: httpx.Response) -> str:
        return self._hidden(said(response))

    def _hidden(self, text: str) -> str:
        """Without the token, should a server repeat it: what it says is printed and stored."""
        return text.replace(self._token, "***") if self._token and len(self._token) >= _SECRET else text


def _text(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
