"""Folders of pictures with captions that `vlbeit prepare` made: what several sources have in common."""

from __future__ import annotations

from typing import ClassVar

from vlbeit.data.prepared import prepared_records
from vlbeit.data.sources.base import DataSource
from vlbeit.errors import DataError
from vlbeit.types import Records


class PreparedPairs(DataSource):
    """Gives what `vlbeit prepare NAME` wrote, NAME being that of the source."""

    kinds: ClassVar[tuple[str, ...]] = ("pairs", "images", "text")

    def records(self, kind: str, split: str) -> Records:
        if (prepared := prepared_records(self.root, kind, split, self.config.cache)) is not None:
            return prepared
        name = self.config.name
        raise DataError(
            f"data.root={self.root} was not made by `vlbeit prepare`; run: vlbeit prepare {name} "
            f"--from {self.root} --out data/{name}, then data.root=data/{name}"
        )
