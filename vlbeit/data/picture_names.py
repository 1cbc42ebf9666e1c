"""Pictures that a table names: which file is meant, and whether it is there. Each folder is listed once."""

from __future__ import annotations

import hashlib
import os
import re
from functools import cache
from pathlib import Path

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")  # as data=imagefolder
_NUMBER = re.compile(r"(\d+)$")


def number_of(name: str) -> int:
    """A number for what names a picture, 63 bits of a stable hash: tensors can hold it and processes compare it."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 1


class PictureNames:
    """Finds the files that rows of a table mean, most of them below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder.expanduser().absolute())
        self._names = cache(_names)
        self._stems = cache(_stems)

    def find(self, written: str) -> tuple[str, bool]:
        """The absolute path that is meant, and whether there is such a file.

        `written` is a path, absolute or relative to the folder. Where it has no suffix, the picture of that name is
        meant whatever its suffix is, and for a number the one whose name ends in it: 42 finds COCO_..._000042.jpg.
        """
        written = written.removeprefix("file://")
        if "\0" in written:  # no system has such a name
            return written, False
        if "\\" in written and "/" not in written:  # a table that was made on Windows
            written = written.replace("\\", "/")
        path = os.path.normpath(os.path.join(self.folder, os.path.expanduser(written)))
        top, name = os.path.split(path)
        if name in self._names(top):
            return path, True
        if not name.lower().endswith(SUFFIXES):
            stems = self._stems(top)
            found = stems.get(name) or (stems.get(name.lstrip("0") or "0") if name.isdigit() else None)
            if found:
                return os.path.join(top, found), True
        return path, False


def _names(folder: str) -> frozenset[str]:
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())  # of links those that lead somewhere
    except OSError:
        return frozenset()


def _stems(folder: str) -> dict[str, str]:
    """Name without suffix, and the number at its end without leading zeros -> picture; a name goes before a number."""
    names = sorted(name for name in _names(folder) if name.lower().endswith(SUFFIXES))
    numbers = ((_NUMBER.search(os.path.splitext(name)[0]), name) for name in names)
    found = {match[1].lstrip("0") or "0": name for match, name in numbers if match}
    return found | {os.path.splitext(name)[0]: name for name in names}
