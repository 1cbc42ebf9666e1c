"""Pictures that two tables of questions have in common: what is trained on says little when it is scored on."""

from __future__ import annotations

from vlbeit.types import Records


def shared_images(one: Records, other: Records) -> int:
    """How many images both ask about: by `image_id`, and where pictures are files, the same file behind it.

    Numbers alone do not tell: some data sets count the pictures of every split from 0.
    """
    here, there = _rows(one), _rows(other)
    both = here.keys() & there.keys()
    if not both or not isinstance(one[here[next(iter(both))]]["image"], str):
        return len(both)
    return sum(one[here[image]]["image"] == other[there[image]]["image"] for image in both)


def _rows(records: Records) -> dict[int, int]:
    """Image -> the last row that asks about it."""
    return {image: row for row, image in enumerate(records.column("image_id")[:])}
