"""Images with captions, from JSON lines or from `datasets` tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from vlbeit.data.index import cached_table
from vlbeit.data.prepared import prepared_records
from vlbeit.data.records import KINDS
from vlbeit.data.sources.base import DataSource, missing_files, split_files
from vlbeit.data.tables import TextTable, is_saved_table, saved_table
from vlbeit.errors import DataError, some
from vlbeit.types import Record, Records

_LAYOUT = (
    'pairs reads train.jsonl and val.jsonl with lines {"image": "path", "caption": "text" or ["text", ...]}, '
    "or a datasets table with the columns image and caption"
)


class Pairs(DataSource):
    """Images with captions: JSON lines with image and caption (paths relative to the file), or a `datasets` table.

    Of a root that `vlbeit prepare` made, what it wrote is read.
    """

    kinds: ClassVar[tuple[str, ...]] = ("pairs", "images", "text")

    def records(self, kind: str, split: str) -> Records:
        if (prepared := prepared_records(self.root, kind, split, self.config.cache)) is not None:
            return prepared
        if is_saved_table(self.root):
            files = []
        else:
            files = split_files(self.root, split, (".jsonl", ".parquet", ".arrow"), _LAYOUT)
        if files and files[0].suffix == ".jsonl":
            lines = [file for file in files if file.suffix == ".jsonl"]
            return cached_table(self.config.cache, f"pairs-{kind}", lines, KINDS[kind], lambda: _rows(lines, kind))
        return TextTable(saved_table(self.root, split, files, self.config.cache), kind, self.root, "caption")


def _rows(files: Sequence[Path], kind: str) -> Iterator[Record]:
    """Records of one kind; images come once each, in the order of their first line."""
    images: dict[Path, None] = {}
    for file in files:
        for number, name, captions in _lines(file):
            path = file.parent / name
            if kind != "images":
                for position, text in enumerate(captions):
                    record = {"id": f"{name}#{number}.{position}", "text": text}
                    yield record if kind == "text" else {**record, "image": str(path), "picture": str(path)}
            elif path not in images:
                yield {"id": name, "image": str(path)}
            images[path] = None
    if kind != "text" and (missing := missing_files(images)):
        names = ", ".join(map(str, files))
        raise DataError(f"{names}: images that do not exist: {some(missing)}; add them, or remove their lines")


def _lines(file: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Number, image name and captions of every line that is not empty."""
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                captions = [row["caption"]] if isinstance(row["caption"], str) else list(row["caption"])
                if not isinstance(row["image"], str) or not all(isinstance(text, str) for text in captions):
                    raise TypeError("image must be a text, caption a text or a list of texts")
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(f"{file}, line {number}: {type(error).__name__}: {error}; {_LAYOUT}") from error
            yield number, row["image"], captions


SOURCE = Pairs
