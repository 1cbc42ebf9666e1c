"""Folders, archives and JSON files that are looked into one after the other, as if they were one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from vlbeit.data.json_file import JsonFile
from vlbeit.errors import DataError

from .archives import TAR_SUFFIXES, Entry, entries

_ARCHIVES = (".zip", *TAR_SUFFIXES)


class Stores:
    """What --from names: a folder is looked into before those archives in it whose names are known."""

    def __init__(self, parts: Sequence[str], known: Sequence[str]) -> None:
        """`known`: patterns of the archives that are opened where they lie in a folder.

        Raises `DataError` for a path that does not exist or is nothing that can be opened.
        """
        self.paths: list[Path] = []
        for path in (Path(part).expanduser() for part in parts):
            if not path.exists():
                raise DataError(f"{path} does not exist; give --from folders, archives or JSON files")
            if path.is_file() and not path.name.lower().endswith((".json", *_ARCHIVES)):
                raise DataError(f"{path} is no folder, no .json and no archive ({', '.join(_ARCHIVES)})")
            inside = sorted(path.iterdir()) if path.is_dir() else []
            self.paths += [path, *(file for file in inside if any(fnmatch(file.name, name) for name in known))]

    def __str__(self) -> str:
        return ", ".join(map(str, self.paths))

    @property
    def archives(self) -> list[Path]:
        """Those that are neither folders nor JSON files."""
        return [path for path in self.paths if path.is_file() and path.suffix != ".json"]

    def entries(self) -> Iterator[Entry]:
        """All files in a fixed order; of tars each can be opened only until the next one is asked for."""
        for path in self.paths:
            if path.suffix == ".json" and path.is_file():
                whole = path.absolute()
                yield Entry(path.name, path.stat().st_size, "", whole, lambda whole=whole: whole.open("rb"), str(path))  # type: ignore[misc]
            else:
                with entries(path) as found:
                    yield from found

    def json_files(self, pattern: str) -> dict[str, JsonFile]:
        """File name -> the first JSON file of that name, of those whose names match a regular expression."""
        names = re.compile(pattern)
        found: dict[str, JsonFile] = {}
        for entry in self.entries():
            name = PurePosixPath(entry.name).name
            if not entry.refused and name not in found and names.fullmatch(name):
                label = str(entry.value) if entry.value else f"{entry.archive}: {entry.name}"
                found[name] = JsonFile(label, entry.read())
        return found
