"""NLVR2: statements about two photographs, from the official files or a prepared folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from vlbeit.config import DataConfig
from vlbeit.data.index import cached_table
from vlbeit.data.nlvr2_files import find_table, official_name, pictures_of, read_examples
from vlbeit.data.prepared import prepared_records
from vlbeit.data.records import KINDS, JoinedRecords
from vlbeit.data.sources.base import DataSource
from vlbeit.errors import DataError, UsageError, some
from vlbeit.types import Record, Records


class NLVR2(DataSource):
    """NLVR2: the official JSON lines (train, dev, test1, ...) and pictures, or what `vlbeit prepare nlvr2` made.

    The split val is dev, test is test1; `dev+test1` is both. `data.images` names the folder of the pictures where they
    do not lie beside the files.
    """

    kinds: ClassVar[tuple[str, ...]] = ("nlvr2",)
    takes_images: ClassVar[bool] = True

    def __init__(self, config: DataConfig) -> None:
        super().__init__(config)
        self.images = Path(config.images).expanduser().absolute() if config.images else self.root

    def records(self, kind: str, split: str) -> Records:
        parts = [self._part(name) for name in split.split("+")]
        if len(parts) == 1:
            return parts[0]
        joined = JoinedRecords(parts)
        if twice := len(joined) - len(set(joined.column("id")[:])):
            raise UsageError(f"{split}: {twice:,} statements are in several of these splits: name others")
        return joined

    def _part(self, split: str) -> Records:
        name = official_name(split)
        prepared = prepared_records(self.root, "nlvr2", name, self.config.cache)
        if prepared is not None:
            return prepared
        table = find_table(self.root, name)
        sources = [table, self.images]
        return cached_table(self.config.cache, f"nlvr2-{name}", sources, KINDS["nlvr2"], lambda: self._rows(table))

    def _rows(self, table: Path) -> Iterator[Record]:
        missing: dict[Path, None] = {}
        seen: set[str] = set()
        for example, (left, right), absent in pictures_of(read_examples(table), self.images):
            missing |= dict.fromkeys(absent)
            if example.identifier in seen:
                raise DataError(f"{example.place}: identifier {example.identifier!r} is there twice; get it again")
            seen.add(example.identifier)
            yield {
                "id": example.identifier,
                "image_0": str(left),
                "image_1": str(right),
                "text": example.text,
                "label": example.label,
                "sentence": example.sentence,
            }
        if missing:
            raise DataError(
                f"{table}: pictures that do not exist: {some(list(missing))}; set data.images= to their folder, or let "
                f"`vlbeit prepare nlvr2` leave out what speaks of them"
            )


SOURCE = NLVR2
