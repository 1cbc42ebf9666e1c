"""The built-in data: drawn scenes in the layouts of the real data sets, read by the readers of those."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from vlbeit.config import DataConfig
from vlbeit.data.class_names import read_class_names
from vlbeit.data.sources.base import DataSource
from vlbeit.data.sources.coco import Coco
from vlbeit.data.sources.imagefolder import ImageFolder
from vlbeit.data.sources.masks import pair_records, split_folder
from vlbeit.data.sources.nlvr2 import NLVR2
from vlbeit.data.sources.pairs import Pairs
from vlbeit.data.sources.text import Text
from vlbeit.data.sources.vqa_v2 import VQAv2
from vlbeit.errors import DataError
from vlbeit.types import Records


class SceneMasks(DataSource):
    """The masks of the scenes, as those of ADE20K: 0 is "other", 1, 2, ... are the shapes of classes.txt."""

    kinds: ClassVar[tuple[str, ...]] = ("masks",)

    def records(self, kind: str, split: str) -> Records:
        part = {"train": "train2014", "val": "val2014", "test": "test2015"}.get(split, split)
        layout = "vlbeit prepare scenes writes train2014, val2014 and test2015"
        masks = split_folder(self.root / "annotations", part, layout)
        return pair_records(split_folder(self.root, part, layout), masks, self.config.cache)

    def classes(self, kind: str = "masks") -> list[str]:
        """Names of the shapes, without "other"."""
        return read_class_names(self.root / "classes.txt")


class Scenes(DataSource):
    """The built-in scenes (`vlbeit prepare scenes`): images, classes, text, captions, questions, masks, boxes."""

    kinds: ClassVar[tuple[str, ...]] = ("images", "labelled", "text", "pairs", "vqa", "masks", "boxes", "nlvr2")

    def __init__(self, config: DataConfig) -> None:
        super().__init__(config)
        folders = ImageFolder(replace(config, root=str(self.root / "imagefolder")))
        questions, captions, text = VQAv2(config), Pairs(config), Text(config)
        self._readers: dict[str, DataSource] = {
            "images": questions, "labelled": folders, "text": text, "pairs": captions, "vqa": questions,
            "masks": SceneMasks(config), "boxes": Coco(config),
            "nlvr2": NLVR2(replace(config, root=str(self.root / "nlvr2"))),
        }  # fmt: skip

    def check(self) -> None:
        """Raise `DataError` unless the scenes are there and complete."""
        if not (self.root / "scenes.json").is_file():  # written last
            raise DataError(
                f"data.root={self.root} holds no finished scenes; run: vlbeit prepare scenes --out {self.config.root}"
            )
        super().check()

    def records(self, kind: str, split: str) -> Records:
        if kind == "nlvr2" and not (self.root / "nlvr2").is_dir():
            raise DataError(
                f"{self.root} is of an older version, without statements about pairs of pictures; this adds them, and "
                f"changes nothing: {self._preparation()}"
            )
        return self._readers[kind].records(kind, split)

    def _preparation(self) -> str:
        """The command that made the folder."""
        made = json.loads((self.root / "scenes.json").read_text(encoding="utf-8"))
        options = " ".join(f"--{name} {made[name]}" for name in ("images", "size", "seed") if name in made)
        return f"vlbeit prepare scenes --out {shlex.quote(str(self.root))} {options}"

    def question_file(self, split: str) -> Path | None:
        """As of VQA v2."""
        return self._readers["vqa"].question_file(split)

    def classes(self, kind: str = "labelled") -> list[str]:
        """Names of the labels of a kind of record."""
        return self._readers[kind].classes(kind)


SOURCE = Scenes
