"""Pictures that are trained on and scored on: by number, and by the file behind it."""

from __future__ import annotations

from vlbeit.data.overlap import shared_images
from vlbeit.data.records import ListRecords


def asked(*images):
    return ListRecords([{"image_id": number, "image": image} for number, image in images])


def test_shared_images():
    one = asked((1, "a.jpg"), (1, "a.jpg"), (2, "b.jpg"), (3, "train/3.jpg"))
    assert shared_images(one, asked((1, "a.jpg"), (2, "b.jpg"), (2, "b.jpg"), (4, "d.jpg"))) == 2
    assert shared_images(one, asked((3, "val/3.jpg"))) == 0  # each split has its own numbers
    assert shared_images(one, asked((4, "d.jpg"))) == 0
    assert shared_images(asked((1, b"x"), (2, b"y")), asked((2, b"y"))) == 1
