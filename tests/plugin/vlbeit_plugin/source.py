"""Grey squares, drawn on the fly."""

from __future__ import annotations

import io
from typing import ClassVar

from PIL import Image

from vlbeit.data.records import ListRecords
from vlbeit.data.sources.base import DataSource
from vlbeit.types import Records


class Dots(DataSource):
    """Squares of one grey, half of them dark and half of them bright."""

    kinds: ClassVar[tuple[str, ...]] = ("images", "labelled")

    def check(self) -> None:
        """Nothing is read, so nothing can be missing."""

    def records(self, kind: str, split: str) -> Records:
        rows = []
        for index in range({"train": 8, "val": 4}[split]):
            file = io.BytesIO()
            Image.new("L", (32, 32), 30 + 180 * (index % 2) + index).save(file, format="png")
            label = {"label": index % 2} if kind == "labelled" else {}
            rows.append({"id": f"{split}-{index}", "image": file.getvalue(), **label})
        return ListRecords(rows)

    def classes(self) -> list[str]:
        return ["dark", "bright"]
