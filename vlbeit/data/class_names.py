"""Files that name classes. Imports no torch, so that preparing data starts fast."""

from __future__ import annotations

import re
from pathlib import Path

from vlbeit.errors import DataError, some


def read_class_names(path: Path) -> list[str]:
    """As `class_names`, of a file. Raises `DataError` for one that cannot be read, too."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    return class_names(data, str(path))


def class_names(data: bytes, file: str) -> list[str]:
    """The names of the classes, in order, of a file with one a line or in the columns of ADE20K's objectInfo150.txt.

    Those columns are parted by tabs, under a heading: first the index (1, 2, ...), last the name with its synonyms, of
    which the first is taken where no other class has it. Raises `DataError` naming the file and what is wrong.
    """
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{file} cannot be read as UTF-8 text: {error}") from error
    rows = [line.strip().split("\t") for line in lines if line.strip()]
    names = _first_synonyms(file, rows[1:]) if rows and len(rows[0]) > 1 else [row[0] for row in rows]
    if not names:
        raise DataError(f"{file} names no class: write one name a line")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{file}: names used twice: {some(twice)}; give every class a name of its own")
    return names


def _first_synonyms(file: str, rows: list[list[str]]) -> list[str]:
    if wrong := [row[0] for number, row in enumerate(rows, 1) if row[0] != str(number)]:
        raise DataError(f"{file}: the first column must count the classes, 1, 2, ...: {wrong[0]!r} is out of order")
    short = [re.split("[,;]", row[-1])[0].strip() for row in rows]
    return [name if short.count(name) == 1 else row[-1] for name, row in zip(short, rows, strict=True)]
