"""Folders that are put in their place whole: made under another name beside it."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

from vlbeit.errors import DataError


def partial_folder(out: Path) -> Path:
    """A new folder beside `out`; what killed preparations left there more than an hour ago is removed."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for leftover in out.parent.glob(f".{out.name}.partial-*"):
            if time.time() - leftover.stat().st_mtime > 3600:
                shutil.rmtree(leftover, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
        partial.chmod(0o755)
    except OSError as error:
        raise DataError(f"{out}: cannot make the folder: {error.strerror or error}") from error
    return partial
