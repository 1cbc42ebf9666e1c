"""The samples of a WebDataset tar: where each picture lies, and its texts. Who trains and who checks read the same.

A sample are members that follow each other and have all before the first dot of their names in common. What is behind
that dot says what a member is, and must be one ending alone: `1.5.jpg` belongs to a sample `1` and is not its picture.
An ending that comes again begins the next sample.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from vlbeit.errors import DataError

PICTURES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
_TEXTS = ("txt", "caption", "text")  # members that are a text
_FACTS = ("caption", "captions", "text", "txt")  # keys of a JSON member
_LIMIT = 2**28  # bytes of a member that is read; a larger one is no part of a sample
_HEADER_LIMIT = 2**16  # bytes of a name or of attributes that stand before a member
_SIZE_LIMIT = 2**60  # bytes that a member may have in itself; in base 256 a header can say more, and less than none
_NAME_TYPES = (
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE,
)  # fmt: skip


class Sample(NamedTuple):
    """One sample of a tar."""

    key: str
    texts: Sequence[str]  # those that are not empty
    at: int = -1  # first byte of the picture; -1: it has none
    length: int = -1  # bytes of the picture
    name: str = ""  # of the picture's member


class DamagedError(Exception):
    """A header that is none, where another member or the end mark should be."""


class StrictInfo(tarfile.TarInfo):
    """Headers read strictly: Python takes a damaged one behind the first member for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> StrictInfo:
        """A header of 512 bytes. A name or attributes that it announces are read whole, so they must be short."""
        info = _sized(super().frombuf(buf, encoding, errors))
        if info.type in _NAME_TYPES and info.size > _HEADER_LIMIT:
            raise DamagedError(f"a name or attributes of {info.size} bytes")
        return info  # type: ignore[return-value]

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> StrictInfo:
        """The next header with those that belong to it: its attributes may give it another size."""
        try:
            return _sized(super().fromtarfile(tarfile_))  # type: ignore[return-value]
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the end mark
            raise
        except (tarfile.HeaderError, ValueError, IndexError, RecursionError) as error:
            raise DamagedError(str(error)) from error


def _sized(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """The header. `DamagedError` where what it says would lead back to a header before it, or out of any file."""
    if not 0 <= info.size <= _SIZE_LIMIT:
        raise DamagedError(f"a member of {info.size} bytes")
    return info


def tar_samples(file: BinaryIO, name: str) -> Iterator[Sample]:
    """The samples of an open file, in their order. `name` is for messages.

    Raises `DataError` for a file that is no tar, is compressed, has a damaged header, ends without the end mark or goes
    on behind it, or cannot be read.
    """
    members: dict[str, Any] = {}
    current, offset = "", 0
    try:
        with tarfile.open(fileobj=file, mode="r:", tarinfo=StrictInfo) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # of which tarfile would keep all
                offset = tar.offset  # type: ignore[attr-defined]  # of the next header
                key, ending = _parted(member.name)
                if not key or not member.isreg() or member.issparse():
                    continue
                if (key != current or ending in members) and members:
                    yield _sample(current, members)
                    members = {}
                current = key
                members[ending] = _content(tar, member, ending)
            if members:
                yield _sample(current, members)
        _check_end(file, offset, name)
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}; copy or download it again") from error
    except (tarfile.TarError, DamagedError, EOFError) as error:
        if _is_gzip(file):
            raise DataError(f"{name} is compressed and cannot be read by offset; unpack it with gunzip") from error
        raise DataError(
            f"{name} is cut off or damaged, or no tar file: at byte {offset:,} {error}; copy or download it again"
        ) from error


def _check_end(file: BinaryIO, offset: int, name: str) -> None:
    """Raise `DataError` where something stands behind the end mark, as in tars that were joined by `cat`."""
    file.seek(offset)
    while part := file.read(2**20):
        if part.strip(b"\0"):
            raise DataError(
                f"{name} goes on behind its end mark at byte {offset:,}, as tars that were joined by `cat`: write one "
                "tar of the files that `tar --ignore-zeros -x` finds in it"
            )


def _parted(name: str) -> tuple[str, str]:
    """Key and ending of a member; "" for the key of a hidden one."""
    folder, _, base = name.encode("utf-8", "backslashreplace").decode().rpartition("/")  # names may be of any bytes
    stem, _, ending = base.partition(".")
    return f"{folder}/{stem}" if stem and folder not in ("", ".") else stem, ending.lower()


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, ending: str) -> Any:
    """Of a picture its place, of a text or facts the texts, of others nothing."""
    if member.size > _LIMIT:
        return None
    if ending in PICTURES:
        return member.offset_data, member.size, member.name
    if ending not in (*_TEXTS, "json"):
        return None
    file = tar.extractfile(member)
    assert file is not None, member
    return (_texts_of if ending == "json" else _text_of)(file.read())


def _sample(key: str, members: dict[str, Any]) -> Sample:
    """The first picture, and the texts of the first text that there is, or else those of the JSON."""
    place = next((value for ending, value in members.items() if ending in PICTURES and value), ())
    texts = next((value for ending, value in members.items() if ending in _TEXTS), None) or members.get("json") or []
    return Sample(key, texts, *place)


def _text_of(content: bytes) -> list[str]:
    try:
        return kept_texts(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return []


def _texts_of(content: bytes) -> list[str]:
    try:
        facts = json.loads(content)
    except (ValueError, RecursionError):
        return []
    return next((kept_texts(facts[name]) for name in _FACTS if facts.get(name)), []) if isinstance(facts, dict) else []


def kept_texts(value: Any) -> list[str]:
    """The texts of a value, a text or a list of texts, that say something and that UTF-8 can write."""
    texts = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return [text.strip() for text in texts if isinstance(text, str) and text.strip() and _writable(text)]


def _writable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_gzip(file: BinaryIO) -> bool:
    file.seek(0)
    return file.read(2) == b"\x1f\x8b"
