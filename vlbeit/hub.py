"""The model hub: whether it answers is found out once, before a library would ask for a minute, in many lines."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from urllib.parse import urlsplit
from urllib.request import getproxies


@contextmanager
def asked() -> Iterator[None]:
    """For the length of a `with` libraries may ask the hub, and log nothing: what goes wrong, they raise.

    Where the hub does not answer they look into their caches alone, as with HF_HUB_OFFLINE=1.
    """
    from huggingface_hub import constants

    if not _answers(constants.ENDPOINT):
        constants.HF_HUB_OFFLINE = True
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(disabled)


@cache
def _answers(endpoint: str) -> bool:
    """Whether a connection can be made; True behind a proxy, where only a request would tell."""
    if getproxies():
        return True
    address = urlsplit(endpoint)
    try:
        socket.create_connection((address.hostname or "", address.port or 443), timeout=5).close()
    except OSError:
        return False
    return True
