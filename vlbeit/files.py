"""Atomic files: written under a temporary name in the same folder, flushed to disk, then renamed."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def write_by(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Replace `path` by the file that `write` makes at the path it is given, or leave it untouched.

    Parent folders are made. `write` may put another file there, as writers with a temporary name of their own do.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
    os.close(handle)
    try:
        write(Path(temporary))
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def write_bytes(path: str | Path, data: bytes) -> Path:
    """`write_by` of bytes."""
    return write_by(path, lambda temporary: temporary.write_bytes(data))


def write_text(path: str | Path, text: str) -> Path:
    """`write_bytes` of UTF-8 text."""
    return write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any, indent: int | None = None) -> Path:
    """`write_bytes` of one JSON value, ended by a newline."""
    return write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


def finite(value: Any) -> Any:
    """The value with NaN and Inf as None: strict JSON has neither."""
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
