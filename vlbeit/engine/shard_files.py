"""The files of torch's distributed checkpoint: every process writes its own parts, any number of them read it back.

`.metadata` (a pickle, of which only torch's own descriptions are taken) says which file holds which part of which
tensor; `__R_N.distcp` are the parts of process R. A tensor that several processes have is written once.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import BlockingAsyncStager

from vlbeit.engine.sharded import empty_like

METADATA = ".metadata"
_NAMES = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    *(("pathlib", name) for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath")),
    *(("pathlib._local", name) for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath")),
    *(("torch.distributed.checkpoint.filesystem", name) for name in ("_StorageInfo", "_StoragePrefix")),
    *(
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "TensorProperties", "ChunkStorageMetadata",
            "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
        )
    ),
}  # fmt: skip


def are_in(folder: Path) -> bool:
    """Whether a state lies there in parts."""
    return (folder / METADATA).exists()


def write(folder: Path, tensors: Mapping[str, Tensor], group: Any = None) -> None:
    """Write the parts of this process; returns when all processes have. OSError or RuntimeError on all if one fails."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            dcp.save(dict(tensors), storage_writer=FileSystemWriter(folder), process_group=group)
        except CheckpointException as error:
            raise _cause(error) from error


def read(folder: Path, targets: Mapping[str, Tensor]) -> None:
    """Fill the tensors in place, whatever they were cut like; all processes must call.

    Raises ValueError where the names or shapes there are not those of `targets`, OSError or RuntimeError for damage.
    """
    described = _described(folder)
    if missing := sorted(targets.keys() - described.keys()):
        raise ValueError(f"it has no {', '.join(missing[:3])}")
    if excess := sorted(described.keys() - targets.keys()):
        parts = {name.partition("/")[0] for name in targets}  # the weights alone may be asked for
        if excess := [name for name in excess if name.partition("/")[0] in parts]:
            raise ValueError(f"it has {', '.join(excess[:3])}, which this run has not")
    for name, tensor in targets.items():
        if described[name].size != tensor.shape:
            raise ValueError(f"{name} is {list(described[name].size)} there, {list(tensor.shape)} here")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            dcp.load(dict(targets), storage_reader=FileSystemReader(folder))
        except CheckpointException as error:
            raise _cause(error) from error


def moments_in(folder: Path, part: str, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Empty tensors for what the optimizer kept there: `PARAMETER/KEY` -> cut as the parameter if of its shape."""
    made = {}
    for name, described in _described(folder).items():
        if name.startswith(f"{part}/"):
            name = name.removeprefix(f"{part}/")
            parameter = parameters.get(name.rpartition("/")[0])
            if parameter is None:
                raise ValueError(f"the optimizer has {name.rpartition('/')[0]} there, which this run does not train")
            made[name] = empty_like(described.size, described.properties.dtype, parameter.detach())
    return made


def staged(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, cut as they were: training may go on while they are written."""
    own = {name: value.clone() for name, value in tensors.items() if value.device.type == "cpu"}
    others = {name: value for name, value in tensors.items() if name not in own}
    return own | (BlockingAsyncStager().stage(others) if others else {})  # type: ignore[operator]


def _described(folder: Path) -> dict[str, Any]:
    """Name -> size and type of every tensor there."""
    with open(folder / METADATA, "rb") as file:
        return _Unpickler(file).load().state_dict_metadata


class _Unpickler(pickle.Unpickler):
    """Knows the descriptions of tensors and files, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _NAMES or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{METADATA} names {module}.{name}, which has no place there")


def _cause(error: CheckpointException) -> Exception:
    """What went wrong on the first process that failed."""
    rank, (cause, _) = min(error.failures.items())
    if isinstance(cause, OSError):
        return cause
    return RuntimeError(f"process {rank}: {cause}")
