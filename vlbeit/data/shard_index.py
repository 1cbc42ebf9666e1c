"""The index of a shard: one file that says of every sample where its picture lies, its name and its text.

It is read by offset, an entry at a time: nothing of it stays in memory, however many samples a shard has. The file
holds the texts, then the entries, all of one length, then the number of the first entry of every picture, then a short
JSON with the counts, and its length. A picture with three texts has three entries; with none it has one.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vlbeit.data.names import Names
from vlbeit.data.shard_rows import Row
from vlbeit.errors import DataError
from vlbeit.files import write_by

FORMAT = 2  # raise it when the rows that are read of a shard change: older indexes are then left alone
_ENTRY = np.dtype(
    [
        ("at", "<i8"), ("length", "<i8"), ("words_at", "<i8"), ("picture", "<i8"), ("position", "<i4"),
        ("key_bytes", "<i4"), ("text_bytes", "<i4"), ("path_bytes", "<i4"), ("name_bytes", "<i4"),
    ]
)  # fmt: skip
_NUMBER = np.dtype("<i8")
_MANY = 1000  # entries that are read or written at a time


class Entry(NamedTuple):
    """One sample of a shard."""

    key: str  # of one picture of the shard alone: where a key comes again, `@` and the number of the row are added
    text: str | None
    at: int
    length: int
    path: str
    picture: str
    position: int  # of the text among those of its picture


def write_index(path: Path, rows: Iterable[Row]) -> None:
    """Write the index of a shard from its rows, or nothing."""
    write_by(path, lambda temporary: _write(temporary, rows))


def _write(path: Path, rows: Iterable[Row]) -> None:
    with open(path, "wb") as file, tempfile.TemporaryFile() as entries, tempfile.TemporaryFile() as pictures:
        waiting: list[tuple[int, ...]] = []
        firsts: list[int] = []
        samples = count = 0
        names = Names()
        for row in rows:
            firsts.append(samples)
            key = row.key if names.add(row.key) else f"{row.key}@{count}"
            for position, text in enumerate(row.texts or [None]):
                words = [part.encode() for part in (key, text or "", row.path, row.picture)]
                sizes = [len(part) for part in words]
                if text is None:
                    sizes[1] = -1
                waiting.append((row.at, row.length, file.tell(), count, position, *sizes))
                file.write(b"".join(words))
                samples += 1
            count += 1
            if len(waiting) >= _MANY:
                entries.write(np.array(waiting, dtype=_ENTRY).tobytes())
                pictures.write(np.array(firsts, dtype=_NUMBER).tobytes())
                waiting, firsts = [], []
        entries.write(np.array(waiting, dtype=_ENTRY).tobytes())
        pictures.write(np.array(firsts, dtype=_NUMBER).tobytes())
        places = {"entries_at": file.tell()}
        _append(file, entries)
        places["pictures_at"] = file.tell()
        _append(file, pictures)
        facts = json.dumps({"format": FORMAT, "samples": samples, "pictures": count, **places}).encode()
        file.write(facts + len(facts).to_bytes(8, "little"))


def _append(file: Any, part: Any) -> None:
    part.seek(0)
    shutil.copyfileobj(part, file, 2**20)


class ShardIndex:
    """An index that is read entry by entry. The file is closed with the object."""

    def __init__(self, path: Path) -> None:
        """Raises OSError where it is not there, `DataError` where it is damaged."""
        self._path = path
        self._file = os.open(path, os.O_RDONLY)
        try:
            size = os.fstat(self._file).st_size
            length = int.from_bytes(os.pread(self._file, 8, max(0, size - 8)), "little")
            facts = json.loads(os.pread(self._file, min(length, 4096), max(0, size - 8 - length)))
            self.samples, self.pictures = int(facts["samples"]), int(facts["pictures"])
            self._entries_at, self._pictures_at = int(facts["entries_at"]), int(facts["pictures_at"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is a damaged index ({error}); remove it, it is made anew") from error

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def entry(self, number: int) -> Entry:
        """A sample by its number in the shard."""
        return self._entry(self._entries(number, 1)[0])

    def of_picture(self, number: int) -> Entry:
        """The first sample of a picture, by its number in the shard."""
        data = os.pread(self._file, _NUMBER.itemsize, self._pictures_at + number * _NUMBER.itemsize)
        return self.entry(int(np.frombuffer(data, _NUMBER)[0]))

    def group_ends(self) -> list[int]:
        """Where each row group of a Parquet file ends, in samples; not where pictures are found by byte."""
        ends: list[int] = []
        last = -1
        for first in range(0, self.samples, _MANY):
            for number, group in enumerate(self._entries(first, min(_MANY, self.samples - first))["at"].tolist()):
                if group != last and last >= 0:
                    ends.append(first + number)
                last = group
        return [*ends, self.samples]

    def texts(self, start: int = 0) -> Iterator[str]:
        """The texts of all samples from one on, "" where there is none."""
        for first in range(start, self.samples, _MANY):
            entries = self._entries(first, min(_MANY, self.samples - first))
            begin = int(entries[0]["words_at"])
            last = entries[-1]
            words = os.pread(self._file, int(last["words_at"]) + _words(last) - begin, begin)
            for entry in entries:
                at = int(entry["words_at"]) - begin + int(entry["key_bytes"])
                yield words[at : at + max(0, int(entry["text_bytes"]))].decode()

    def _entries(self, first: int, count: int) -> np.ndarray:
        data = os.pread(self._file, count * _ENTRY.itemsize, self._entries_at + first * _ENTRY.itemsize)
        return np.frombuffer(data, _ENTRY)

    def _entry(self, entry: Any) -> Entry:
        words = os.pread(self._file, _words(entry), int(entry["words_at"]))
        parts = []
        for name in ("key_bytes", "text_bytes", "path_bytes", "name_bytes"):
            size = max(0, int(entry[name]))
            parts.append(words[:size].decode())
            words = words[size:]
        key, text, path, picture = parts
        found = text if entry["text_bytes"] >= 0 else None
        return Entry(key, found, int(entry["at"]), int(entry["length"]), path, picture, int(entry["position"]))


def _words(entry: Any) -> int:
    """Bytes of the words of an entry."""
    return sum(max(0, int(entry[name])) for name in ("key_bytes", "text_bytes", "path_bytes", "name_bytes"))
