"""`vlbeit prepare webdataset`: lists with columns of any name, and shards that are there already."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlbeit.cli import main
from vlbeit.data_prep import webdataset
from vlbeit.data_prep.manner import Manner
from vlbeit.errors import DataError, UsageError


@pytest.fixture
def server(load_module, make_picture) -> Iterator[Any]:
    module = load_module(Path(__file__).with_name("picture_server.py"))
    with module.serving(make_picture) as found:
        yield found


LOCAL = Manner(threads=2, allow_local=True)


def prepare(out: Path, *sources: Path, **options: Any) -> tuple[list[str], str]:
    lines: list[str] = []
    following = webdataset.prepare(out, from_=list(map(str, sources)), report=lines.append, manner=LOCAL, **options)
    return lines, following


def captions(path: Path) -> list[str]:
    with tarfile.open(path) as tar:
        return sorted(tar.extractfile(info).read().decode() for info in tar if info.name.endswith(".txt"))


# ---- lists


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet", "folder of parquet"])
def test_lists(tmp_path, server, form):
    urls, texts = [server.url(f"ok/{i}.jpg") for i in range(3)], ["one, two", 'a "quote"', "three"]
    path = tmp_path / f"list.{form}"
    if form in ("csv", "tsv"):
        mark = "," if form == "csv" else "\t"
        cells = ['"one, two"', '"a ""quote"""', "three"]
        path.write_text(f"URL{mark}TEXT\n" + "".join(f"{u}{mark}{t}\n" for u, t in zip(urls, cells, strict=True)))
    elif form == "jsonl":
        path.write_text("".join(json.dumps({"url": u, "caption": t}) + "\n" for u, t in zip(urls, texts, strict=True)))
    else:
        table = pa.table({"url": urls, "text": texts})
        path = path if form == "parquet" else tmp_path / "lists"
        if form != "parquet":
            path.mkdir()
        pq.write_table(table, path if form == "parquet" else path / "part-0.parquet")
    _, following = prepare(tmp_path / "out", path)
    assert captions(tmp_path / "out/train/00000.tar") == sorted(texts)
    words = "stage=vl init=vlmo_base_patch16_224 data=shards"
    place = f"data.root={tmp_path / 'out'} run=runs/out-vl"
    assert following == f"vlbeit train {words} {place} data.val_split=train"  # a single shard: none is held out


def test_columns_that_must_be_named(tmp_path, server):
    path = tmp_path / "list.csv"
    path.write_text(f"link,words\n{server.url('ok/1.jpg')},text\n")
    with pytest.raises(UsageError, match=r"list\.csv: no column 'url'; name it by --url-column: 2 \(link, words\)"):
        prepare(tmp_path / "out", path)
    with pytest.raises(UsageError, match=r"list\.csv has no column 'lnk'"):
        prepare(tmp_path / "out", path, url_column="lnk")
    prepare(tmp_path / "out", path, url_column="link", caption_column="words")
    assert captions(tmp_path / "out/train/00000.tar") == ["text"]


# ---- shards


@pytest.fixture
def make_shard(pack, make_picture):
    def make(path: Path, numbers: range, **changes: bytes) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        members = []
        for number in numbers:
            members += [(f"{number:06d}.jpg", make_picture(number)), (f"{number:06d}.txt", f"text {number}".encode())]
        members = [(name, changes.get(name.replace(".", "_"), data)) for name, data in members]
        path.write_bytes(pack(member for member in members if member[1] != b"left out"))
        return path

    return make


def links(folder: Path) -> dict[str, str]:
    return {path.name: path.resolve().name for path in sorted(folder.iterdir())}


def test_shards_stay_where_they_are(tmp_path, make_shard):
    for shard in range(3):
        make_shard(tmp_path / f"in/part-{shard}.tar", range(10 * shard, 10 * shard + 4))
    (tmp_path / "in/part-0_stats.json").write_text('{"successes": 4}')
    lines, _ = prepare(tmp_path / "out", tmp_path / "in")
    assert links(tmp_path / "out/train") == {
        "00000.tar": "part-0.tar", "00000_stats.json": "part-0_stats.json", "00001.tar": "part-1.tar",
    }  # fmt: skip
    assert links(tmp_path / "out/val") == {"00000.tar": "part-2.tar"}
    assert captions(tmp_path / "out/val/00000.tar") == [f"text {number}" for number in range(20, 24)]
    assert lines[:3] == [
        "no shard is named after val: part-2.tar held out for it",
        "train: 2 shards, 8 samples, 8 with a picture and a caption",
        "val: 1 shards, 4 samples, 4 with a picture and a caption",
    ]


def test_names_tell_the_splits(tmp_path, make_shard):
    make_shard(tmp_path / "in/cc-train-0.tar", range(3))
    make_shard(tmp_path / "in/cc-validation-0.tar", range(3, 6))
    make_shard(tmp_path / "in/val/1.tar", range(6, 9))
    prepare(tmp_path / "out", tmp_path / "in")
    assert links(tmp_path / "out/train") == {"00000.tar": "cc-train-0.tar"}
    assert list(links(tmp_path / "out/val").values()) == ["cc-validation-0.tar", "1.tar"]


def test_what_is_wrong_is_named(tmp_path, make_shard):
    bad = {"000001_jpg": b"no picture", "000002_txt": b" ", "000003_jpg": b"left out"}
    make_shard(tmp_path / "in/0.tar", range(5), **bad)
    make_shard(tmp_path / "in/1.tar", range(5, 8))
    cut = make_shard(tmp_path / "in/2.tar", range(8, 12))
    cut.write_bytes(cut.read_bytes()[:3000])
    lines, following = prepare(tmp_path / "out", tmp_path / "in", held_out=1)
    assert following.endswith(" data.max_bad_fraction=0.6"), "else the command would stop at once"
    assert "train: 1 shards, 5 samples, 2 with a picture and a caption" in lines
    assert {"  cannot be read: 1", "  no caption: 1", "  no picture: 1"} <= set(lines)
    assert any(line.startswith(f"left out: {cut} is cut off or damaged") for line in lines)
    rows = [json.loads(line) for line in (tmp_path / "out/bad.jsonl").read_text().splitlines()]
    assert [(row["shard"], row["id"], row["what"].partition(":")[0]) for row in rows] == [
        ("0.tar", "000001", "cannot be read"), ("0.tar", "000002", "no caption"), ("0.tar", "000003", "no picture"),
    ]  # fmt: skip


def test_captions_in_json_and_keys_that_come_twice(tmp_path, pack, make_picture):
    members = [
        ("a/1.jpg", make_picture(1)), ("a/1.json", b'{"caption": "text"}'), ("a/2.png", make_picture(2)),
        ("a/2.json", b'{"captions": ["one", "two"]}'), ("a/1.txt", b"again"),
    ]  # fmt: skip
    (tmp_path / "in.tar").write_bytes(pack(members))
    lines, _ = prepare(tmp_path / "out", tmp_path / "in.tar", held_out=0)
    assert "train: 1 shards, 3 samples, 2 with a picture and a caption" in lines
    assert "  members of one key are not together, or the key comes twice: 1" in lines


def test_only_what_is_new_is_checked_again(tmp_path, make_shard, monkeypatch):
    make_shard(tmp_path / "in/0.tar", range(3))
    make_shard(tmp_path / "in/1.tar", range(3, 6))
    prepare(tmp_path / "out", tmp_path / "in")
    looked: list[str] = []
    check = webdataset.check_shard
    monkeypatch.setattr(webdataset, "check_shard", lambda path, how: (looked.append(path.name), check(path, how))[1])
    make_shard(tmp_path / "in/1.tar", range(3, 8))
    make_shard(tmp_path / "in/2.tar", range(8, 10))
    lines, _ = prepare(tmp_path / "out", tmp_path / "in")
    assert sorted(looked) == ["1.tar", "2.tar"]
    assert "train: 2 shards, 8 samples, 8 with a picture and a caption" in lines
    assert list(links(tmp_path / "out/val").values()) == ["2.tar"]


def test_folders_that_cannot_be_used(tmp_path, make_shard, capsys):
    shard = make_shard(tmp_path / "in/0.tar", range(3))
    with pytest.raises(UsageError, match=r"--held-out 1: 1 shards can be read; some must remain for train"):
        prepare(tmp_path / "out", shard)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mine").touch()
    with pytest.raises(UsageError, match=r"was not begun by `vlbeit prepare`"):
        prepare(tmp_path / "other", shard)
    shard.write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"none of 1 shards can be read: .*0\.tar is cut off or damaged"):
        prepare(tmp_path / "third", shard)
    (tmp_path / "empty").mkdir()
    assert main(["prepare", "webdataset", "--from", str(tmp_path / "empty"), "--out", str(tmp_path / "x")]) == 1
    assert "holds no table" in capsys.readouterr().err


def test_the_result_is_no_source_of_itself(tmp_path, make_shard, capsys):
    """Links would lead to themselves; refused before anything is touched, and nothing is left behind."""
    make_shard(tmp_path / "in/train-0.tar", range(2))
    out = tmp_path / "out"
    assert main(["prepare", "webdataset", "--from", str(tmp_path / "in"), "--held-out", "0", "--out", str(out)]) == 0
    before = sorted(out.rglob("*"))
    (tmp_path / "link").symlink_to(out)
    for source in (out, out / "train", tmp_path, tmp_path / "link"):
        assert main(["prepare", "webdataset", "--from", str(source), "--out", str(out)]) == 2
        assert "choose another --out" in capsys.readouterr().err
    assert sorted(out.rglob("*")) == before and (out / "train/00000.tar").exists()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/bad.tar").write_bytes(b"none")
    with pytest.raises(DataError):
        prepare(tmp_path / "fresh", tmp_path / "empty")
    assert not (tmp_path / "fresh/.lock").exists()
