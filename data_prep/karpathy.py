"""Karpathy's splits of COCO and Flickr30k: dataset_coco.json and dataset_flickr30k.json (Karpathy & Fei-Fei 2015).

An object {"dataset": "coco", "images": [{"filename", "split", "sentences": [{"raw", ...}], ...}]}; COCO's pictures
also have "cocoid" and "filepath" (train2014, val2014). The splits are train, val, test, and of COCO also restval: the
rest of val2014, which everybody trains on as well.
"""

from __future__ import annotations

from functools import partial
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from vlbeit.data.json_file import JsonFile
from vlbeit.errors import DataError

SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}
PUBLISHED = {  # pictures
    "dataset_coco.json": {"train": 113_287, "val": 5_000, "test": 5_000},
    "dataset_flickr30k.json": {"train": 29_000, "val": 1_014, "test": 1_000},
}


class Listed(NamedTuple):
    """A picture of the file, and where its captions stand."""

    name: str
    number: int | None  # COCO's id
    split: str  # train, val or test
    own_split: str  # as the file says
    start: int


def listed(file: JsonFile) -> list[Listed]:
    """The pictures of a file. Raises `DataError` with the place of one that is not as described above."""
    found = []
    for place, (start, row) in enumerate(file.items("images"), 1):
        try:
            number = row.get("cocoid")
            texts = [sentence["raw"] for sentence in row["sentences"]]
            if not all(isinstance(text, str) for text in texts):
                raise TypeError("a caption is no text")
            name = PurePosixPath(row["filename"]).name
            split = SPLITS[row["split"]]
            found.append(Listed(name, None if number is None else int(number), split, row["split"], start))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{file.path}, picture {place}: {type(error).__name__}: {error}; is it Karpathy's file?"
            ) from error
    return found


def texts(file: JsonFile, picture: Listed) -> partial[list[str]]:
    """What gives the captions of a picture."""
    return partial(_raw, file, picture.start)


def _raw(file: JsonFile, start: int) -> list[str]:
    row: dict[str, Any] = file.at(start)
    return [sentence["raw"] for sentence in row["sentences"]]


def described(name: str, pictures: list[Listed]) -> str:
    """A line for people: how many pictures each split has, beside the published numbers."""
    counts = {split: sum(picture.split == split for picture in pictures) for split in ("train", "val", "test")}
    rest = sum(picture.own_split == "restval" for picture in pictures)
    said = ", ".join(f"{split} {count:,}" for split, count in counts.items() if count)
    said += f" (train with restval, {rest:,}, as usual)" if rest else ""
    told = "as published" if counts == PUBLISHED.get(name) else "not the published numbers"
    return f"{name}: pictures: {said}; {told}"
