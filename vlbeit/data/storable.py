"""What a table of records can hold: texts of whole letters, numbers of 64 bits. JSON may have others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vlbeit.types import Record

_MOST = 2**63
_AROUND = 20  # letters that a message shows on either side


def storable(written: str) -> str:
    """The same text. ValueError for one that UTF-8 cannot write: with half of a letter's pair of UTF-16."""
    try:
        written.encode()
    except UnicodeEncodeError as error:
        part = written[max(0, error.start - _AROUND) : error.end + _AROUND]
        raise ValueError(f"text has half a letter: {printable(part)}") from error
    return written


def printable(written: str) -> str:
    """A text for messages, halves of letters written as \\ud800, NUL as \\0."""
    return written.encode(errors="backslashreplace").decode().replace("\0", "\\0")


def storable_record(record: Record) -> Record:
    """The same record. ValueError where `storable` refuses a text of it, or for a number beyond 64 bits."""
    values = list(_values(record))
    storable(" ".join(value for value in values if isinstance(value, str)))
    if any(isinstance(value, int) and not -_MOST < value < _MOST for value in values):
        raise ValueError("a number has more than 64 bits")
    return record


def _values(value: Any) -> Iterator[Any]:
    """The values in a record, also those in lists and tuples."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _values(item)
    else:
        yield value
