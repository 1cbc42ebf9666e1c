"""Plain text, one record a line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from vlbeit.data.index import cached_table
from vlbeit.data.prepared import prepared_records
from vlbeit.data.records import KINDS
from vlbeit.data.row_files import open_table
from vlbeit.data.sources.base import DataSource, split_files
from vlbeit.data.tables import TextTable, is_saved_table, saved_table
from vlbeit.errors import DataError
from vlbeit.types import Record, Records

_LAYOUT = (
    "text reads a .txt file, a folder with train.txt and val.txt, or a table (.csv, datasets) with the column text"
)
_SUFFIXES = ((".txt",), (".parquet", ".arrow"), (".csv",), (".tsv",))  # the first of these that a split has


class Text(DataSource):
    """Text, one record a line: train.txt and val.txt, or a CSV or `datasets` table with the column text.

    Of a root that `vlbeit prepare wiki` made, its documents are read.
    """

    kinds: ClassVar[tuple[str, ...]] = ("text",)

    def records(self, kind: str, split: str) -> Records:
        if (prepared := prepared_records(self.root, kind, split, self.config.cache)) is not None:
            return prepared
        files = [] if is_saved_table(self.root) else split_files(self.root, split, _SUFFIXES, _LAYOUT)
        if files and files[0].suffix in (".txt", ".csv", ".tsv"):
            rows = _lines if files[0].suffix == ".txt" else _cells
            return cached_table(self.config.cache, "text", files, KINDS["text"], lambda: rows(files))
        table = saved_table(self.root, split, files, self.config.cache)
        return TextTable(table, "text", self.root, "text")


def _lines(files: list[Path]) -> Iterator[Record]:
    """The lines that are not empty, without the white space around them."""
    for file in files:
        try:
            with open(file, encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    if text := line.strip():
                        yield {"id": f"{file.name}:{number}", "text": text}
        except UnicodeDecodeError as error:
            raise DataError(f"{file} is not UTF-8 text ({error.reason}); convert it") from error


def _cells(files: list[Path]) -> Iterator[Record]:
    """The texts of the column `text` that are not empty, without the white space around them."""
    for file in files:
        table = open_table(file)
        if "text" not in table.columns:
            raise DataError(f"{file} has no column text; it has {', '.join(table.columns)}: rename one; {_LAYOUT}")
        for row in table.read(["text"]):
            if row.fault:
                raise DataError(f"{file}, {row.place}: {row.fault}; {_LAYOUT}")
            if text := row.values["text"].strip():
                yield {"id": f"{file.name}:{row.place.split()[-1]}", "text": text}


SOURCE = Text
