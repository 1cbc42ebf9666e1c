"""What all preparations of archives have in common: sources, options, the run itself, the summary."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from PIL import Image

from vlbeit.data.records import PREPARED
from vlbeit.errors import DataError, Interrupted, UsageError
from vlbeit.files import write_json

from .hashes import verify
from .progress import Progress, Report, size
from .shards import BAD, Finding, Folder, Item, Layout, Position

# Options of several preparations: a type, and the text that --help shows (`vlbeit.preparing`).
Out = Annotated[Path, "folder to write"]
Format = Annotated[
    Literal["auto", "index", "folder", "parquet"],
    "index leaves pictures where they are, folder writes each as a file, parquet packs them into shards; auto: index "
    "for a folder, parquet for archives",
]
Threads = Annotated[int, "at once; 0: as many as processors, 8 at most"]
ShardMB = Annotated[int, "size of a shard in MB; what an interruption costs is one of them"]
Verify = Annotated[bool, "compare the archives with their published hashes"]


class Split(NamedTuple):
    """One split to write: bytes that it will take about, and its items behind a position."""

    name: str
    total: int
    items: Callable[[Position], Iterator[Item]]


class Plan(NamedTuple):
    """One preparation, all checks of names done: what it makes, from which splits, and how an item is examined."""

    layout: Layout
    classes: Sequence[str]
    splits: Sequence[Split]
    examine: Callable[[Item], Finding]
    archives: Sequence[Path]  # whose published hashes --verify compares


class Options(NamedTuple):
    """How it is done; none of this changes what comes out, but for the borders of the shards."""

    threads: int = 0  # 0: as many as processors, 8 at most
    shard_mb: int = 256
    verify: bool = False


def given(sources: Sequence[str]) -> list[str]:
    """The values of --from: lists with commas taken apart, but for a comma in the name of a file that is there."""
    found = [part for source in sources for part in ([source] if Path(source).exists() else source.split(","))]
    if not all(found):
        raise UsageError(f"--from {','.join(sources)} has an empty part; give files or folders, separated by commas")
    return found


def chosen(format: Format, in_place: bool) -> str:
    """The format: of `auto`, an index of pictures that lie in a folder, Parquet of those in archives."""
    if format == "index" and not in_place:
        raise UsageError("--format index needs pictures that lie in a folder; for archives: --format parquet or folder")
    return ("index" if in_place else "parquet") if format == "auto" else format


def fingerprint(path: Path) -> list[Any]:
    """By what a restarted preparation knows its source again: path, and of a file its bytes."""
    return [str(path.absolute()), path.stat().st_size if path.is_file() else None]


def run(out: Path, plan: Plan, options: Options, report: Report | None) -> dict[str, Any]:
    """Write the folder, or what of it is missing; returns what prepared.json holds.

    UsageError: `out` is something else's, or another process is at it. DataError: no space, damaged archives.
    Interrupted: Ctrl-C; the same call goes on behind the last whole shard.
    """
    if options.threads < 0 or options.shard_mb < 1:
        raise UsageError(f"--threads {options.threads}, --shard-mb {options.shard_mb}: give 0 or more, and 1 or more")
    say = report or (lambda line: None)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with alone(out), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such pictures are named as huge
        folder = Folder(out, plan.layout, shard_bytes=options.shard_mb * 10**6)
        if options.verify:
            verify(plan.archives, say)
        if folder.done:
            say(f"{out}: already there")
            return json.loads((out / PREPARED).read_text(encoding="utf-8"))
        if folder.lost:
            say(f"{folder.lost} is missing or damaged: it and what follows are written again")
        _check_space(out, plan, folder.bytes())
        try:
            for split in plan.splits:
                _write(folder, split, plan.examine, options.threads, say)
        except KeyboardInterrupt:
            raise Interrupted(
                f"stopped; {out} holds {sum(map(folder.records, (s.name for s in plan.splits)))} records in whole "
                f"shards, and the same command goes on behind them"
            ) from None
        write_json(out / "classes.json", list(plan.classes), indent=0)
        facts = folder.finish(plan.classes)
    for line in summary(out, facts):
        say(line)
    return facts


def summary(out: Path, facts: Mapping[str, Any]) -> Iterator[str]:
    """The lines printed at the end."""
    for name, split in facts["splits"].items():
        line = f"{name}: {split['records']:,} records, {size(split['bytes'])}"
        if split["classes"]:
            there = [count for count in split["classes"].values() if count]
            line += f", {len(there)} of {len(split['classes'])} classes, {min(there):,} to {max(there):,} each"
        if split["largest"]:
            line += ", {}x{} to {}x{} pixels".format(*split["smallest"], *split["largest"])
        odd = f", {split['noted']} odd but kept" if split["noted"] else ""
        yield f"{line}; {split['left_out']} left out{odd}"
    for what, count in sorted(facts["bad"].items()):
        yield f"  {what}: {count}"
    if facts["bad"]:
        yield f"{out / BAD} names each of these"
    yield f"wrote {out / PREPARED}"


def _write(folder: Folder, split: Split, examine: Callable[[Item], Finding], threads: int, say: Report) -> None:
    if folder.finished(split.name):
        say(f"{split.name}: already done")
        return
    before = sum(line["bytes"] for line in folder.lines if line["split"] == split.name and "bytes" in line)
    if before:
        say(f"{split.name}: goes on behind {folder.records(split.name):,} records")
    items = split.items(folder.position(split.name))
    with Progress(split.name, split.total, say, done=before) as progress:
        for count in folder.write(split.name, items, examine, threads or min(8, os.cpu_count() or 1)):
            progress.add(count)


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """Keeps a second process out of the folder."""
    from filelock import FileLock, Timeout

    lock = FileLock(out / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(f"{out}: another process prepares this folder; wait for it or choose another --out") from None
    try:
        yield
    finally:
        lock.release()
        (out / ".lock").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            out.rmdir()  # where nothing was written, nothing is left


def _check_space(out: Path, plan: Plan, done: int) -> None:
    if plan.layout.format == "index":
        return
    needed = sum(split.total for split in plan.splits) - done
    free = shutil.disk_usage(out).free
    if needed * 1.02 > free:
        raise DataError(
            f"{out}: about {size(needed)} are still to be written, {size(free)} are free there; make room, choose "
            f"another --out, or unpack the archives elsewhere and index them in place"
        )
