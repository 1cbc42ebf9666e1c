"""Archives read as streams: tar, compressed tar, zip, or a plain folder, one file at a time.

Nothing is unpacked to the disk and nothing is trusted. A member that is no ordinary file below the archive's root is
given with the reason why it is refused, and cannot be opened: absolute names, `..`, links, devices, sparse or
encrypted members, names that come twice or are not UTF-8, sizes that no picture has. An archive that is cut off or
damaged raises `DataError` with the last member that was whole; a tar must end with its end mark.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from vlbeit.data.names import Names
from vlbeit.data.tar_samples import DamagedError, StrictInfo
from vlbeit.errors import DataError

MEMBER_LIMIT = 256 * 2**20  # bytes of a member that is read whole
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_RATIO_LIMIT = 200  # of a zip member; JSON packs 20 times, deflate at most 1,032 times
_RATIO_FREE = 2**20  # members below this size may be packed as they like
_OPENERS: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open,
}  # fmt: skip
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, OSError, NotImplementedError)
_DRIVE = re.compile(r"^[A-Za-z]:")


class Entry(NamedTuple):
    """One file of an archive. Those of a tar can be opened only until the next one is asked for."""

    name: str  # with / between its parts
    size: int  # bytes
    refused: str  # why it must not be opened; "" where it may
    value: Path | None  # where it lies in a plain folder
    open: Callable[[], IO[bytes]]
    archive: str

    @property
    def is_tar(self) -> bool:
        """Whether it is an archive inside the archive, by its name, which is not hidden."""
        return self.name.lower().endswith(TAR_SUFFIXES) and not PurePosixPath(self.name).name.startswith(".")

    def read(self) -> bytes:
        """The whole file. Raises `DataError` where the archive is cut off in it or damaged."""
        assert not self.refused, self
        try:
            with self.open() as file:
                data = file.read(self.size + 1)
        except _DAMAGE as error:
            raise DataError(f"{self.archive} is cut off or damaged in {self.name} ({error}); get it again") from error
        if len(data) != self.size:
            raise DataError(
                f"{self.archive} is cut off or damaged in {self.name} ({len(data)} of {self.size} bytes); get it again"
            )
        return data


@contextlib.contextmanager
def entries(path: Path) -> Iterator[Iterator[Entry]]:
    """The files of an archive or folder, in their order (of a folder sorted); folders themselves are left out.

    Raises `DataError` for a file that is no archive, and while reading for one that is damaged.
    """
    if not _is_utf8(str(path.absolute())):  # it could be named neither in the shards nor in prepared.json
        raise DataError(f"{_printable(str(path.absolute()))} is not UTF-8; rename it")
    if path.is_dir():
        yield _folder(path)
    elif not path.is_file():
        raise DataError(f"{path} does not exist; give --from the archive or folder")
    elif zipfile.is_zipfile(path):
        with _zip(path) as found:
            yield found
    else:
        with open(path, "rb") as file:
            yield _tar(file, str(path))


def nested(entry: Entry) -> Iterator[Entry]:
    """The files of a tar inside a tar, read out of the outer one without a copy."""
    with entry.open() as file:
        yield from _tar(file, f"{entry.archive}: {entry.name}")


def unsafe_name(name: str) -> str:
    """Why a member with this name must not be used; "" for a name below the root of the archive."""
    if not _is_utf8(name):
        return "a name that is not UTF-8"
    parts = name.replace("\\", "/").split("/")
    if not name.strip("/.\\ ") or any(ord(letter) < 32 for letter in name):
        return "a name that is empty or has control characters"
    if name[0] in "/\\" or _DRIVE.match(name):
        return "an absolute path"
    return "a path that leads out of the archive" if ".." in parts else ""


def _is_utf8(name: str) -> bool:
    """False where Python made substitutes of bytes that it could not decode."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _tar(file: IO[bytes], label: str) -> Iterator[Entry]:
    """The files of a tar, which may be compressed and need not be seekable."""
    last = "its beginning"
    seen = Names()
    try:
        stream, mode = _unpacked(file)
        with tarfile.open(fileobj=stream, mode=mode, tarinfo=StrictInfo) as tar:  # type: ignore[call-overload]
            while (info := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would hold every header to the end
                if not info.isdir():
                    name = _plain(info.name)
                    yield _tar_entry(tar, info, name, _refusal(info) or _twice(name, seen), label)
                last = info.name
        if mode == "r|":
            while stream.read(2**20):  # what is behind the end mark: the check sum of a compressed file
                pass
    except (*_DAMAGE, DamagedError) as error:
        raise DataError(f"{label} is cut off or damaged behind {last} ({error}); get it again") from error


def _unpacked(file: IO[bytes]) -> tuple[IO[bytes], str]:
    """The bytes of the tar itself, and the mode of `tarfile`: a file that can seek lets unwanted members be skipped."""
    start = file.peek(6)  # type: ignore[attr-defined]  # buffered readers are all that comes here
    for magic, opener in _OPENERS.items():
        if start.startswith(magic):
            return opener(file), "r|"
    return file, "r:" if _seekable(file) else "r|"


def _seekable(file: IO[bytes]) -> bool:
    try:
        return file.seekable()
    except AttributeError:  # a member of a tar that is itself a stream
        return False


def _tar_entry(tar: tarfile.TarFile, info: tarfile.TarInfo, name: str, refused: str, label: str) -> Entry:
    def opened() -> IO[bytes]:
        file = tar.extractfile(info)
        assert file is not None, info
        return file

    return Entry(name, info.size, refused, None, opened, label)


def _plain(name: str) -> str:
    return str(PurePosixPath(name)) if not unsafe_name(name) else _printable(name)


def _twice(name: str, seen: Names) -> str:
    """The first of two members with one name is taken; `tar -x` would end with the last."""
    return "" if seen.add(name) else "a name that comes twice"


def _refusal(info: tarfile.TarInfo) -> str:
    if name := unsafe_name(info.name):
        return name
    if info.issym() or info.islnk():
        return f"a link to {_printable(info.linkname)}"
    if not info.isreg():
        return "a device or pipe"
    if info.issparse():
        return "a sparse file"
    return "" if info.name.lower().endswith(TAR_SUFFIXES) else _too_large(info.size, MEMBER_LIMIT)


def _too_large(size: int, limit: int) -> str:
    return f"a size of {size} bytes (limit {limit})" if size > limit else ""


@contextlib.contextmanager
def _zip(path: Path) -> Iterator[Iterator[Entry]]:
    try:
        with zipfile.ZipFile(path) as file:
            seen = Names()
            yield (
                Entry(
                    _plain(info.filename), info.file_size, _zip_refusal(info) or _twice(_plain(info.filename), seen),
                    None, lambda info=info: file.open(info), str(path),  # type: ignore[misc]
                )
                for info in file.infolist()
                if not info.is_dir()
            )  # fmt: skip
    except zipfile.BadZipFile as error:
        raise DataError(f"{path} is cut off or damaged ({error}); get it again") from error


def _zip_refusal(info: zipfile.ZipInfo) -> str:
    if name := unsafe_name(info.filename):
        return name
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "a link"
    if kind not in (0, stat.S_IFREG):
        return "a device or pipe"
    if info.flag_bits & 1:
        return "encrypted"
    if info.file_size > _RATIO_FREE and info.file_size > _RATIO_LIMIT * max(1, info.compress_size):
        return f"packed {info.file_size // max(1, info.compress_size)} times, as no picture is"
    if info.filename.lower().endswith(TAR_SUFFIXES):
        return ""
    # annotations are larger than pictures and are read on their own
    return _too_large(info.file_size, 2**33 if info.filename.endswith(".json") else MEMBER_LIMIT)


def _folder(path: Path) -> Iterator[Entry]:
    """The files of the user's own folder but for hidden ones: its links are the user's own and are followed."""
    for top, folders, files in os.walk(path, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in files if not name.startswith(".")):
            yield _file(path, Path(top, name))


def _file(root: Path, file: Path) -> Entry:
    try:
        size, refused = file.stat().st_size, ""
    except OSError as error:
        size, refused = 0, "a link to nothing" if file.is_symlink() else str(error.strerror)
    name = file.relative_to(root).as_posix()
    refused = refused or ("" if _is_utf8(name) else "a name that is not UTF-8")
    return Entry(_printable(name), size, refused, file.absolute(), lambda: file.open("rb"), str(root))
