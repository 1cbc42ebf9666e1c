"""Downloads of lists of URLs: the layout of the shards, failures, limits, restarts."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image, PngImagePlugin

from vlbeit.cli import main
from vlbeit.data.records import ImageError
from vlbeit.data_prep import addresses, cc3m, cc12m, downloading, fetching, pace, resizing, sbu, webdataset
from vlbeit.data_prep.fetching import Bounds, Moved, Unfetched, client, fetch
from vlbeit.data_prep.manner import Manner
from vlbeit.data_prep.pace import Pace
from vlbeit.data_prep.resizing import resized
from vlbeit.data_prep.tar_shards import SUCCESS, Row, TarShard, stats_of
from vlbeit.errors import DataError, UsageError


@pytest.fixture
def server(load_module, make_picture) -> Iterator[Any]:
    module = load_module(Path(__file__).with_name("picture_server.py"))
    with module.serving(make_picture) as found:
        yield found


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr(downloading, "WAITS", (0.01, 0.02))
    monkeypatch.setattr(downloading, "_POLL", 0.02)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def listed(path: Path, urls: list[str]) -> Path:
    """A list as of Conceptual 12M."""
    path.write_text("".join(f"{url}\tcaption  of {number}\n" for number, url in enumerate(urls)))
    return path


def prepare(out: Path, path: Path, **options: Any) -> tuple[dict[str, Any], list[str]]:
    lines: list[str] = []
    usual = {"allow_local": True, "per_second": 0, "per_host": 0, "threads": 4, "shard_rows": 4} | options
    cc12m.prepare(out, from_=[str(path)], report=lines.append, manner=Manner(**usual))
    return json.loads((out / "download.json").read_text()), lines


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}


# ---- what is written


def test_the_layout_of_img2dataset(tmp_path, server, make_picture):
    urls = [server.url(path) for path in (*(f"ok/{i}.jpg" for i in range(5)), "status/404")]
    facts, lines = prepare(tmp_path / "out", listed(tmp_path / "list.tsv", urls))
    train = tmp_path / "out/train"
    assert sorted(path.name for path in train.iterdir()) == [
        "00000.parquet", "00000.tar", "00000_stats.json", "00001.parquet", "00001.tar", "00001_stats.json",
    ]  # fmt: skip
    first, second = members(train / "00000.tar"), members(train / "00001.tar")
    assert {name.partition(".")[0] for name in first} == {f"00000{i}" for i in range(4)}
    assert first["000002.jpg"] == make_picture(2) and first["000002.txt"] == b"caption of 2"
    facts_2 = json.loads(first["000002.json"])
    assert facts_2 == facts_2 | {"key": "000002", "url": urls[2], "width": 24, "height": 16, "original_width": 24}
    assert set(second) == {"000010.jpg", "000010.txt", "000010.json"}
    rows = pq.read_table(train / "00001.parquet").to_pylist()
    assert [(row["key"], row["status"], row["error_message"]) for row in rows] == [
        ("000010", "success", None), ("000011", "failed_to_download", "HTTP 404"),
    ]  # fmt: skip
    stats = json.loads((train / "00001_stats.json").read_text())
    assert stats == stats | {"count": 2, "successes": 1, "failed_to_download": 1, "failed_to_resize": 0}
    assert stats["status_dict"] == {"success": 1, "HTTP 404": 1}
    assert facts["splits"] == {"train": {"rows": 6, "reasons": {"success": 5, "HTTP 404": 1}}}
    assert "train: 5 pictures of 6 rows: 83.3 % pictures (HTTP 404 16.7 %)" in lines


def test_every_failure_has_its_reason(tmp_path, server):
    wrong = {
        "status/404": "HTTP 404", "status/500": "HTTP 500", "loop/1": "more than 5 redirects",
        "page/1": "a web page instead of a picture", "noai/1": "opted out: X-Robots-Tag noai",
        "big/1": "more than 0.1 MB", "junk/1": "not an image in a known format", "cut/1": "cannot be read",
        "packed/1": "sent packed though asked not to",
    }  # fmt: skip
    urls = {server.url(path): reason for path, reason in wrong.items()}
    urls |= {
        "ftp://example.org/a.jpg": "no URL that can be asked for", "no url": "no URL that can be asked for",
        "": "no URL", "http://nothing.invalid/a.jpg": "no such host", server.url("ok/1.jpg"): "success",
        server.url("to/to/ok/2.jpg"): "success",
    }  # fmt: skip
    facts, _ = prepare(tmp_path / "out", listed(tmp_path / "list.tsv", list(urls)), max_mb=0.1, shard_rows=100)
    rows = pq.read_table(tmp_path / "out/train/00000.parquet").to_pylist()
    assert {row["url"]: row["error_message"] or row["status"] for row in rows} == urls
    assert server.asked["/status/500"] == 3 and server.asked["/status/404"] == 1  # what may help is tried again
    assert facts["splits"]["train"]["reasons"]["no URL that can be asked for"] == 2


def test_a_redirect_is_a_request_like_others(tmp_path, server):
    urls = [server.url(f"to/to/ok/{i}.jpg") for i in range(3)]
    started = time.monotonic()
    prepare(tmp_path / "out", listed(tmp_path / "list.tsv", urls), per_host=25)
    assert time.monotonic() - started >= 8 / 25 and server.asked.total() == 9
    facts, _ = prepare(tmp_path / "other", listed(tmp_path / "b.tsv", [urls[0], server.url("nowhere/1")]))
    assert facts["splits"]["train"]["reasons"] == {"success": 1, "redirect without an address": 1}
    assert server.asked["/nowhere/1"] == 1


def test_a_request_ends_after_a_time_whatever_comes(tmp_path, server, monkeypatch):
    monkeypatch.setattr(fetching, "LONGEST", 0.2)
    with client(1, Bounds(10**6, True)) as asker, pytest.raises(Unfetched, match="too slow") as raised:
        fetch(asker, server.url("drip/1"), Bounds(10**6, True))
    assert raised.value.again


def test_nothing_is_kept_of_a_host(server):
    with client(1, Bounds(10**6, True)) as asker:
        for number in range(3):
            fetch(asker, server.url(f"cookie/{number}"), Bounds(10**6, True))
        assert not list(asker.cookies.jar)
    assert not server.cookies


def test_half_a_letter_is_a_fault_of_its_row(tmp_path, server):
    rows = [{"url": server.url("ok/1.jpg"), "caption": text} for text in ("a cat", "a \ud83d cat")]
    rows.append({"url": server.url("ok/\udc00.jpg"), "caption": "x"})
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    webdataset.prepare(tmp_path / "out", from_=[str(tmp_path / "list.jsonl")], manner=Manner(allow_local=True))
    reasons = stats_of(tmp_path / "out/train", 0)["status_dict"]
    assert reasons == {"success": 1, "half a letter in URL or caption": 2}


def test_a_byte_order_mark_is_no_part_of_an_address(tmp_path, server):
    path = tmp_path / "list.tsv"
    path.write_text(f"{server.url('ok/1.jpg')}\tone\n", encoding="utf-8-sig")
    assert prepare(tmp_path / "out", path)[0]["splits"]["train"]["reasons"] == {"success": 1}


def test_a_busy_server_is_asked_again(tmp_path, server):
    prepare(tmp_path / "out", listed(tmp_path / "list.tsv", [server.url("flaky/1"), server.url("flaky/2")]))
    assert stats_of(tmp_path / "out/train", 0)["successes"] == 2 and server.asked["/flaky/1"] == 3


def test_the_rate_is_kept(tmp_path, server):
    urls = [server.url(f"ok/{i}.jpg") for i in range(8)]
    started = time.monotonic()
    prepare(tmp_path / "out", listed(tmp_path / "list.tsv", urls), per_host=25)
    assert time.monotonic() - started >= 7 / 25 and server.asked.total() == 8


def test_lists_of_conceptual_captions(tmp_path, server):
    (tmp_path / "Train_GCC-training.tsv").write_text(f"a 'caption'\t{server.url('ok/1.jpg')}\nno url\n")
    (tmp_path / "Validation_GCC-1.1.0-Validation.tsv").write_text(f"caption\turl\nheld\t{server.url('ok/2.jpg')}\n")
    following = cc3m.prepare(tmp_path / "cc", from_=[str(tmp_path)], manner=Manner(allow_local=True))
    assert members(tmp_path / "cc/train/00000.tar")["000000000.txt"] == b"a 'caption'"
    assert members(tmp_path / "cc/val/00000.tar")["000000000.txt"] == b"held"
    assert (
        following
        == f"vlbeit train stage=vl init=vlmo_base_patch16_224 data=shards data.root={tmp_path / 'cc'} run=runs/cc-vl"
    )
    rows = pq.read_table(tmp_path / "cc/train/00000.parquet").to_pylist()
    assert rows[1]["error_message"] == "no URL and caption in the line"


def test_lists_of_sbu(tmp_path, server):
    urls, captions = [server.url("ok/1.jpg"), server.url("ok/2.jpg")], ["one", "two"]
    (tmp_path / "sbu-captions-all.json").write_text(
        json.dumps({"image_urls": urls, "user_ids": [1, 2], "captions": captions})
    )
    sbu.prepare(tmp_path / "a", from_=[str(tmp_path)], manner=Manner(allow_local=True))
    names = [f"SBU_captioned_photo_dataset_{what}.txt" for what in ("urls", "captions")]
    for name, lines in zip(names, (urls, captions), strict=True):
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    sbu.prepare(
        tmp_path / "b", from_=[",".join(str(tmp_path / name) for name in names)], manner=Manner(allow_local=True)
    )
    tars = [members(tmp_path / out / "train/00000.tar") for out in ("a", "b")]
    assert tars[0]["000000001.txt"] == b"two" and tars[0].keys() == tars[1].keys()
    (tmp_path / "sbu-captions-all.json").write_text(json.dumps({"image_urls": urls, "captions": ["one"]}))
    with pytest.raises(DataError, match=r"image_urls and captions are not of one length"):
        sbu.prepare(tmp_path / "c", from_=[str(tmp_path)], manner=Manner(allow_local=True))


# ---- restarts


def test_another_command_is_refused_and_the_same_one_does_nothing(tmp_path, server):
    path = listed(tmp_path / "list.tsv", [server.url(f"ok/{i}.jpg") for i in range(5)])
    facts, _ = prepare(tmp_path / "out", path)
    assert prepare(tmp_path / "out", path, threads=1)[0] == facts and server.asked.total() == 5
    with pytest.raises(UsageError, match=r"was prepared with image_size=384, not image_size=256"):
        prepare(tmp_path / "out", path, image_size=256)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mine.txt").touch()
    with pytest.raises(UsageError, match=r"was not begun by `vlbeit prepare`"):
        prepare(tmp_path / "other", path)
    with pytest.raises(UsageError, match=r"--threads 0: give 1 or more"):
        prepare(tmp_path / "third", path, threads=0)


def test_what_was_lost_is_fetched_again_and_nothing_else(tmp_path, server):
    path = listed(tmp_path / "list.tsv", [server.url(f"ok/{i}.jpg") for i in range(12)])
    prepare(tmp_path / "out", path)
    (tmp_path / "out/train/00001.tar").unlink()
    (tmp_path / "out/train/00002.tar").write_bytes(b"cut")
    prepare(tmp_path / "out", path)
    assert [server.asked[f"/ok/{i}.jpg"] for i in range(12)] == [1] * 4 + [2] * 8
    assert len(members(tmp_path / "out/train/00002.tar")) == 12


def test_killed_at_any_point(tmp_path, server):
    """A process of its own is killed with kill -9 twice; the third one ends, and no picture is asked for twice."""
    count = 60
    path = listed(tmp_path / "list.tsv", [server.url(f"slow/{i}.jpg") for i in range(count)])
    options = ["--allow-local", "--per-second", "0", "--per-host", "0", "--threads", "2", "--shard-rows", "25"]
    command = [sys.executable, "-m", "vlbeit", "prepare", "cc12m", "--from", str(path), "--out", str(tmp_path / "out")]
    for share in (10, 40):
        process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL)
        while server.asked.total() < share and process.poll() is None:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    prepare(tmp_path / "out", path, shard_rows=25)
    assert sum(stats_of(tmp_path / "out/train", number)["successes"] for number in range(3)) == count
    samples = {
        name: data for number in range(3) for name, data in members(tmp_path / f"out/train/{number:05d}.tar").items()
    }
    assert len(samples) == 3 * count and not list((tmp_path / "out/train").glob(".tmp-*"))
    assert all(Image.open(io.BytesIO(data)).size for name, data in samples.items() if name.endswith(".jpg"))
    assert server.asked.total() <= count + 2 * 2  # but for those that were on their way


@pytest.mark.parametrize("damage", ["tar cut", "tar changed", "journal cut", "after the rename"])
def test_a_shard_in_the_making_is_taken_up_as_far_as_it_is_sound(tmp_path, make_picture, damage):
    shard = TarShard(tmp_path, 0, 5, 5)
    for number in range(4):
        picture = resized(make_picture(number), 384, "keep_ratio")
        shard.add(
            Row(number, f"url {number}", "text", SUCCESS, "", picture) if number != 1 else Row(1, "u", "t", "x", "y")
        )
    shard.close()
    tar, journal = tmp_path / ".tmp-00000.tar", tmp_path / ".tmp-00000.jsonl"
    data = tar.read_bytes()
    if damage == "tar cut":
        tar.write_bytes(data[:-700])
    elif damage == "tar changed":
        tar.write_bytes(data[:-2000] + bytes(2000))
    elif damage == "journal cut":
        journal.write_bytes(journal.read_bytes()[:-7])
    else:
        tar.rename(tmp_path / "00000.tar")
    again = TarShard(tmp_path, 0, 5, 5)
    assert [number in again for number in range(5)] == [True, True, True, damage == "after the rename", False]
    for number in [number for number in (3, 4) if number not in again]:
        again.add(Row(number, "url", "text", SUCCESS, "", resized(make_picture(number), 384, "keep_ratio")))
    assert again.full and again.finish()["successes"] == 4
    assert members(tmp_path / "00000.tar")["000003.jpg"] == make_picture(3)


def test_without_a_network_no_row_counts_as_failed(tmp_path, server, monkeypatch):
    monkeypatch.setattr(downloading, "_SILENT", 5)
    path = listed(tmp_path / "list.tsv", [server.url(f"ok/{i}.jpg") for i in range(40)])
    server.down = True
    with pytest.raises(DataError, match=r"no server answers any more: 5 rows without an answer, the first http"):
        prepare(tmp_path / "out", path, retries=0)
    server.down = False
    assert prepare(tmp_path / "out", path)[0]["splits"]["train"]["reasons"] == {"success": 40}


def test_a_list_whose_servers_are_gone_can_be_ended(tmp_path, server, monkeypatch):
    monkeypatch.setattr(downloading, "_SILENT", 3)
    gone = [f"http://gone{number}.invalid/a.jpg" for number in range(7)]
    path = listed(tmp_path / "list.tsv", gone)
    with pytest.raises(DataError, match=r"servers are gone, --give-up counts such rows as failed"):
        prepare(tmp_path / "out", path)
    with pytest.raises(DataError, match=r"not one picture came; NNNNN.parquet beside each shard says why"):
        prepare(tmp_path / "out", path, give_up=True)
    facts = json.loads((tmp_path / "out/download.json").read_text())
    assert facts["splits"]["train"] == {"rows": 7, "reasons": {"no such host": 7}}
    (tmp_path / "Train_GCC-training.tsv").write_text(f"a\t{server.url('ok/1.jpg')}\n")
    (tmp_path / "Validation_GCC-1.1.0-Validation.tsv").write_text("".join(f"b\t{url}\n" for url in gone))
    cc3m.prepare(tmp_path / "cc", from_=[str(tmp_path)], manner=Manner(allow_local=True, give_up=True, retries=0))
    facts = json.loads((tmp_path / "cc/download.json").read_text())
    assert facts["splits"]["val"]["reasons"] == {"no such host": 7}


def test_val_knows_what_answered_in_train(tmp_path, server, monkeypatch):
    monkeypatch.setattr(downloading, "_SILENT", 3)
    (tmp_path / "Train_GCC-training.tsv").write_text(f"a\t{server.url('ok/1.jpg')}\n")
    lines = [*(f"b\thttp://gone{number}.invalid/a.jpg\n" for number in range(4)), f"c\t{server.url('ok/2.jpg')}\n"]
    (tmp_path / "Validation_GCC-1.1.0-Validation.tsv").write_text("".join(lines))
    cc3m.prepare(tmp_path / "cc", from_=[str(tmp_path)], manner=Manner(allow_local=True, threads=1))
    assert stats_of(tmp_path / "cc/val", 0)["successes"] == 1 and server.asked["/ok/1.jpg"] >= 2


def test_a_host_that_is_gone_does_not_stop_the_others(tmp_path, server, monkeypatch):
    monkeypatch.setattr(downloading, "_SILENT", 3)
    urls = [server.url("ok/0.jpg"), *(f"http://gone{i}.invalid/a.jpg" for i in range(7)), server.url("ok/1.jpg")]
    facts, _ = prepare(tmp_path / "out", listed(tmp_path / "list.tsv", urls), threads=1)
    assert facts["splits"]["train"]["reasons"] == {"success": 2, "no such host": 7}


def test_a_host_that_does_not_answer_is_not_asked_three_times_for_ever(tmp_path, server):
    gone = [server.url(f"drop/{i}.jpg").replace("127.0.0.1", "localhost") for i in range(20)]
    path = listed(tmp_path / "list.tsv", [server.url("ok/0.jpg"), *gone])
    facts, _ = prepare(tmp_path / "out", path, threads=1, shard_rows=100, per_host=100)
    assert facts["splits"]["train"]["reasons"] == {"success": 1, "connection failed": 20}
    assert [server.asked[f"/drop/{i}.jpg"] for i in (0, 19)] == [3, 1]


def test_one_busy_host_waits_as_a_whole(tmp_path, server):
    """Retry-After is of the host: nothing else is asked of it in the meantime."""
    urls = [server.url("wait/1"), *(server.url(f"ok/{i}.jpg") for i in range(4))]
    prepare(tmp_path / "out", listed(tmp_path / "list.tsv", urls), threads=1)
    assert stats_of(tmp_path / "out/train", 0)["successes"] == 4 and server.times[1] - server.times[0] >= 0.2


def test_rows_refused_before_are_asked_for_when_they_are_allowed(tmp_path, server):
    path = listed(tmp_path / "list.tsv", [server.url("ok/0.jpg"), server.url("ok/1.jpg")])
    with pytest.raises(DataError, match=r"not one picture .*refused: .*--allow-local"):
        prepare(tmp_path / "out", path, allow_local=False)
    facts, lines = prepare(tmp_path / "out", path)
    assert facts["splits"]["train"]["reasons"] == {"success": 2}
    assert "train: 2 rows that failed are asked for again" in lines


def test_rows_too_large_are_asked_for_when_larger_ones_are_taken(tmp_path, server):
    path = listed(tmp_path / "list.tsv", [server.url("big/0.jpg"), server.url("ok/1.jpg")])
    for max_mb, asked in ((1.0123432, 1), (1.0123432, 1), (1.0123442, 2), (3, 3), (3, 3)):
        prepare(tmp_path / "out", path, max_mb=max_mb)
        assert server.asked["/big/0.jpg"] == asked and server.asked["/ok/1.jpg"] == 1


def test_failed_rows_are_asked_for_again_when_that_is_wished(tmp_path, server):
    urls = [server.url(path) for path in ("ok/0.jpg", "flaky/1", "status/404", "ok/3.jpg", "flaky/2", "ok/5.jpg")]
    path = listed(tmp_path / "list.tsv", urls)
    facts, _ = prepare(tmp_path / "out", path, retries=0, shard_rows=3)
    assert facts["splits"]["train"]["reasons"] == {"success": 3, "HTTP 429": 1, "HTTP 404": 1, "HTTP 503": 1}
    assert prepare(tmp_path / "out", path, retries=0, shard_rows=3)[0] == facts and server.asked.total() == 6
    facts, lines = prepare(tmp_path / "out", path, again=True, shard_rows=3)
    assert facts["splits"]["train"]["reasons"] == {"success": 5, "HTTP 404": 1}
    assert "train: 2 rows that failed are asked for again" in lines
    assert server.asked["/ok/0.jpg"] == server.asked["/status/404"] == 1
    first, second = (members(tmp_path / f"out/train/{number:05d}.tar") for number in (0, 1))
    assert sorted(first)[::3] == ["000000.jpg", "000001.jpg"] and first["000001.txt"] == b"caption of 1"
    assert len(second) == 9 and stats_of(tmp_path / "out/train", 1)["successes"] == 3
    rows = pq.read_table(tmp_path / "out/train/00000.parquet").to_pylist()
    assert [row["url"] for row in rows] == urls[:3]


def test_not_one_picture(tmp_path, server):
    with pytest.raises(DataError, match=r"not one picture of train came: 0\.0 % pictures \(HTTP 404 100\.0 %\)"):
        prepare(tmp_path / "out", listed(tmp_path / "list.tsv", [server.url("status/404")]))
    with pytest.raises(DataError, match=r"the list of train has no rows"):
        prepare(tmp_path / "empty", listed(tmp_path / "nothing.tsv", []))


# ---- addresses


def test_a_list_cannot_make_us_ask_our_own_network(tmp_path, server, capsys):
    path = listed(tmp_path / "list.tsv", [server.url("ok/1.jpg"), f"http://localhost:{server.server_port}/ok/2.jpg"])
    assert main(["prepare", "cc12m", "--from", str(path), "--out", str(tmp_path / "out")]) == 1
    assert "not one picture of train came: 0.0 % pictures (refused: private or loopback address 100.0 %)" in (
        capsys.readouterr().err
    )
    assert not server.asked


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True), ("2606:4700::1111", True), ("127.0.0.1", False), ("10.1.2.3", False),
        ("169.254.169.254", False), ("192.168.0.1", False), ("0.0.0.0", False), ("224.0.0.1", False), ("::1", False),
        ("fd00::1", False), ("fe80::1", False), ("::ffff:127.0.0.1", False), ("64:ff9b::7f00:1", False),
        ("64:ff9b::808:808", True), ("2002:7f00:1::", False), ("100.64.0.1", False),
        ("::ffff:8.8.8.8", True), ("2002:808:808::", True), ("2001:0:808:808::f7f7:f7f7", True),
        ("2001:0:808:808::80ff:fffe", False), ("2001:db8::1", False), ("fec0::1", False), ("64:ff9b:1::7f00:1", False),
        ("64:ff9b:1::808:808", False), ("::127.0.0.1", False), ("::a00:1", False), ("::ffff:0:127.0.0.1", False),
    ],
)  # fmt: skip
def test_which_addresses_are_public(address, public):
    assert addresses.is_public(ip_address(address)) is public


@pytest.fixture
def names(monkeypatch) -> dict[str, list[str]]:
    """The addresses that a name has, one each time that it is looked up; every connection ends at this machine."""
    known: dict[str, list[str]] = {}
    connect = addresses.httpcore2.SyncBackend.connect_tcp
    monkeypatch.setattr(addresses, "_look_up", lambda host, port: [known[host].pop(0)] if host in known else [host])
    monkeypatch.setattr(
        addresses.httpcore2.SyncBackend, "connect_tcp", lambda self, host, port, *more: connect(self, "127.0.0.1", port)
    )
    return known


def test_a_name_is_looked_up_once(names, server):
    """One that leads elsewhere when it is asked a second time leads nowhere."""
    names["example.org"] = ["8.8.8.8", "127.0.0.1"]
    address = f"http://example.org:{server.server_port}/ok/1.jpg"
    with client(1, Bounds(10**6)) as asker:
        assert fetch(asker, address, Bounds(10**6)) == server.picture(1)
    with client(1, Bounds(10**6)) as asker, pytest.raises(Unfetched, match="refused: private or loopback address"):
        fetch(asker, address, Bounds(10**6))
    assert server.asked.total() == 1


def test_a_redirect_to_the_own_network_is_refused(names, server):
    names["example.org"] = ["8.8.8.8"]
    own = f"/127.0.0.1:{server.server_port}/ok/1.jpg"  # Location: //127.0.0.1:PORT/ok/1.jpg
    with client(1, Bounds(10**6)) as asker:
        place = fetch(asker, f"http://example.org:{server.server_port}/to/{own}", Bounds(10**6))
        assert place == Moved(server.url("ok/1.jpg"))
        with pytest.raises(Unfetched, match="refused"):
            fetch(asker, place.url, Bounds(10**6))
    assert server.asked.total() == 1


def test_behind_a_proxy_literal_addresses_are_refused(monkeypatch, server):
    monkeypatch.setenv("http_proxy", server.url(""))
    with client(1, Bounds(10**6)) as asker:
        for host in ("127.0.0.1", "localhost", "[::1]", "169.254.169.254"):
            with pytest.raises(Unfetched, match="refused"):
                fetch(asker, f"http://{host}/ok/1.jpg", Bounds(10**6))
    assert not server.asked


def test_what_no_proxy_is_for_is_looked_at_as_without_one(monkeypatch, names, server):
    """A variable of another scheme, and a host that the proxy is not for, do not open the own network."""
    names["example.org"] = ["127.0.0.1", "10.0.0.1", "192.168.0.1"]
    address = f"http://example.org:{server.server_port}/ok/1.jpg"
    for name, value in (
        ("no_proxy", "internal.example"), ("https_proxy", server.url("")), ("http_proxy", server.url("")),
    ):  # fmt: skip
        monkeypatch.setenv(name, f"{value},example.org" if name == "no_proxy" else value)
        with client(1, Bounds(10**6)) as asker, pytest.raises(Unfetched, match="refused: private or loopback address"):
            fetch(asker, address, Bounds(10**6))
    assert not server.asked and not names["example.org"]
    with client(1, Bounds(10**6)) as asker:  # of which the proxy is asked
        assert fetch(asker, "http://example.com/ok/1.jpg", Bounds(10**6)) == server.picture(1)
    assert set(server.asked) == {"http://example.com/ok/1.jpg"}


@pytest.mark.parametrize("proxied", [False, True])
def test_numbers_that_hide_an_address_are_refused(monkeypatch, server, proxied):
    if proxied:
        monkeypatch.setenv("http_proxy", server.url(""))
    with client(1, Bounds(10**6)) as asker:
        for host in ("127.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.0.0.1.", "localhost.", "127.0.0.0x1"):
            with pytest.raises(Unfetched, match=r"^refused|no URL that"):
                fetch(asker, f"http://{host}:{server.server_port}/ok/1.jpg", Bounds(10**6))
    assert not server.asked


def test_a_proxy_that_cannot_be_used(monkeypatch):
    monkeypatch.setenv("http_proxy", "gopher://127.0.0.1:70")
    with pytest.raises(UsageError, match="the proxy set in the environment cannot be used"):
        client(1, Bounds(10**6))


# ---- parts


def test_pace():
    pace = Pace[str](0, 2)
    for name in ("a1", "a2", "b1"):
        pace.put(name, name[0])
    assert [pace.next(0), pace.next(0), pace.next(0)] == ["a1", "b1", 0.5]
    pace.delay("a", 3)
    pace.put("b2", "b", not_before=1)
    assert [pace.next(now) for now in (0.5, 1, 1, 3, 3)] == [0.5, "b2", 2, "a2", float("inf")]
    for name in ("c1", "c2", "c3"):
        pace.put(name, "c")
    pace.put("c0", "c", not_before=4)  # tried again: it goes first when its time has come
    assert [pace.next(now) for now in (3.5, 4, 4.5, 5)] == ["c1", "c0", "c2", "c3"]


def test_pace_of_all_hosts_together():
    pace = Pace[int](10, 0)
    for number in range(50):
        pace.put(number, str(number))
    now, out = 0.0, []
    while (found := pace.next(now)) != float("inf"):
        if isinstance(found, float):
            now += found
        else:
            out.append((found, now))
    assert [number for number, _ in out] == list(range(50)) and out[-1][1] == pytest.approx(4.9)


def test_pace_forgets_hosts(monkeypatch):
    monkeypatch.setattr(pace, "_FEW", 10)
    paced = Pace[int](0, 1)
    for number in range(500):
        paced.put(number, str(number))
        assert paced.next(number) == number
    assert len(paced._host_free_at) <= 10


def jpeg(size: tuple[int, int], mode: str = "RGB", format: str = "JPEG", **more: Any) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, "red" if mode == "RGB" else 0).save(out, format, **more)
    return out.getvalue()


@pytest.mark.parametrize(
    ("size", "resize", "wanted"),
    [
        ((800, 600), "keep_ratio", (512, 384)), ((800, 600), "keep_ratio_largest", (384, 288)),
        ((800, 600), "no", (800, 600)), ((500, 380), "keep_ratio", (500, 380)), ((600, 800), "keep_ratio", (384, 512)),
    ],
)  # fmt: skip
def test_sizes(size, resize, wanted):
    data = jpeg(size)
    small = resized(data, 384, resize)
    assert small.size == wanted == Image.open(io.BytesIO(small.data)).size and small.original == size
    assert (small.data == data) == (wanted == size)


def test_pictures_become_upright_rgb_jpeg():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert resized(jpeg((800, 600), exif=exif), 384, "keep_ratio").size == (384, 512)
    small = Image.open(io.BytesIO(resized(jpeg((40, 30), "RGBA", "PNG"), 384, "keep_ratio").data))
    assert small.format == "JPEG" and small.getpixel((5, 5)) == (255, 255, 255)  # what is transparent is white
    with pytest.raises(ImageError, match="smaller than 16 pixels"):
        resized(jpeg((40, 1)), 384, "keep_ratio")


def test_whatever_a_decoder_raises_is_a_reason_of_its_row(tmp_path, server, monkeypatch):
    def load(image: Image.Image) -> None:
        raise RuntimeError("Failed to decode frame 0: Decoding of color planes failed")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    monkeypatch.setattr(server, "picture", lambda number: jpeg((40, 30), format="PNG" if number else "JPEG"))
    facts, _ = prepare(tmp_path / "out", listed(tmp_path / "list.tsv", [server.url(f"ok/{n}.jpg") for n in (0, 1)]))
    assert facts["splits"]["train"]["reasons"] == {"success": 1, "cannot be read": 1}


def test_a_picture_of_too_many_pixels_is_not_decoded(monkeypatch):
    monkeypatch.setattr(resizing, "_MOST", 40 * 30 - 1)
    with pytest.raises(ImageError, match="more than 89 megapixels"):
        resized(jpeg((40, 30)), 384, "keep_ratio")
