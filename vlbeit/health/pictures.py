"""Pictures: their headers and their ends, or every pixel of them; which of them are the same.

Every picture that is used is opened once, on several threads. By its header one knows format and size; a file that does
not end as its format says is decoded, so that a download that broke off is found without decoding all the others.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from vlbeit.data.records import ImageError, open_header, open_image

from .parts import Part, Place
from .progress import Say, counted

MISSING = "no such file"  # a fault
_ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b"\x3b"}
_TAIL = 64  # bytes at the end in which the end mark must stand: some writers put a little behind it
_HEAD = 1 << 14  # bytes that tell most pictures of one size apart
_FLAT = 8  # of 255: a picture with less between its darkest and its brightest cell looks like any other such
_CLOSE = 4.0  # of 255: mean difference of the cells of two looks that are one picture
_CROWD = 200  # candidates of a quarter of a hash
_CHUNK = 64  # pictures that a thread takes at a time


class Picture(NamedTuple):
    """What was found out about one picture."""

    split: str
    image_id: int | str
    place: Place
    bytes: int
    size: tuple[int, int] | None  # width, height as stored; None: broken
    format: str
    fault: str  # why it is broken, "" where it is not
    look: np.ndarray | None  # 16 x 16 grey cells, where every picture is decoded


def look_at(parts: Sequence[Part], say: Say, *, thorough: bool, threads: int = 0) -> list[Picture]:
    """Every picture that the parts use and have, in order. `thorough` decodes each whole and takes its look too."""
    wanted = [(part.name, key, part.pictures[key]) for part in parts for key in part.asked() if key in part.pictures]
    chunks = [wanted[start : start + _CHUNK] for start in range(0, len(wanted), _CHUNK)]
    found: list[Picture] = []
    Image.init()  # once, before threads ask for it at the same time
    pool = ThreadPoolExecutor(threads or min(16, 4 * (os.cpu_count() or 1)))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, on bombs and damaged EXIF data
            done = pool.map(lambda chunk: [_look(name, key, at, thorough) for name, key, at in chunk], chunks)
            for chunk in counted(done, len(chunks), f"pictures, in {_CHUNK}s", say):
                found += chunk
    finally:
        pool.shutdown(cancel_futures=True)  # on Ctrl-C at once
    return found


def same(pictures: Sequence[Picture]) -> list[list[Picture]]:
    """Groups of pictures that are equal byte for byte: compared by size, then by their first bytes, then whole."""
    groups = [group for group in _grouped(pictures, [picture.bytes for picture in pictures]) if group[0].bytes]
    for most in (_HEAD, None):
        groups = [
            part for group in groups for part in _grouped(group, [_hash(picture.place, most) for picture in group])
        ]
    return groups


class Likeness:
    """Pictures that look the same, such as another size or quality of one; only of those that have a look.

    Candidates share a quarter of their difference hash, which two looks that differ in up to three bits must. Of more
    than `_CROWD` that share one the last ones are compared, and the picture counts as `crowded`: a copy of it among
    the others may be missed. Pictures of one tone are left out.
    """

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self.crowded: list[Picture] = []  # known when all pairs were drawn
        self._seen = [picture for picture in pictures if picture.look is not None and np.ptp(picture.look) >= _FLAT]

    def pairs(self) -> Iterator[tuple[Picture, Picture]]:
        """Those whose looks differ by little in the mean, each pair once."""
        looks = np.array([picture.look for picture in self._seen], dtype=np.int16)
        buckets: dict[tuple[int, int], list[int]] = {}
        for number, look in enumerate(looks):
            candidates: set[int] = set()
            bands = enumerate(np.packbits(_steps(look)).view(np.uint16).tolist())
            shared = [buckets.setdefault(band, []) for band in bands]
            if any(len(bucket) > _CROWD for bucket in shared):
                self.crowded.append(self._seen[number])
            for bucket in shared:
                candidates.update(bucket[-_CROWD:])
                bucket.append(number)
            others = np.array(sorted(candidates), dtype=np.int64)
            for other in others[np.abs(looks[others] - look).mean(axis=(1, 2)) < _CLOSE]:
                yield self._seen[other], self._seen[number]


def _steps(look: np.ndarray) -> np.ndarray:
    """Difference hash, 64 bits in four bands: whether each of eight cells of eight rows is brighter than the next."""
    cells = look.reshape(8, 2, 8, 2).mean(axis=(1, 3))
    return cells > np.roll(cells, -1, axis=1)


def _grouped(pictures: Sequence[Picture], keys: Iterable[object]) -> Iterator[list[Picture]]:
    """Pictures of one key together, where they are more than one."""
    groups: dict[object, list[Picture]] = {}
    for picture, key in zip(pictures, keys, strict=True):
        groups.setdefault(key, []).append(picture)
    return (group for group in groups.values() if len(group) > 1)


def _look(split: str, key: int | str, place: Place, thorough: bool) -> Picture:
    length, size, kind = 0, None, ""
    try:
        with _opened(place) as file:
            length, tail = _length_and_tail(file)
            if not length:
                raise ImageError("it is empty: 0 bytes")
            with open_header(file) as image:
                size, kind = image.size, image.format or ""
                whole = _ENDS.get(kind, b"\0" * (_TAIL + 1)) in tail
                if whole and not thorough:
                    return Picture(split, key, place, length, size, kind, "", None)
                image.verify()  # the check sums of PNG, which decoding does not look at
        decoded = open_image(place if isinstance(place, str) else place())
        return Picture(split, key, place, length, size, kind, "", _seen(decoded) if thorough else None)
    except FileNotFoundError:
        fault = MISSING
    except Image.UnidentifiedImageError:
        fault = "not an image in a known format"
    except Exception as error:  # decoders of damaged files raise about anything, and the report must go on
        fault = str(getattr(error, "strerror", None) or error.__cause__ or error) or type(error).__name__
    return Picture(split, key, place, length, None, kind, fault, None)


def _opened(place: Place) -> BinaryIO:
    return open(place, "rb") if isinstance(place, str) else io.BytesIO(place())


def _length_and_tail(file: BinaryIO) -> tuple[int, bytes]:
    length = file.seek(0, os.SEEK_END)
    file.seek(max(0, length - _TAIL))
    tail = file.read()
    file.seek(0)
    return length, tail


def _hash(place: Place, most: int | None) -> bytes:
    with _opened(place) as file:
        return sha256(file.read(-1 if most is None else most)).digest()


def _seen(image: Image.Image) -> np.ndarray:
    """The look of a picture: 16 by 16 grey cells, uint8."""
    return np.asarray(image.convert("L").resize((16, 16), Image.Resampling.BOX))


def name_of(picture: Picture) -> str:
    """A picture in a message: the name of its file, or its id."""
    return Path(picture.place).name if isinstance(picture.place, str) else str(picture.image_id)
