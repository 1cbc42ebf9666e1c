"""By what a picture is known to be the one that something was computed from, without reading it where that can be."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from vlbeit.data.prepared import ORIGIN
from vlbeit.types import Records


def picture_facts(records: Records) -> Iterator[bytes]:
    """Of the picture of every record, in order: of a file its path, size and time of change.

    Of encoded pictures in a table or a prepared folder the table or shard and the place in it, of others the hash.
    """
    if not len(records):
        return
    if not isinstance(records[0]["image"], str | Path):
        try:
            origins = records.column(ORIGIN)[:]
        except (KeyError, ValueError):  # a table of `datasets` says it by the latter
            pass
        else:
            yield from (f"{origin}\n".encode() for origin in origins)
            return
    yield from (_facts(image) for image in records.column("image"))


def _facts(image: str | Path | bytes) -> bytes:
    if isinstance(image, bytes):
        return hashlib.sha256(image).digest()
    try:
        facts = os.stat(image)
    except OSError:
        return f"{image} missing\n".encode()
    return f"{image} {facts.st_size} {facts.st_mtime_ns}\n".encode()
