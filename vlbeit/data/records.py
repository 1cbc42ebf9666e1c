"""Records: rows of a data source before anything is decoded, and the tables that hold them.

Imports neither torch nor `datasets`, so that preparing data starts fast.
"""

from __future__ import annotations

import functools
import io
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import numpy as np
from PIL import ExifTags, Image

from vlbeit.errors import DataError, UserError
from vlbeit.types import Record, Records

if TYPE_CHECKING:
    from datasets import Dataset

Result = TypeVar("Result")

KINDS: dict[str, tuple[str, ...]] = {
    "images": ("id", "image"),
    "labelled": ("id", "image", "label"),
    "text": ("id", "text"),
    "pairs": ("id", "image", "text", "picture"),
    "vqa": (
        "id", "image", "question", "question_id", "image_id", "question_type", "answer_type", "answers",
        "multiple_choice_answer",
    ),
    "nlvr2": ("id", "image_0", "image_1", "text", "label", "sentence"),
    "masks": ("id", "image", "mask"),
    "boxes": ("id", "image", "image_id", "boxes", "labels", "areas", "crowd", "outlines"),
}  # fmt: skip
"""Fields of a record by kind. `id` str · `image` path or encoded bytes · `label` int · `text` str · `picture`
str, the same for all texts of one picture · `question_id` and `image_id` int · `answers` list[str], the raw answers of
the annotators, [] where they are hidden ·
`image_0`, `image_1` left and right picture of a pair, as `image`, `label` 1 where the text is true of them, 0 where it
is false, -1 unknown, `sentence` str, the same for all pairs that a statement was written for ·
`multiple_choice_answer` str, the one that the data set itself lets stand for them, "" where it names none ·
`mask` path or encoded bytes, an index of a class per pixel · `boxes` list of [x, y, width, height] in pixels, and for
each of them `labels` int, `areas` float in square pixels, `crowd` bool (COCO's iscrowd), `outlines` str: COCO's
segmentation as JSON, "" where there is none."""

PREPARED = "prepared.json"
"""What `vlbeit prepare` writes last into a folder of its own making: kind, classes, splits with their shards."""


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""What brings a picture upright, by its EXIF orientation."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")  # JPEG opens MPO too

_LOOKED_AT = 64


class SampleError(DataError):
    """One sample that cannot be used, where others can. Such samples are counted by their `reason`."""

    reason = "unusable"


class ImageError(SampleError):
    """An image that is missing, truncated or in no known format."""

    reason = "unreadable picture"


class MissingImageError(ImageError):
    """The file of an image is not there."""

    reason = "missing picture"


class IncompleteError(SampleError):
    """A sample that lacks a part. `record` has what is there: "" for a text that is not."""

    def __init__(self, message: str, reason: str, record: Record) -> None:
        super().__init__(message, reason, record)  # all of them: an error is sent between processes by its arguments
        self.reason, self.record = reason, record

    def __str__(self) -> str:
        return str(self.args[0])


def open_image(value: str | Path | bytes | Image.Image) -> Image.Image:
    """The whole decoded image as RGB, upright, from a path, encoded bytes or a PIL image; of several frames the first.

    Transparency is left out, as in timm and torchvision. Raises `ImageError` naming the file.
    """
    return _rgb(value) if isinstance(value, Image.Image) else decoded(value, _rgb)


def open_named(path: Path) -> Image.Image:
    """`open_image` of a picture that a user names. Raises DataError, with the remedy, for one that cannot be read."""
    try:
        return open_image(path)
    except ImageError as error:
        raise DataError(f"{error}; give the path of a picture") from error


def open_stored(value: str | Path | bytes | Image.Image) -> Image.Image:
    """As `open_image`, but not turned by its EXIF data: what masks, boxes and outlines count their pixels on.

    As pycocotools and torchvision read it; a picture turned without them would put every object in another place.
    """
    return _unturned(value) if isinstance(value, Image.Image) else decoded(value, _unturned)


def open_header(value: str | Path | bytes | BinaryIO) -> Image.Image:
    """The image of a file or of encoded bytes, with only its header read. Raises what Pillow raises.

    Opens the formats of data sets alone, whatever the name says: Pillow knows many more, and has Ghostscript run EPS.
    """
    return Image.open(io.BytesIO(value) if isinstance(value, bytes) else value, formats=_formats())


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those that the installed Pillow has: AVIF came with 11.3."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def decoded(value: str | Path | bytes, use: Callable[[Image.Image], Result]) -> Result:
    """What `use` makes of the image of a file or of encoded bytes, as it is stored; `use` must load its rows.

    Raises `ImageError` naming the file where that fails, a truncated file included. `use` shall do no more than decode:
    whatever it raises is taken for the file's fault.
    """
    name = described(value)
    try:
        with open_header(value) as image:
            return use(image)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise MissingImageError(f"{name} does not exist") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name} is a folder") from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"{name} is not an image in a known format") from error
    except Exception as error:  # decoders of damaged files raise about anything
        raise ImageError(f"{name} cannot be read: {str(error) or type(error).__name__}") from error


def described(value: str | Path | bytes) -> str:
    """An image of a record in a message: its path, or that it is so many bytes."""
    return f"an image of {len(value)} bytes" if isinstance(value, bytes) else str(value)


def _rgb(image: Image.Image) -> Image.Image:
    return upright(_plain(image)).convert("RGB")


def _unturned(image: Image.Image) -> Image.Image:
    return _plain(image).convert("RGB")


def _plain(image: Image.Image) -> Image.Image:
    """In a mode that converts to RGB as it should; pixels stay where they are."""
    if image.mode.startswith("I;16"):  # Pillow would cut it off at 255 instead of scaling
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range; convert it to 8 bits")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns about the direct way
    return image


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF data says: as people saw it who wrote captions, questions and answers.

    differs from timm and torchvision, which leave such a picture (from a phone, say) lying on its side.
    """
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # EXIF data that is damaged, in whatever way, is no reason to refuse the picture
        return image
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info = {}  # says no longer how to turn it: what opens the result again must leave it as it is
    return turned


class ListRecords:
    """Records in memory: for tests and small tables."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        return dict(self._records[index])

    def column(self, name: str) -> Sequence[Any]:
        return [record[name] for record in self._records]


class TableRecords:
    """Records in a memory-mapped `datasets` table whose columns are the fields."""

    def __init__(self, table: Dataset) -> None:
        self._table = table

    @property
    def identity(self) -> str:
        """What differs where the records do: made of the table's file, not of its rows."""
        return str(self._table._fingerprint)

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Record:
        return self._table[int(index)]

    def column(self, name: str) -> Sequence[Any]:
        return self._table[name]  # a lazy column: read in pieces


class FieldColumn(Sequence[Any]):
    """One field of records, each value read when it is asked for."""

    def __init__(self, records: Records, name: str) -> None:
        self._records, self._name = records, name

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        try:
            return self._records[index][self._name]
        except IncompleteError as error:  # what it has it has all the same
            return error.record[self._name]


class StreamedTexts(Sequence[str]):
    """Texts to be read one behind the other, of a stream that may be too long to read whole for a small purpose."""

    def sample(self, most: int) -> Iterator[str]:
        """At most so many of them, about."""
        return islice(iter(self), most)


class FirstRecords:
    """The first `count` of other records."""

    def __init__(self, records: Records, count: int) -> None:
        self._records, self._count = records, count

    @property
    def identity(self) -> str | None:
        """As of `TableRecords`; None where the other records do not tell."""
        known = getattr(self._records, "identity", None)
        return None if known is None else f"{known} {self._count}"

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self._count:
            raise IndexError(f"record {index} of {self._count}")
        return self._records[index]

    def column(self, name: str) -> Sequence[Any]:
        column = self._records.column(name)
        return FieldColumn(self, name) if isinstance(column, FieldColumn) else column[: self._count]


class ChosenRecords:
    """Some rows of other records, in the order given."""

    def __init__(self, records: Records, rows: Sequence[int]) -> None:
        self._records, self._rows = records, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        return self._records[self._rows[index]]

    def column(self, name: str) -> Sequence[Any]:
        column = self._records.column(name)
        if isinstance(column, FieldColumn):  # of pictures, perhaps: never all at once
            return FieldColumn(self, name)
        whole = column[:]  # a memory-mapped column is slow to read value by value
        return [whole[row] for row in self._rows]


class JoinedRecords:
    """Several tables of one kind, one behind the other."""

    def __init__(self, parts: Sequence[Records]) -> None:
        self._parts = parts
        self._ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        part = bisect_right(self._ends, index)
        return self._parts[part][index - (self._ends[part - 1] if part else 0)]

    def column(self, name: str) -> Sequence[Any]:
        columns = [part.column(name) for part in self._parts]
        if any(isinstance(column, FieldColumn) for column in columns):
            return FieldColumn(self, name)
        return [value for column in columns for value in column[:]]  # as above


def take(records: Records, count: int | None) -> Records:
    """The first `count` records; all of them for None. Records with an order of their own know how to be cut."""
    if count is None or count >= len(records):
        return records
    first: Callable[[int], Records] | None = getattr(records, "first", None)
    return FirstRecords(records, count) if first is None else first(count)


def looked_at(count: int) -> range:
    """Which of `count` rows or files are opened before any work, to know early what is wrong: 64, spread over all."""
    return range(0, count, max(1, -(-count // _LOOKED_AT)))


def check_several_pictures(pairs: Records) -> None:
    """DataError where all pairs to train on are of one picture; what streams is not read for that."""
    names = pairs.column("picture")
    if not isinstance(names, FieldColumn) and all(name == names[0] for name in names):
        raise DataError("all pairs to train on are of one picture: there is no other to tell it from")


def spread(records: Records, parts: int = 64) -> Records:
    """The records in another order: those in a run of up to `parts` of them lie far apart in the old one.

    So a batch compares captions of different pictures, not the captions of one picture that stand side by side.
    """
    count = len(records)
    stride = -(-count // parts)
    starts = sorted(range(stride), key=lambda start: (start % -(-stride // 2), start))  # 0, half, 1, half + 1, ...
    return ChosenRecords(records, [row for start in starts for row in range(start, count, stride)])
