"""One instances_*.json of COCO beside the folder of its pictures."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from vlbeit.data.instances import CUT, Instances, Picture
from vlbeit.data.json_file import JsonFile
from vlbeit.data.records import looked_at, open_header
from vlbeit.data.sources.base import missing_files
from vlbeit.errors import DataError, some
from vlbeit.types import Record

log = logging.getLogger(__name__)


class CocoFile:
    """The records of one split.

    Raises `DataError`, naming ids and remedy, as `Instances` does, and for pictures that are missing or of another
    size. Boxes that were cut at the edges of their picture and those that were left out are logged.
    """

    def __init__(self, instances: Path, images: Path) -> None:
        self.path, self._images = instances, images
        self._instances = Instances(JsonFile(instances))

    def image_rows(self) -> Iterator[Record]:
        """Records of the kind `images`."""
        for picture in self._pictures().values():
            yield {"id": picture.name, "image": str(self._images / picture.name)}

    def box_rows(self, labels: Mapping[int, int]) -> Iterator[Record]:
        """Records of the kind `boxes`, one a picture, also of those without a box; `labels` by category id."""
        pictures = self._pictures()
        self._check_sizes(list(pictures.values()))
        cut, dropped = 0, []
        for number, picture in pictures.items():
            record, changes = self._instances.record(number, labels)
            cut += sum(change.what == CUT for change in changes)
            dropped += [change.annotation for change in changes if change.what != CUT]
            yield record | {"image": str(self._images / picture.name)}
        if cut:
            log.warning("%s: %d boxes reach out of their pictures and are cut off there", self.path, cut)
        if dropped:
            log.warning(
                "%s: annotations left out since nothing of their box lies in the picture: %s",
                self.path, some(dropped, most=10),
            )  # fmt: skip

    def _pictures(self) -> dict[int, Picture]:
        """Image id -> picture, all of which are there."""
        found = self._instances.pictures
        missing = missing_files(self._images / picture.name for picture in found.values())
        if missing:
            names = [path.name for path in missing]
            raise DataError(
                f"{self.path}: images that are not in {self._images}: {some(names)}; complete the folder, or remove "
                "their entries"
            )
        return found

    def _check_sizes(self, pictures: list[Picture]) -> None:
        """Some of the pictures have the width and height that the file says: its boxes were drawn on these files."""
        for picture in (pictures[row] for row in looked_at(len(pictures))):
            path = self._images / picture.name
            try:
                with open_header(path) as image:
                    size = image.size
            except Exception:  # decoders of damaged files raise about anything
                continue  # the loader names it, and counts it against data.max_bad_fraction
            if size != (picture.width, picture.height):
                raise DataError(
                    f"{path} has {size[0]}x{size[1]} pixels, {self.path} says {picture.width}x{picture.height}: boxes "
                    "are in pixels of the original files, not turned by EXIF data; take those"
                )
