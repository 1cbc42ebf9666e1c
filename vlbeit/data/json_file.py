"""Big JSON files of annotations: the items of an array one at a time, so that all objects are never held at once."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from vlbeit.errors import DataError

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODE = json.JSONDecoder().raw_decode


class JsonFile:
    """The text of a JSON object in memory, its items decoded as they are asked for."""

    def __init__(self, path: Path | str, data: bytes | None = None) -> None:
        """Read `path`, or `data`, which has that name. Raises `DataError` where it is no UTF-8."""
        self.path = path
        try:
            self._text = (Path(path).read_bytes() if data is None else data).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}, byte {error.start}: not UTF-8; get the file again") from error

    def print(self) -> str:
        """By what the same file is known again: its length and check sum."""
        data = self._text.encode()
        return f"{len(data)}-{zlib.crc32(data):08x}"

    def items(self, key: str) -> Iterator[tuple[int, Any]]:
        """Where each item of the array under `key` begins, and its value.

        Raises `DataError`, with line and column where the file is no JSON, and where it has no such key.
        """
        yield from self._named(self._items(key))

    def elements(self) -> Iterator[tuple[int, Any]]:
        """As `items`, of a file that is an array itself."""
        yield from self._named(self._array(self._skip(0)))

    def at(self, start: int) -> Any:
        """The value that begins there, as `items` gave it."""
        return _DECODE(self._text, start)[0]

    def _named(self, found: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        """The same, with a `DataError` that says where the file is no JSON."""
        try:
            yield from found
        except json.JSONDecodeError as error:
            raise DataError(
                f"{self.path}, line {error.lineno} column {error.colno}: not JSON ({error.msg}); get the file again"
            ) from error

    def _items(self, key: str) -> Iterator[tuple[int, Any]]:
        text = self._text
        at = self._skip(0, "{")
        while not text.startswith("}", at):
            name, at = _DECODE(text, at)
            at = self._skip(at, ":")
            if name == key:
                yield from self._array(at)
                return
            at = self._passed(at)
            at = self._skip(at)
            at = at if text.startswith("}", at) else self._skip(at, ",")
        raise DataError(f"{self.path} has no {key!r}: is it the right file?")

    def _array(self, at: int) -> Generator[tuple[int, Any], None, int]:
        """Its items; returns where it ends."""
        text = self._text
        at = self._skip(at, "[")
        while not text.startswith("]", at):
            item, end = _DECODE(text, at)
            yield at, item
            at = self._skip(end)
            at = at if text.startswith("]", at) else self._skip(at, ",")
        return at + 1

    def _passed(self, at: int) -> int:
        """Where the value ends that begins there; a long array is read item by item here too."""
        if not self._text.startswith("[", at):
            return _DECODE(self._text, at)[1]
        items = self._array(at)
        while True:
            try:
                next(items)
            except StopIteration as end:
                return end.value

    def _skip(self, at: int, mark: str = "") -> int:
        """Position after white space and `mark`."""
        at = _SPACE.match(self._text, at).end()  # type: ignore[union-attr]
        if mark and not self._text.startswith(mark, at):
            raise json.JSONDecodeError(f"Expecting {mark!r}", self._text, at)
        return _SPACE.match(self._text, at + len(mark)).end()  # type: ignore[union-attr]


def json_rows(path: Path, key: str) -> Iterator[Any]:
    """The items of the array under `key` of a JSON object, one at a time: the objects of a big file are never all held.

    Raises `DataError` with line and column where the file is no JSON.
    """
    for _, item in JsonFile(path).items(key):
        yield item


def json_list(path: Path) -> Iterator[Any]:
    """As `json_rows`, of a file that is an array itself."""
    for _, item in JsonFile(path).elements():
        yield item
