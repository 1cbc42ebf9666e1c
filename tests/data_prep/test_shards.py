"""The journal and the shards of a preparation: names with odd letters, lost files, hashes, memory."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from vlbeit.data.names import Names
from vlbeit.data.prepared import prepared_records
from vlbeit.data_prep import hashes, imagenet, shards
from vlbeit.data_prep.pictures import examine_picture
from vlbeit.data_prep.shards import Finding, Item
from vlbeit.errors import DataError, Interrupted


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("VLBEIT_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(shards, "_LOOKAHEAD", 1)
    monkeypatch.setattr(shards, "_ROWS", 2)


def prepare(out: Path, source: Path, **options) -> list[str]:
    lines: list[str] = []
    imagenet.prepare(out, from_=[str(source)], report=lines.append, **options)
    return lines


def interrupt(out: Path, source: Path, number: int) -> None:
    """A preparation that is stopped at the picture with this number, from 1."""
    count = 0

    def examine(item, check):
        nonlocal count
        if (count := count + 1) == number:
            raise KeyboardInterrupt
        return examine_picture(item, check)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(imagenet, "examine_picture", examine)
        prepare(out, source)


@pytest.fixture
def source(make_tar, make_picture):
    return make_tar("train.tar", [(f"cat/{i}.jpg", make_picture(i)) for i in range(7)])


def test_a_name_with_a_line_separator(tmp_path, make_tar, make_picture):
    names = ["cat/1\u2028\x85.jpg", "cat/2.jpg", "cat/3.jpg", "cat/4.jpg"]
    source = make_tar("train.tar", [(name, make_picture() if name[4] != "1" else b"broken") for name in names])
    interrupt(tmp_path / "out", source, 4)
    with open(tmp_path / "out/unfinished.jsonl", "ab") as journal:
        journal.write('{"id": "caf\u00e9'.encode()[:-1])  # killed in the middle of a letter
    lines = prepare(tmp_path / "out", source)
    assert "train: goes on behind 2 records" in lines
    (entry,) = map(json.loads, (tmp_path / "out/bad.jsonl").read_text().splitlines())
    assert entry["id"] == names[0] and entry["what"].startswith("cannot be read")


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_shard_that_was_lost_is_written_again(tmp_path, source, damage):
    out = tmp_path / "out"
    interrupt(out, source, 7)
    kept = out / "train-00000.parquet"
    before = kept.stat().st_mtime_ns
    second = out / "train-00001.parquet"
    if damage == "gone":
        second.unlink()
    else:
        second.write_bytes(second.read_bytes()[:-9])
    lines = prepare(out, source)
    assert "train: goes on behind 2 records" in lines and kept.stat().st_mtime_ns == before
    assert f"{second.name} is missing or damaged: it and what follows are written again" in lines
    records = prepared_records(out, "labelled", "train")
    assert list(records.column("id")) == [f"cat/{i}.jpg" for i in range(7)]


def test_hashes_are_compared_whenever_it_is_asked(tmp_path, source, monkeypatch):
    right = hashlib.md5(source.read_bytes(), usedforsecurity=False).hexdigest()
    interrupt(tmp_path / "out", source, 5)
    monkeypatch.setitem(hashes.PUBLISHED, source.name, ("md5", "0" * 32))
    with pytest.raises(DataError, match=r"published is 0000"):
        prepare(tmp_path / "out", source, verify=True)
    monkeypatch.setitem(hashes.PUBLISHED, source.name, ("md5", right))
    assert f"{source.name}: md5 {right}, as published" in prepare(tmp_path / "out", source, verify=True)
    monkeypatch.setitem(hashes.PUBLISHED, source.name, ("md5", "0" * 32))
    with pytest.raises(DataError, match=r"published is 0000"):
        prepare(tmp_path / "out", source, verify=True)  # finished


def test_few_bytes_are_read_ahead(monkeypatch):
    monkeypatch.setattr(shards, "_LOOKAHEAD", 64)
    monkeypatch.setattr(shards, "_LOOKAHEAD_BYTES", 1000)
    taken: list[int] = []

    def items(size):
        for number in range(64):
            taken.append(number)
            yield Item((number,), {"id": str(number), "image": bytes(size)})

    found = shards._examined(items(400), lambda item: Finding(), 1)
    assert next(found)[0].position == (0,) and len(taken) == 3
    assert [item.position[0] for item, _ in found] == list(range(1, 64))
    taken.clear()
    assert next(shards._examined(items(10), lambda item: Finding(), 1))[0].position == (0,) and len(taken) == 64


def test_names_are_known_again():
    names = Names()
    assert all(names.add(str(number)) for number in range(200_000))
    assert not any(names.add(str(number)) for number in range(0, 200_000, 777))
    assert names.add("200000") and not names.add("200000")


@pytest.mark.parametrize("target", ["../a.jpg", "train/../../a.jpg", "/a.jpg"])
def test_no_picture_leaves_the_folder(tmp_path, make_picture, target):
    layout = shards.Layout("images", "folder", {})
    items = [Item((0,), {"id": "a", "image": make_picture()}, {"image": target})]
    with pytest.raises(DataError, match=r"a: its file '.*a\.jpg' would lie outside of .*out"):
        list(shards.Folder(tmp_path / "out", layout, shard_bytes=1).write("train", items, lambda item: Finding(), 1))
    assert not list(tmp_path.rglob("*a.jpg"))


def test_a_format_that_the_name_of_the_file_does_not_say(make_picture):
    """Also where ids have no suffix, as ADE20K's."""
    item = Item((0,), {"id": "a", "image": make_picture(format="PNG")}, {"image": "images/training/a.jpg"})
    assert [fault.what for fault in examine_picture(item, "header").faults] == ["other format: PNG by its content"]
