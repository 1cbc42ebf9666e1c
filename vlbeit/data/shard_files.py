"""Where shards lie: folders, patterns and addresses of any file system that fsspec knows, and local copies of them.

A remote shard is fetched whole when it is first needed, and kept in the cache folder as long as there is room.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from vlbeit.data.index import cache_folder
from vlbeit.errors import DataError, UsageError, UserError

log = logging.getLogger(__name__)

SUFFIXES = (".tar", ".parquet")
_WAITS = (1.0, 4.0)  # seconds before a shard is asked for again
_STAMPS = ("ETag", "etag", "oid", "LastModified", "last_modified", "mtime", "created")
_STALE = 86400.0  # seconds after which what an interrupted process left is removed


class ShardFile(NamedTuple):
    """One shard as it was when it was listed."""

    name: str  # absolute path, or address
    size: int  # bytes
    stamp: str  # changes with its content: time or tag, "" where none is known

    @property
    def remote(self) -> bool:
        return is_remote(self.name)

    @property
    def stem(self) -> str:
        """Its name without folders and ending."""
        return self.name.rpartition("/")[2].rpartition(".")[0]

    @property
    def folder(self) -> str:
        """Name of the folder that it lies in."""
        return self.name.rpartition("/")[0].rpartition("/")[2]


def is_remote(name: str) -> bool:
    """Whether this is an address and no path."""
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*(::|://)", name) is not None


def expanded(pattern: str) -> list[str]:
    """What the braces of a pattern stand for: `{000..331}` for numbers of as many digits, `{a,b}` for alternatives."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if numbers:
        first, last, width = int(numbers[1]), int(numbers[2]), len(numbers[1])
        parts = [f"{number:0{width}d}" for number in range(first, last + 1)]
        if not parts:
            raise UsageError(f"{pattern}: {match[0]} counts down; write the smaller number first")
    else:
        parts = match[1].split(",")
    heads = [pattern[: match.start()] + part for part in parts]
    return [head + tail for head, tail in itertools.product(heads, expanded(pattern[match.end() :]))]


def file_system(name: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path there. Raises `UsageError` where a package is lacking."""
    import fsspec

    try:
        with asked():
            return fsspec.core.url_to_fs(name)
    except (OSError, ImportError, ValueError) as error:
        raise UsageError(f"{name} cannot be opened: {reason(error)}") from error


def listed(root: str, splits: Sequence[str]) -> list[ShardFile]:
    """The shards of a folder (and of its subfolders `splits`), of a pattern, or the one file that `root` is, sorted.

    What img2dataset writes beside a tar file, a table of the same name, is none. Raises `DataError` where something
    that was named is not there.
    """
    found = [file for name in expanded(root) for file in (_remote if is_remote(name) else _local)(name, splits)]
    tars = {file.name.removesuffix(".tar") for file in found if file.name.endswith(".tar")}
    kept = {file.name: file for file in found if file.name.removesuffix(".parquet") not in tars}
    return [kept[name] for name in sorted(kept)]


def _local(name: str, splits: Sequence[str]) -> Iterator[ShardFile]:
    path = Path(name).expanduser().absolute()
    if path.is_dir():
        for folder in (path, *(path / split for split in splits)):
            if folder.is_dir():
                yield from (_stat(file) for file in folder.iterdir() if file.suffix in SUFFIXES and file.name[0] != ".")
    elif any(sign in name for sign in "*?["):
        found = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
        yield from (_stat(file) for file in found if file.suffix in SUFFIXES)
    else:
        yield _stat(path)


def _stat(path: Path) -> ShardFile:
    try:
        facts = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}; name a file that is there") from error
    return ShardFile(str(path), facts.st_size, str(facts.st_mtime_ns))


def _remote(name: str, splits: Sequence[str]) -> Iterator[ShardFile]:
    system, path = file_system(name)
    try:
        with asked():
            entries = _entries(system, path, splits)
    except OSError as error:
        raise DataError(f"{name} cannot be listed: {reason(error)}; see whether the address is right") from error
    for entry in entries:
        address = system.unstrip_protocol(entry["name"])
        if entry["type"] == "file" and address.endswith(SUFFIXES):
            yield ShardFile(address, int(entry.get("size") or 0), _stamp(entry))


def _entries(system: Any, path: str, splits: Sequence[str]) -> list[dict[str, Any]]:
    if any(sign in path for sign in "*?["):
        return list(system.glob(path, detail=True).values())
    if path.endswith(SUFFIXES):
        return [system.info(path)]
    entries: list[dict[str, Any]] = system.ls(path, detail=True)
    below = [entry["name"] for entry in entries if entry["type"] == "directory"]
    below = [each for each in below if each.rstrip("/").rpartition("/")[2] in splits]
    return entries + [entry for each in below for entry in system.ls(each, detail=True)]


def _stamp(entry: dict[str, Any]) -> str:
    """`KEY VALUE` of what a file system knows about the content of a file, a tag or a time; "" for nothing."""
    key = next((key for key in _STAMPS if entry.get(key)), None)
    if key is None:
        return ""
    value = entry[key]
    return f"{key} {value.timestamp() if isinstance(value, datetime) else value}"


def _differ(one: ShardFile, other: ShardFile) -> bool:
    """Whether two looks at a file saw different ones; a list may tell other facts than a look at the file alone."""
    stamps = one.stamp.partition(" "), other.stamp.partition(" ")
    return one.size != other.size or (stamps[0][0] == stamps[1][0] and stamps[0] != stamps[1])


class RemoteError(OSError):
    """What a file system raised that is no OSError: some let errors of their libraries through."""


@contextmanager
def asked() -> Iterator[None]:
    """Around a question to a file system: whatever it raises becomes an OSError."""
    try:
        yield
    except (OSError, UserError):
        raise
    except Exception as error:
        raise RemoteError(reason(error)) from error


def reason(error: BaseException) -> str:
    """What went wrong, in one line."""
    if isinstance(error, RemoteError):
        return str(error)
    return " ".join(f"{type(error).__name__}: {error}".split())


class LocalFiles:
    """Shards as local files: their own where they are local, else copies in the cache folder."""

    def __init__(self, cache: str | Path, most_bytes: float | None) -> None:
        """`most_bytes`: room for copies, about; the least recently used go first. None: no bound."""
        self._folder, self._most = cache_folder(cache) / "shards", most_bytes

    def open(self, shard: ShardFile, key: str) -> BinaryIO:
        """What the shard holds; `key` names its copy, which can be read to its end though others have it removed.

        Raises `DataError` where the shard is gone, cannot be read or is another one than when it was listed.
        """
        if not shard.remote:
            return _open_local(Path(shard.name))
        path = self._folder / f"{key}-{shard.name.rpartition('/')[2]}"
        try:
            return _open_copy(path) or self._fetch(shard, path)
        except OSError as error:
            raise DataError(
                f"cannot keep {shard.name} in {self._folder}: {error.strerror or error}; set data.cache="
            ) from error

    def _fetch(self, shard: ShardFile, path: Path) -> BinaryIO:
        from filelock import FileLock

        self._folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if (copy := _open_copy(path)) is not None:  # others fetched it meanwhile
                return copy
            self._make_room(shard.size)
            temporary = path.with_name(f".tmp-{path.name}")  # the lock keeps others away from it
            try:
                _download(shard, temporary)
                file = _open_local(temporary)  # before others can remove it
                os.replace(temporary, path)
                return file
            finally:
                temporary.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Remove the copies that were not used for longest until one of this size fits in."""
        from filelock import FileLock

        with FileLock(self._folder / ".room.lock"):
            held = []
            for entry in os.scandir(self._folder):
                with suppress(FileNotFoundError):  # what another process is done with goes any time
                    facts = entry.stat()
                    if entry.name.startswith(".tmp-") and facts.st_mtime < time.time() - _STALE:
                        os.unlink(entry.path)
                    elif not entry.name.endswith(".lock"):
                        held.append((facts.st_mtime, facts.st_size, entry))
            room = float("inf") if self._most is None else self._most - size - sum(size for _, size, _ in held)
            for _, freed, entry in sorted(held, key=lambda each: each[0]):
                if room >= 0:
                    break
                if not entry.name.startswith(".tmp-"):
                    with suppress(FileNotFoundError):
                        os.unlink(entry.path)  # who has it open goes on reading it
                    room += freed


def _open_local(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except FileNotFoundError as error:
        raise DataError(f"{path} is gone; put it back, or start the run again without it") from error
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror or error}; mend that, or start the run again without it"
        ) from error


def _open_copy(path: Path) -> BinaryIO | None:
    """The copy, None where there is none."""
    with suppress(FileNotFoundError):  # others may remove it any time
        os.utime(path)  # used now: others go first
        return open(path, "rb")
    return None


def _download(shard: ShardFile, path: Path) -> None:
    """Fetch a shard as it was listed, with some patience."""
    system, place = file_system(shard.name)
    for wait in (*_WAITS, None):
        try:
            with asked():
                system.invalidate_cache()
                facts = system.info(place)
            now = ShardFile(shard.name, int(facts.get("size") or 0), _stamp(facts))
            if _differ(now, shard):
                raise DataError(f"{shard.name} is another file than when it was listed; start the run again")
            with asked():
                system.get_file(place, str(path))
            if path.stat().st_size != shard.size and shard.size:
                raise OSError(f"{path.stat().st_size} bytes came of {shard.size}")
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
            return
        except FileNotFoundError as error:
            raise DataError(f"{shard.name} is gone; put it back, or start the run again without it") from error
        except OSError as error:
            if wait is None:
                raise DataError(
                    f"{shard.name} cannot be fetched: {reason(error)}; run the same command again"
                ) from error
            log.warning("%s cannot be fetched (%s): asked for again in %g s", shard.name, reason(error), wait)
            time.sleep(wait)
