"""The built-in data: drawn scenes in the layouts of the real data sets, read by the readers of those."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from vlbeit.config import DataConfig
from vlbeit.data.sources.base import DataSource
from vlbeit.data.sources.coco import Coco
from vlbeit.data.sources.imagefolder import ImageFolder
from vlbeit.data.sources.pairs import Pairs
from vlbeit.data.sources.text import Text
from vlbeit.data.sources.vqa_v2 import VQAv2
from vlbeit.errors import DataError
from vlbeit.types import Records


class Scenes(DataSource):
    """The built-in scenes (`vlbeit prepare scenes`): images, classes, text, captions, questions, boxes."""

    kinds: ClassVar[tuple[str, ...]] = ("images", "labelled", "text", "pairs", "vqa", "boxes")

    def __init__(self, config: DataConfig) -> None:
        super().__init__(config)
        folders = ImageFolder(replace(config, root=str(self.root / "imagefolder")))
        questions, captions, text = VQAv2(config), Pairs(config), Text(config)
        self._readers: dict[str, DataSource] = {
            "images": questions, "labelled": folders, "text": text, "pairs": captions, "vqa": questions,
            "boxes": Coco(config),
        }  # fmt: skip

    def check(self) -> None:
        """Raise `DataError` unless the scenes are there and complete."""
        if not (self.root / "scenes.json").is_file():  # written last
            raise DataError(
                f"data.root={self.root} holds no finished scenes; run: vlbeit prepare scenes --out {self.config.root}"
            )
        super().check()

    def records(self, kind: str, split: str) -> Records:
        return self._readers[kind].records(kind, split)

    def classes(self, kind: str = "labelled") -> list[str]:
        """Names of the labels of a kind of record."""
        return self._readers[kind].classes(kind)


SOURCE = Scenes
