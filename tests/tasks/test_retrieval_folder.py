"""Vectors of a folder's pictures: what is kept, what is computed anew."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from vlbeit.errors import DataError
from vlbeit.tasks.retrieval import folder as module
from vlbeit.tasks.retrieval.folder import FolderVectors


class Asked:
    """Gives pictures vectors that count how often they were asked for; `unreadable` ones get none."""

    def __init__(self) -> None:
        self.names: list[list[str]] = []
        self.unreadable: set[str] = set()
        self.breaks_after: int | None = None

    def __call__(self, paths):
        self.names.append([path.name for path in paths])
        for place, path in enumerate(paths):
            if place == self.breaks_after:
                raise KeyboardInterrupt
            if path.name not in self.unreadable:
                yield [place], np.array([[float(path.read_text()), len(self.names)]])


@pytest.fixture
def asked():
    return Asked()


@pytest.fixture
def pictures(tmp_path):
    for number in range(5):
        (tmp_path / "pictures" / "sub").mkdir(parents=True, exist_ok=True)
        (tmp_path / "pictures" / "sub" / f"{number}.jpg").write_text(str(number))
    return sorted((tmp_path / "pictures" / "sub").iterdir())


def kept(tmp_path: Path, facts: str = "weights") -> FolderVectors:
    return FolderVectors(str(tmp_path / "cache"), facts, tmp_path / "pictures")


def test_only_what_is_new_or_changed_is_computed(tmp_path, pictures, asked):
    found = kept(tmp_path)(pictures, asked)
    assert found.pictures == pictures and found.vectors_PE[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert found.vectors_PE.dtype == np.float32 and not found.unreadable
    again = kept(tmp_path)(pictures, asked)
    assert asked.names == [["0.jpg", "1.jpg", "2.jpg", "3.jpg", "4.jpg"]]
    assert np.array_equal(again.vectors_PE, found.vectors_PE)
    pictures[1].write_text("10")
    pictures[3].unlink()
    (pictures[0].parent / "9.jpg").write_text("9")
    now = sorted(pictures[0].parent.iterdir())
    third = kept(tmp_path)(now, asked)
    assert asked.names[1:] == [["1.jpg", "9.jpg"]]
    assert third.pictures == now and third.vectors_PE.tolist() == [[0, 1], [10, 2], [2, 1], [4, 1], [9, 2]]


def test_a_picture_of_the_same_size_that_was_written_later_has_changed(tmp_path, pictures, asked):
    kept(tmp_path)(pictures, asked)
    pictures[1].write_text("7")
    os.utime(pictures[1], ns=(1, 1))
    assert kept(tmp_path)(pictures, asked).vectors_PE[1].tolist() == [7, 2]


def test_other_weights_have_vectors_of_their_own(tmp_path, pictures, asked):
    kept(tmp_path)(pictures, asked)
    assert kept(tmp_path, "others")(pictures, asked).vectors_PE[0].tolist() == [0, 2]
    assert kept(tmp_path)(pictures, asked).vectors_PE[0].tolist() == [0, 1]


def test_what_cannot_be_read_is_left_out_and_tried_again(tmp_path, pictures, asked):
    asked.unreadable = {"2.jpg"}
    found = kept(tmp_path)(pictures, asked)
    assert found.unreadable == [pictures[2]] and len(found.pictures) == len(found.vectors_PE) == 4
    asked.unreadable = set()
    assert kept(tmp_path)(pictures, asked).vectors_PE[2].tolist() == [2, 2]
    assert asked.names[1] == ["2.jpg"]


def test_what_was_stopped_goes_on(tmp_path, pictures, asked, monkeypatch):
    monkeypatch.setattr(module, "_PART_ROWS", 2)
    asked.breaks_after = 3
    with pytest.raises(KeyboardInterrupt):
        kept(tmp_path)(pictures, asked)
    asked.breaks_after = None
    found = kept(tmp_path)(pictures, asked)
    assert asked.names[1] == ["3.jpg", "4.jpg"] and found.vectors_PE[:, 1].tolist() == [1, 1, 1, 2, 2]


def test_many_parts_are_put_together_and_damaged_ones_computed_again(tmp_path, pictures, asked, monkeypatch):
    monkeypatch.setattr(module, "_PART_ROWS", 1)
    monkeypatch.setattr(module, "_MOST_PARTS", 3)
    folder = kept(tmp_path)
    first = folder(pictures, asked)
    parts = list(folder.place.glob("part-*.npz"))
    assert len(parts) == 1
    assert np.array_equal(folder(pictures, asked).vectors_PE, first.vectors_PE) and len(asked.names) == 1
    parts[0].write_bytes(parts[0].read_bytes()[:-40])
    assert folder(pictures, asked).vectors_PE[:, 0].tolist() == [0, 1, 2, 3, 4] and len(asked.names) == 2


def test_a_cache_that_cannot_be_written_is_said(tmp_path, pictures, asked):
    (tmp_path / "cache").write_text("")
    with pytest.raises(DataError, match=r"set \$VLBEIT_CACHE"):
        kept(tmp_path)(pictures, asked)
