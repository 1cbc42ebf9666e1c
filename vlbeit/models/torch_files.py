"""Files of `torch.save`, as a zip or in the format before torch 1.6: where every storage lies, and the tensors there.

The file is mapped, not read: what its pickle says is held against the bytes that are there before anything is reserved.
"""

from __future__ import annotations

import io
import mmap
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlbeit.errors import DataError
from vlbeit.models import pickles
from vlbeit.models.standins import TensorRef

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
AGAIN = "download or copy it again"


class Extent(NamedTuple):
    """The bytes of one storage in the file, and their CRC-32 where the file has one."""

    offset: int
    nbytes: int
    crc: int | None = None


@dataclass
class TorchFile:
    """An opened file: `reading` holds a `TensorRef` where the object that was saved has a tensor."""

    path: Path
    view: mmap.mmap
    is_zip: bool
    reading: pickles.Reading
    extents: dict[str, Extent]
    _raw: dict[str, Tensor] = field(default_factory=dict)

    def verify(self, tensors: Iterable[TensorRef]) -> None:
        """Compare the checksums of the storages of these tensors. DataError where one differs."""
        bytes_ = memoryview(self.view)
        for key in dict.fromkeys(tensor.storage.key for tensor in tensors):
            offset, nbytes, crc = self.extents[key]
            if crc and zlib.crc32(bytes_[offset : offset + nbytes]) != crc:
                raise DataError(f"{self.path}: part data/{key} differs from its checksum in the file: {AGAIN}")

    def tensor(self, ref: TensorRef) -> Tensor:
        """The numbers themselves: mapped where the file keeps them aligned, else copied once."""
        storage, start = ref.storage, ref.storage.start * ref.storage.dtype.itemsize
        if storage.key not in self._raw:
            extent = self.extents[storage.key]
            raw = torch.empty(0, dtype=torch.uint8)
            if extent.nbytes:
                raw = torch.frombuffer(self.view, dtype=torch.uint8, count=extent.nbytes, offset=extent.offset)
            self._raw[storage.key] = raw.clone() if raw.data_ptr() % 16 else raw
        raw = self._raw[storage.key][start:]
        whole = raw[: len(raw) // ref.dtype.itemsize * ref.dtype.itemsize].view(ref.dtype)
        return torch.as_strided(whole, ref.size, ref.stride, whole.storage_offset() + ref.offset)


def open_torch_file(path: Path) -> TorchFile:
    """Map a file of `torch.save` and read its pickle without running it.

    Raises:
        DataError: it is damaged, asks to run code, claims more than it holds, or is of a format nobody reads any more.
    """
    with path.open("rb") as file:
        view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    try:
        found = _open_zip(path, view) if view[:2] == b"PK" else _open_legacy(path, view)
    except UnpicklingError as error:
        raise DataError(f"{path}: {error}{_way_out(str(error))}") from error
    for storage in found.reading.storages:
        extent, nbytes = found.extents.get(storage.key), storage.numel * storage.dtype.itemsize
        if extent is None or nbytes > extent.nbytes:
            held = "is missing" if extent is None else f"holds {extent.nbytes} bytes"
            raise DataError(f"{path}: storage {storage.key} should be {nbytes} bytes and {held}: damaged, {AGAIN}")
    return found


def _way_out(reason: str) -> str:
    if "run code" not in reason:
        return f": {AGAIN}"
    return (
        "; nothing was run. Get the file from its publisher, or where you trust this one load it with torch and save "
        "model.state_dict() alone"
    )


def _open_zip(path: Path, view: mmap.mmap) -> TorchFile:
    extents = {name: _extent(path, view, entry) for name, entry in _zip_entries(path).items()}
    offset, nbytes, _ = extents.get("byteorder", Extent(0, 0))
    _check_byte_order(path, not nbytes or view[offset : offset + nbytes] == b"little")
    offset, nbytes, crc = extents["data.pkl"]
    content = view[offset : offset + nbytes]
    if crc and zlib.crc32(content) != crc:
        raise DataError(f"{path}: its part data.pkl differs from the checksum in the file: {AGAIN}")
    storages = {name.removeprefix("data/"): extent for name, extent in extents.items() if name.startswith("data/")}
    return TorchFile(path, view, True, pickles.read(io.BytesIO(content)), storages)


def _zip_entries(path: Path) -> dict[str, zipfile.ZipInfo]:
    """The directory of the archive; names without the folder that torch puts around all of them."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            count = len(archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
        raise DataError(f"{path}: cut short, the list of parts at its end is missing: {AGAIN}") from error
    if len(entries) < count:
        raise DataError(f"{path}: a part is in it twice: {AGAIN}")
    pickle = next((name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")), None)
    if pickle is None:
        some = ", ".join(list(entries)[:3]) or "nothing"
        raise DataError(f"{path}: a zip archive of {some}, not a file of torch.save: unpack it and name what is inside")
    if pickle.replace("data.pkl", "constants.pkl") in entries:
        raise DataError(f"{path}: a TorchScript program, not weights: save model.state_dict() of it")
    return {name.removeprefix(pickle.removesuffix("data.pkl")): entry for name, entry in entries.items()}


def _check_byte_order(path: Path, little: bool) -> None:
    if little != (sys.byteorder == "little"):
        raise DataError(f"{path}: written on a machine of the other byte order: save it again on one like this")


def _extent(path: Path, view: mmap.mmap, entry: zipfile.ZipInfo) -> Extent:
    """Where the bytes of an entry lie; only what is stored as it is can be mapped, and cannot blow up."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.file_size != entry.compress_size:
        raise DataError(
            f"{path}: its part {entry.filename} is compressed, torch never does that: save it with torch.save"
        )
    header = view[entry.header_offset : entry.header_offset + 30]
    if len(header) < 30 or header[:4] != b"PK\3\4":
        raise DataError(f"{path}: its part {entry.filename} is not where it should be: damaged, {AGAIN}")
    name_length, extra_length = struct.unpack("<HH", header[26:])
    offset = entry.header_offset + 30 + name_length + extra_length
    if offset + entry.file_size > len(view):
        raise DataError(f"{path}: its part {entry.filename} reaches beyond the end of the file: {AGAIN}")
    return Extent(offset, entry.file_size, entry.CRC or None)  # 0: torch was told to leave checksums out


def _open_legacy(path: Path, view: mmap.mmap) -> TorchFile:
    """Three pickles on the format, the object, the list of storages; then each as a count (8 bytes) and its numbers."""
    if pickles.read(view).value != _LEGACY_MAGIC:
        raise DataError(f"{path}: a pickle that torch.save did not write: save its tensors with torch.save")
    pickles.read(view)
    system: Any = pickles.read(view).value
    _check_byte_order(path, not isinstance(system, dict) or bool(system.get("little_endian", True)))
    reading = pickles.read(view)
    keys = pickles.read(view).value
    sizes = {storage.key: storage.dtype.itemsize for storage in reading.storages}
    if not isinstance(keys, list) or not all(isinstance(key, str) and key in sizes for key in keys):
        raise UnpicklingError("its list of storages does not fit its tensors")
    extents, offset = {}, view.tell()
    for key in keys:
        if offset + 8 > len(view):
            raise DataError(f"{path}: ends before its storage {key}: cut short, {AGAIN}")
        (numel,) = struct.unpack("<q", view[offset : offset + 8])
        offset += 8
        extents[key] = Extent(offset, numel * sizes[key])
        if numel < 0 or offset + extents[key].nbytes > len(view):
            raise DataError(f"{path}: storage {key} of {numel} numbers reaches beyond the end of the file: {AGAIN}")
        offset += extents[key].nbytes
    return TorchFile(path, view, False, reading, extents)
