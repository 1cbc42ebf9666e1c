"""The official files of NLVR2 (arXiv 1811.00491; github.com/lil-lab/nlvr, nlvr2/README.md), as they are published.

    train.json dev.json test1.json test2.json     JSON lines: sentence, label ("True", "False"), identifier, ...
    train/DIRECTORY/STEM-img0.png, -img1.png      pictures of train; DIRECTORY is a field of its lines
    dev/STEM-img0.png, test1/...                  those of the other splits

An identifier is SPLIT-SET-PAIR-SENTENCE, STEM is what is left without its SENTENCE. Up to four pairs of a set share a
sentence: "consistent" is one that is judged rightly on all of them. Plain Python.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vlbeit.errors import DataError

ALIASES = {"val": "dev", "validation": "dev", "test": "test1"}
"""Names of splits that everybody else uses, and what they are here."""

PUBLISHED = {
    "train": (86_373, 23_671), "dev": (6_982, 2_018), "test1": (6_967, 1_995), "test2": (6_970, 1_996),
}  # fmt: skip
"""Examples and different sentences of each split (arXiv 1811.00491, table 1; test1 is Test-P, test2 Test-U)."""

LAYOUT = (
    "nlvr2 reads train.json, dev.json, test1.json (of github.com/lil-lab/nlvr, nlvr2/data) and the pictures "
    "train/*/*.png, dev/*.png, test1/*.png beside them"
)
_IDENTIFIER = re.compile(r"(?P<split>.+)-(?P<set>\d+)-(?P<pair>\d+)-(?P<sentence>\d+)")
_LABELS = {"true": 1, "false": 0}
_TABLES = (".", "data", "nlvr2/data")  # below the folder that is given
_SUBSETS = re.compile(r"((?:un)?balanced)_.+")  # balanced_dev.json lies in balanced/
_PICTURES = (".", "images")


class Example(NamedTuple):
    """A line of an official file."""

    identifier: str
    text: str
    label: int  # 1 true, 0 false, -1 not said
    sentence: str  # the same for all pairs that a sentence is about
    pictures: tuple[str, str]  # below the folder of pictures: left, right
    place: str  # file and line, for messages


def official_name(split: str) -> str:
    """A split as its file is called: val is dev, test is test1."""
    return ALIASES.get(split, split)


def find_table(root: Path, split: str) -> Path:
    """The JSON file of a split, in the folder or where the repository has it. Raises `DataError` with the layout."""
    name = official_name(split)
    subset = _SUBSETS.fullmatch(name)
    for folder in _TABLES:
        for path in (root / folder / f"{name}.json", *([root / folder / subset[1] / f"{name}.json"] if subset else [])):
            if path.is_file():
                return path
    raise DataError(f"{root} has no {name}.json for the split {split!r}; {LAYOUT}")


def read_examples(table: Path) -> Iterator[Example]:
    """The lines of a file. Raises `DataError`, with the line, for what is no line of NLVR2."""
    with open(table, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _example(line, f"{table}, line {number}")


def pictures_of(examples: Iterator[Example], folder: Path) -> Iterator[tuple[Example, tuple[Path, Path], list[Path]]]:
    """Each example with its two pictures, and which of them are missing; every folder is listed once."""
    there = _Folders()
    base: dict[str, Path] = {}
    for example in examples:
        part = example.pictures[0].partition("/")[0]
        if part not in base:
            base[part] = next((folder / each for each in _PICTURES if (folder / each / part).is_dir()), folder)
        left, right = (base[part] / name for name in example.pictures)
        yield example, (left, right), [path for path in (left, right) if not there.has(path)]


class _Folders:
    """The files of folders, each of which is listed when it is first asked about."""

    def __init__(self) -> None:
        self._names: dict[Path, set[str]] = {}

    def has(self, path: Path) -> bool:
        if path.parent not in self._names:
            try:
                with os.scandir(path.parent) as entries:
                    self._names[path.parent] = {entry.name for entry in entries}
            except OSError:
                self._names[path.parent] = set()
        return path.name in self._names[path.parent]


def _example(line: bytes, place: str) -> Example:
    try:
        row = json.loads(line)
        text, identifier = row["sentence"], row["identifier"]
        if not isinstance(text, str) or not isinstance(identifier, str):
            raise TypeError("sentence and identifier must be texts")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{place}: {type(error).__name__}: {error}; get the file again, {LAYOUT}") from error
    found = _IDENTIFIER.fullmatch(identifier)
    if found is None:
        raise DataError(f"{place}: identifier {identifier!r} is not SPLIT-SET-PAIR-SENTENCE; {LAYOUT}")
    part, stem = found["split"], identifier.rpartition("-")[0]
    folder = f"{part}/{row['directory']}" if "directory" in row else part
    if not all(_is_plain(name) for name in (part, stem, *([str(row["directory"])] if "directory" in row else []))):
        raise DataError(f"{place}: identifier or directory is no name of a file ({identifier!r}); {LAYOUT}")
    left, right = (f"{folder}/{stem}-img{side}.png" for side in (0, 1))
    sentence = f"{part}-{found['set']}-{found['sentence']}"
    return Example(identifier, text, _label(row.get("label"), place), sentence, (left, right), place)


def _is_plain(name: str) -> bool:
    """Whether a name from a file stays in the folder that it is put in."""
    return not set("/\\\0").intersection(name) and name not in ("", ".", "..")


def _label(value: Any, place: str) -> int:
    if value is None:
        return -1
    label = _LABELS.get(str(value).strip().lower())
    if label is None:
        raise DataError(f"{place}: label {value!r} is neither True nor False; get the file again")
    return label
