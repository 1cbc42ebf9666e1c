"""Captions that are not there: such a record is a broken sample, named, counted and replaced as one without a picture.

The rule is one for all layouts: no caption, null, an empty text or an empty list, and a text of white space alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlbeit.data.records import IncompleteError
from vlbeit.types import Record, Records


class CaptionedRecords:
    """Records with a `text`; reading one whose text is "" raises `IncompleteError`, its columns stay readable."""

    def __init__(self, records: Records, place: str) -> None:
        """`place`: what holds the records, for messages."""
        self._records, self._place = records, place

    @property
    def identity(self) -> str | None:
        """As of `TableRecords`."""
        return getattr(self._records, "identity", None)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        record = self._records[index]
        if not record["text"]:
            raise IncompleteError(f"{self._place}: {record['id']} has no caption", "no caption", record)
        return record

    def column(self, name: str) -> Sequence[Any]:
        return self._records.column(name)
