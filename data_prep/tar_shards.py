"""Shards of downloaded pictures in the layout of img2dataset: 00000.tar, 00000.parquet, 00000_stats.json.

The tar has for each picture KEY.jpg, KEY.txt (its caption) and KEY.json; the Parquet file a row for every address of
the list, also of those that failed, with status and error; the stats count them. A shard that is whole has all three.

While it is made, samples are appended to `.tmp-00000.tar`, and a line for each row to `.tmp-00000.jsonl`, which says
where in the tar its sample lies and with which check sum: a process that is killed at any point goes on behind the last
sample that is whole.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import time
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from vlbeit.files import write_by, write_json

from .resizing import Small

SUCCESS, NOT_FETCHED, NOT_READ = "success", "failed_to_download", "failed_to_resize"  # of the column `status`
_END = bytes(1024)  # two empty blocks end a tar
_COLUMNS = (
    ("key", pa.string()), ("url", pa.string()), ("caption", pa.string()), ("status", pa.string()),
    ("error_message", pa.string()), ("width", pa.int64()), ("height", pa.int64()), ("original_width", pa.int64()),
    ("original_height", pa.int64()), ("sha256", pa.string()),
)  # fmt: skip


class Row(NamedTuple):
    """What became of one row of a list."""

    number: int  # in the list, from 0
    url: str
    caption: str
    status: str
    reason: str = ""  # why it failed
    picture: Small | None = None


def stats_of(folder: Path, number: int) -> dict[str, Any] | None:
    """The stats of a shard that is whole; None of any other."""
    try:
        stats = json.loads((folder / f"{number:05d}_stats.json").read_text(encoding="utf-8"))
        whole = (folder / f"{number:05d}.tar").stat().st_size == stats["bytes"]
    except (OSError, ValueError, KeyError):
        return None
    return stats if whole else None


class TarShard:
    """One shard in the making, `rows` rows from `number * per_shard` on. What of it is there is taken over."""

    def __init__(self, folder: Path, number: int, rows: int, per_shard: int) -> None:
        self.number, self.rows = number, rows
        self._folder, self._name, self._digits = folder, f"{number:05d}", len(str(per_shard - 1))
        self._per_shard = per_shard
        self._started = time.time()
        self._tar, self._journal = folder / f".tmp-{self._name}.tar", folder / f".tmp-{self._name}.jsonl"
        if not self._tar.exists() and self._journal.exists() and self._final.exists():
            os.replace(self._final, self._tar)  # killed between its last two steps
        self._lines = self._recovered()
        self._tar_file = open(self._tar, "r+b")  # noqa: SIM115  # closed by finish and close
        self._journal_file = open(self._journal, "ab")  # noqa: SIM115

    @property
    def _final(self) -> Path:
        return self._folder / f"{self._name}.tar"

    @property
    def done(self) -> set[int]:
        """Numbers of the rows that are in it."""
        return set(self._lines)

    @property
    def full(self) -> bool:
        return len(self._lines) == self.rows

    @property
    def address(self) -> str:
        """One that gave a picture; "" where none did."""
        return next((line["url"] for line in self._lines.values() if line["status"] == SUCCESS), "")

    def reasons(self) -> Counter[str]:
        """How many rows there are by what became of them."""
        return Counter(line["error_message"] or SUCCESS for line in self._lines.values())

    def add(self, row: Row) -> None:
        """Take in a row, and its picture where there is one."""
        line: dict[str, Any] = {
            "row": row.number, "key": self._key(row.number), "url": row.url, "caption": row.caption,
            "status": row.status, "error_message": row.reason or None,
            **dict.fromkeys(("width", "height", "original_width", "original_height", "sha256")),
        }  # fmt: skip
        if row.picture is not None:
            line |= dict(zip(("width", "height"), row.picture.size, strict=True))
            line |= dict(zip(("original_width", "original_height"), row.picture.original, strict=True))
            line["sha256"] = hashlib.sha256(row.picture.data).hexdigest()
            sample = _sample(line, row.picture.data)
            self._tar_file.seek(0, os.SEEK_END)
            line |= {"at": self._tar_file.tell(), "bytes": len(sample), "crc": zlib.crc32(sample)}
            self._tar_file.write(sample)
            self._tar_file.flush()  # before the line that says so
        self._journal_file.write(json.dumps(line).encode() + b"\n")
        self._journal_file.flush()
        self._lines[row.number] = line

    def finish(self) -> dict[str, Any]:
        """Make the shard whole; returns its stats."""
        self._tar_file.seek(0, os.SEEK_END)
        self._tar_file.write(_END)
        self._tar_file.flush()
        os.fsync(self._tar_file.fileno())
        size = self._tar_file.tell()
        self.close()
        lines = [self._lines[number] for number in sorted(self._lines)]
        table = pa.Table.from_pylist(lines, schema=pa.schema(_COLUMNS))
        write_by(self._folder / f"{self._name}.parquet", lambda path: pq.write_table(table, path))
        os.replace(self._tar, self._final)
        status = Counter(line["status"] for line in lines)
        stats = {
            "count": len(lines), "successes": status[SUCCESS], NOT_FETCHED: status[NOT_FETCHED],
            NOT_READ: status[NOT_READ], "duration": time.time() - self._started, "start_time": self._started,
            "end_time": time.time(), "status_dict": dict(self.reasons()), "bytes": size,
        }  # fmt: skip
        write_json(self._folder / f"{self._name}_stats.json", stats, indent=4)
        self._journal.unlink()
        return stats

    def close(self) -> None:
        """Let go of the files; what is in them is gone on with."""
        self._tar_file.close()
        self._journal_file.close()

    def _key(self, row: int) -> str:
        """As of img2dataset: the shard, then the place in it."""
        return f"{self._name}{row % self._per_shard:0{self._digits}d}"

    def _recovered(self) -> dict[int, dict[str, Any]]:
        """The lines of a journal that was left, as far as the tar bears them out; both files are cut to that."""
        self._tar.touch()
        lines = _whole_lines(self._journal)
        sound, end = [], 0
        with open(self._tar, "rb") as file:
            for line in lines:
                if "at" in line:
                    file.seek(line["at"])
                    data = file.read(line["bytes"])
                    if line["at"] != end or len(data) != line["bytes"] or zlib.crc32(data) != line["crc"]:
                        break
                    end += len(data)
                sound.append(line)
        os.truncate(self._tar, end)
        write_by(self._journal, lambda path: path.write_bytes(b"".join(json.dumps(x).encode() + b"\n" for x in sound)))
        return {line["row"]: line for line in sound}


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    found = []
    for line in path.read_bytes().split(b"\n")[:-1]:  # what follows the last end of a line was being written
        try:
            found.append(json.loads(line))
        except ValueError:  # after a failure of power: zeros
            break
    return found


def _sample(line: Mapping[str, Any], picture: bytes) -> bytes:
    """The members of one sample, whole blocks of a tar."""
    facts = {name: line[name] for name, _ in _COLUMNS}
    out = io.BytesIO()
    tar = tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115  # closing would end it
    members = {"jpg": picture, "txt": line["caption"].encode(), "json": json.dumps(facts, indent=4).encode()}
    for suffix, data in members.items():
        info = tarfile.TarInfo(f"{line['key']}.{suffix}")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return out.getvalue()
