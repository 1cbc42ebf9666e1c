"""ADE20K with the 150 classes of the scene parsing challenge (ADEChallengeData2016, sceneparsing.csail.mit.edu)."""

from __future__ import annotations

from typing import ClassVar

from vlbeit.data.class_names import read_class_names
from vlbeit.data.prepared import prepared_classes, prepared_records
from vlbeit.data.sources.base import DataSource
from vlbeit.data.sources.masks import pair_records, split_folder
from vlbeit.errors import DataError
from vlbeit.types import Records

_FOLDERS = {"train": "training", "val": "validation"}
_LAYOUT = "ade20k reads the unpacked ADEChallengeData2016: images/{training,validation}, annotations/ the same way"
_NAMES = "objectInfo150.txt"


class ADE20K(DataSource):
    """ADE20K scene parsing, 150 classes, unpacked ADEChallengeData2016: images/, annotations/, objectInfo150.txt.

    In its masks 0 is "other", which is not scored, and 1..150 are the classes: `task.reduce_zero_label=true`. The
    split `train` is training/, `val` is validation/. A root that `vlbeit prepare` made is read as it states.
    """

    kinds: ClassVar[tuple[str, ...]] = ("images", "masks")

    def records(self, kind: str, split: str) -> Records:
        if (prepared := prepared_records(self.root, kind, split, self.config.cache)) is not None:
            return prepared
        folder = _FOLDERS.get(split, split)
        images = split_folder(self.root / "images", folder, _LAYOUT)
        masks = split_folder(self.root / "annotations", folder, _LAYOUT) if kind == "masks" else None
        return pair_records(images, masks, self.config.cache)

    def classes(self, kind: str = "masks") -> list[str]:
        """The first name of every class of objectInfo150.txt; of a prepared root the names that it states."""
        if (prepared := prepared_classes(self.root, "masks")) is not None:
            return prepared
        path = self.root / _NAMES
        if not path.is_file():
            raise DataError(f"{path} does not exist; it is part of ADEChallengeData2016.zip: copy it there")
        return read_class_names(path)


SOURCE = ADE20K
