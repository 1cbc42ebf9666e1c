import os

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlbeit.config import DataConfig
from vlbeit.data import shard_files
from vlbeit.data.shard_files import LocalFiles, expanded, file_system, is_remote, listed
from vlbeit.data.sources import open_records, open_source
from vlbeit.errors import DataError, UsageError


@pytest.fixture
def memory():
    """An empty file system at memory://."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture
def bucket(tmp_path, made, memory):
    """memory://bucket/sbu: four shards of 5 with their stats, the last one held out."""
    made.write_tars(tmp_path / "sbu", [5] * 4)
    for path in (tmp_path / "sbu").iterdir():
        memory.pipe_file(f"/bucket/sbu/{path.name}", path.read_bytes())
    return "memory://bucket/sbu"


def opened(root, cache, split="train", kind="pairs", **changes):
    config = DataConfig(name="shards", root=root, cache=str(cache), **changes)
    open_source(config).check()
    return open_records(config, kind, split)


def copies(cache):
    return sorted(path.name.rpartition("-")[2] for path in (cache / "shards").glob("*.tar"))


def test_an_address_is_listed_and_its_shards_come_when_they_are_needed(bucket, tmp_path, made):
    cache = tmp_path / "cache"
    records = opened(bucket, cache)
    assert len(records) == 15 and not (cache / "shards").exists(), "the stats beside the shards tell how many"
    assert made.number_in(records[7]["image"]) == 7
    assert copies(cache) == ["00001.tar"]
    assert [made.number_in(records[n]["image"]) for n in range(15)] == list(range(15))
    assert records[3]["picture"] == "memory:///bucket/sbu/00000.tar#000000003"
    assert len(opened(bucket, cache, "val")) == 5
    assert len(opened(f"{bucket}/{{00000..00002}}.tar", cache)) == 10
    assert len(opened(f"{bucket}/0000[01].tar", cache, val_split="train")) == 10


def test_footers_are_read_from_afar_and_only_they(tmp_path, made, memory):
    for name in ("train-0", "val-0"):
        path = made.write_parquet(tmp_path / f"{name}.parquet", range(12), struct=True)
        memory.pipe_file(f"/hub/{name}.parquet", path.read_bytes())
    records = opened("memory://hub", tmp_path / "cache")
    assert len(records) == 12 and not (tmp_path / "cache" / "shards").exists()
    assert made.number_in(records[11]["image"]) == 11 and records[11]["text"] == "text 11"


def test_pictures_beside_a_table_at_an_address_are_refused(tmp_path, made, memory):
    pictures = {"string": ["a/1.png"], "struct": [{"bytes": None, "path": "a/1.png"}]}
    for name, values in pictures.items():
        pq.write_table(pa.table({"image": values, "caption": ["c"]}), tmp_path / f"{name}.parquet")
        memory.pipe_file(f"/hub/{name}.parquet", (tmp_path / f"{name}.parquet").read_bytes())
        assert opened(str(tmp_path / f"{name}.parquet"), tmp_path)[0]["image"] == f"{tmp_path}/a/1.png"
        with pytest.raises(DataError, match=r"hub/\w+\.parquet names pictures by paths \(a/1\.png\)"):
            opened(f"memory://hub/{name}.parquet", tmp_path)[0]


def test_copies_that_were_not_used_for_longest_make_room(bucket, tmp_path, made, memory):
    cache, size = tmp_path / "cache", memory.size("/bucket/sbu/00000.tar")
    records = opened(bucket, cache, cache_gb=2.5 * size / 1e9)
    for index in (0, 5, 10):
        assert made.number_in(records[index]["image"]) == index
        for age, path in enumerate(sorted((cache / "shards").glob("*.tar"), key=os.path.getmtime, reverse=True)):
            os.utime(path, (1e9 - age, 1e9 - age))
    assert copies(cache) == ["00001.tar", "00002.tar"]
    assert made.number_in(records[1]["image"]) == 1, "what is open is read on"
    again = opened(bucket, cache, cache_gb=2.5 * size / 1e9)
    assert [made.number_in(again[n]["image"]) for n in range(15)] == list(range(15))
    assert len(copies(cache)) == 2


def test_a_copy_that_is_removed_between_two_reads_is_fetched_again(bucket, tmp_path, made):
    records = opened(bucket, tmp_path / "cache")
    records[0]
    records._store._forget()  # as another process has nothing open
    for path in (tmp_path / "cache" / "shards").glob("*.tar"):
        path.unlink()
    assert made.number_in(records[1]["image"]) == 1


@pytest.mark.parametrize("what", ["gone", "changed"])
def test_a_shard_that_is_gone_or_another_is_named(bucket, tmp_path, memory, what):
    records = opened(bucket, tmp_path / "cache")
    if what == "gone":
        memory.rm("/bucket/sbu/00001.tar")
    else:
        memory.pipe_file("/bucket/sbu/00001.tar", b"other")
    with pytest.raises(DataError, match=r"bucket/sbu/00001\.tar is " + ("gone" if what == "gone" else "another file")):
        records[6]
    assert not list((tmp_path / "cache" / "shards").glob("*.tar"))


def test_a_fetch_that_fails_is_tried_again(bucket, tmp_path, made, memory, monkeypatch, caplog):
    waits, failures = [], iter([OSError("reset"), OSError("busy"), None])
    get_file = memory.get_file

    def failing(*arguments):
        if failure := next(failures):
            raise failure
        return get_file(*arguments)

    monkeypatch.setattr(type(memory), "get_file", lambda self, *arguments: failing(*arguments))
    monkeypatch.setattr(shard_files.time, "sleep", waits.append)
    records = opened(bucket, tmp_path / "cache")
    assert made.number_in(records[0]["image"]) == 0
    assert waits == [1.0, 4.0] and caplog.text.count("asked for again") == 2
    failures = iter([OSError("reset")] * 3)
    with pytest.raises(DataError, match=r"00001\.tar cannot be fetched: OSError: reset; run the same command again"):
        records[6]


class Foreign(Exception):
    """As the errors of aiohttp and botocore: no OSError."""


@pytest.mark.parametrize("call", ["ls", "cat_file", "open", "info", "get_file"])
def test_errors_of_the_libraries_of_file_systems_are_one_line(tmp_path, made, memory, monkeypatch, call):
    made.write_tars(tmp_path / "sbu", [2] * 2)
    made.write_parquet(tmp_path / "sbu" / "x.parquet", range(3))
    for path in (tmp_path / "sbu").iterdir():
        memory.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    waits = []
    monkeypatch.setattr(shard_files.time, "sleep", waits.append)

    def failing(*arguments, **options):
        raise Foreign("no\nroute")

    def read():
        opened("memory://bucket", tmp_path / "cache", split="train", val_split="train")[0]

    monkeypatch.setattr(type(memory), call, failing)
    with pytest.raises(DataError, match=r"memory://\S+ cannot be (listed|read|fetched).*\bForeign: no route"):
        read()
    assert waits == ([1.0, 4.0] if call in ("info", "get_file") else [])


def test_copies_that_others_remove_meanwhile_are_no_error(bucket, tmp_path, made, memory, monkeypatch):
    cache, size = tmp_path / "cache", memory.size("/bucket/sbu/00000.tar")
    records = opened(bucket, cache, cache_gb=1.5 * size / 1e9)
    records[0]
    scandir = os.scandir
    gone = cache / "shards" / "gone.tar"

    def vanishing(folder):
        gone.write_bytes(b"x")
        entries = list(scandir(folder))
        gone.unlink()
        return entries

    monkeypatch.setattr(shard_files.os, "scandir", vanishing)
    assert made.number_in(records[5]["image"]) == 5
    monkeypatch.undo()


@pytest.mark.parametrize("stats", [True, False])
def test_copies_are_read_to_their_end_whoever_removes_them(tmp_path, made, memory, monkeypatch, stats):
    """Whenever a copy is opened, by this thread or another, it is gone already for all that come later."""
    opening = LocalFiles.open

    def removing(self, *arguments):
        file = opening(self, *arguments)
        for path in (tmp_path / "cache" / "shards").iterdir():
            if not path.name.startswith(".tmp-") and path.suffix != ".lock":
                path.unlink(missing_ok=True)
        return file

    monkeypatch.setattr(LocalFiles, "open", removing)
    made.write_tars(tmp_path / "sbu", [3])
    made.write_parquet(tmp_path / "lists.parquet", range(3, 6), texts=[["a"], ["b"], ["c"]])
    made.write_parquet(tmp_path / "plain.parquet", range(6, 9))
    if stats:
        memory.pipe_file("/b/00000_stats.json", (tmp_path / "sbu" / "00000_stats.json").read_bytes())
    for path in (tmp_path / "sbu" / "00000.tar", tmp_path / "lists.parquet", tmp_path / "plain.parquet"):
        memory.pipe_file(f"/b/{path.name}", path.read_bytes())
    records = opened("memory://b", tmp_path / "cache", val_split="train")
    assert [made.number_in(records[n]["image"]) for n in range(9)] == list(range(9))
    assert copies(tmp_path / "cache") == []


def test_many_shards_are_counted_with_room_for_one(tmp_path, made, memory):
    """Several at a time, each of which makes room for itself."""
    made.write_tars(tmp_path / "sbu", [20] * 24)
    for path in (tmp_path / "sbu").glob("*.tar"):
        memory.pipe_file(f"/b/{path.name}", path.read_bytes())
    room = 1.5 * memory.size("/b/00000.tar") / 1e9
    records = opened("memory://b", tmp_path / "cache", val_split="train", cache_gb=room)
    assert [made.number_in(records[n]["image"]) for n in range(0, 480, 7)] == list(range(0, 480, 7))
    assert len(copies(tmp_path / "cache")) == 1


def test_a_shard_that_cannot_be_opened_is_no_fault_of_the_cache(tmp_path, made, monkeypatch):
    records = opened(str(made.write_tar(tmp_path / "x.tar", made.pair_members([1]))), tmp_path, val_split="train")
    records._store._forget()

    def refused(path, *arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shard_files, "open", refused, raising=False)
    with pytest.raises(DataError, match=r"x\.tar cannot be read: Permission denied; mend that, or start"):
        records[0]


def test_what_cannot_be_opened_is_one_line(memory, tmp_path):
    with pytest.raises(DataError, match="memory://nowhere cannot be listed"):
        opened("memory://nowhere", tmp_path)
    with pytest.raises(UsageError, match="nosuch://x cannot be opened"):
        file_system("nosuch://x")


def test_names(tmp_path, made):
    assert is_remote("s3://b/x") and is_remote("simplecache::s3://b") and not is_remote("/a/b:c") and not is_remote("a")
    assert expanded("a{8..11}b") == ["a8b", "a9b", "a10b", "a11b"]
    assert expanded("{08..10}-{x,y}") == ["08-x", "08-y", "09-x", "09-y", "10-x", "10-y"]
    made.write_tars(tmp_path, [1])
    (tmp_path / ".hidden.tar").write_bytes(b"")
    pq.write_table(pq.read_table(tmp_path / "00000.parquet"), tmp_path / "other.parquet")
    assert [file.name for file in listed(str(tmp_path), [])] == [f"{tmp_path}/00000.tar", f"{tmp_path}/other.parquet"]
    with LocalFiles("", None).open(listed(str(tmp_path), [])[0], "key") as file:
        assert file.name == str(tmp_path / "00000.tar")
