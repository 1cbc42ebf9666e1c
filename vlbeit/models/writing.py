"""Tensors to a file, atomically, and without a second copy of them in memory."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from vlbeit import files


def write_tensors(path: str | Path, state: Mapping[str, Tensor], *, key: str = "model") -> Path:
    """Replace `path` by the tensors or leave it untouched: safetensors, or torch's `{key: ...}` by other suffixes.

    Raises OSError, naming `path`, where the disk is full or refuses.
    """
    path = Path(path)
    tensors = _apart(state)
    with _disk_errors(path):
        if path.suffix == ".safetensors":
            return files.write_by(path, lambda place: save_file(tensors, place, metadata={"format": "pt"}))
        return files.write_by(path, lambda place: _save_with_torch({key: tensors}, place))


def _save_with_torch(wrapped: dict[str, dict[str, Tensor]], place: Path) -> None:
    with open(place, "wb") as file:  # a path would give its temporary name to the archive's inner folder
        torch.save(wrapped, file)


def _apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors on the CPU, a copy only of those that are part of a larger one or share their memory."""
    out: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, value in state.items():
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in taken or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        taken.add(tensor.untyped_storage().data_ptr())
        out[name] = tensor
    return out


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """The OSError that torch and safetensors wrap in errors of their own."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        told = re.search(r"os error (\d+)", str(error))
        inner = error.__cause__ or error.__context__
        number = int(told[1]) if told else getattr(inner, "errno", None)
        if number is None and "inline_container" in str(error):  # torch's archive writer loses what the disk said
            number = errno.EIO
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error
