"""HTTP as all that asks servers does it: the library, when to ask again, how long a server may ask for.

httpx2 is what huggingface-hub is built on too: its errors are caught beside ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2 as httpx

import vlbeit
from vlbeit.errors import UsageError

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each further try
LATER = {408, 425, 429, 500, 502, 503, 504}  # statuses of a server that may answer when it is asked again
_FARTHEST = 30 * 86400.0  # seconds


def open_client(**options: Any) -> httpx.Client:
    """A client with our name and these options of httpx. UsageError where the environment's proxy cannot be used."""
    headers = {"User-Agent": f"vlbeit/{vlbeit.__version__}", **options.pop("headers", {})}
    with proxies_set_up():
        return httpx.Client(headers=headers, **options)


@contextmanager
def proxies_set_up() -> Iterator[None]:
    """UsageError for what is raised where a proxy has a scheme that nobody knows, or is SOCKS without its package."""
    try:
        yield
    except (ValueError, ImportError) as error:
        raise UsageError(f"the proxy set in the environment cannot be used: {error}") from error


def retry_after(response: httpx.Response) -> float:
    """Seconds that a response asks to wait by Retry-After, a number or a date; at most 30 days, 0 where it does not."""
    text = response.headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return min(float(text), _FARTHEST)
    try:
        seconds = (parsedate_to_datetime(text).astimezone(UTC) - datetime.now(UTC)).total_seconds()
    except (ValueError, OverflowError):
        return 0.0
    return min(max(0.0, seconds), _FARTHEST)
