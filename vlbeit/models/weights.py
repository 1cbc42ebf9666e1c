"""The tensors of any checkpoint, by what the file or folder holds and never by its name; nothing in it is run.

`.safetensors` · files of `torch.save`, new and old, also of whole modules · folders of Hugging Face and DeepSpeed
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vlbeit.errors import DataError
from vlbeit.models.torch_files import AGAIN, TorchFile, open_torch_file
from vlbeit.models.unwrap import Chosen, choose
from vlbeit.models.weight_files import NAMED, PATTERNS, weight_files

# Names in files that torch reads itself. Its own list of safe names is longer than weights need, and some of them
# reserve memory as the file likes. Official training states carry their arguments: a Namespace, a bag of attributes.
_PLAIN_NAMES = {
    *("collections.OrderedDict", "builtins.set", "torch.Size", "torch.device", "argparse.Namespace"),
    *(f"torch._utils.{name}" for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")),
    *(f"torch.{kind}Storage" for kind in ("Float", "Double", "Half", "BFloat16")),
    *(f"torch.{kind}Storage" for kind in ("Long", "Int", "Short", "Char", "Byte", "Bool")),
}
_PREFIXES = ("module.", "_orig_mod.")
_HEADER_LIMIT = 100_000_000  # bytes: of safetensors itself
_OTHER_FILES = (
    (b"version https://git-lfs", "the pointer of git-lfs to a file, not the file: run `git lfs pull` or download it"),
    (b"\xff\xd8\xff", "a JPEG picture: name the checkpoint"),
    (b"\x89PNG", "a PNG picture: name the checkpoint"),
    (b"\x1f\x8b", "packed with gzip: unpack it first"),
    (b"\xfd7zXZ", "packed with xz: unpack it first"),
    (b"BZh", "packed with bzip2: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "packed with zstd: unpack it first"),
    (b"\x89HDF", "an HDF5 file, as of Keras: only PyTorch checkpoints are read"),
    (b"\x93NUMPY", "a NumPy array: name the checkpoint"),
    (b"GGUF", "a GGUF file: only PyTorch checkpoints are read"),
)


class Weights(NamedTuple):
    """`state`: name -> tensor, as stored. `source`: the keys that they lay below in the file, with dots between.

    `others`: further sets of weights in the file that were left, such as an average.
    """

    state: dict[str, Tensor]
    source: str = ""
    others: tuple[str, ...] = ()


def read_weights(path: str | Path, *, allow: Collection[str] = ()) -> dict[str, Tensor]:
    """The tensors of a checkpoint file or folder; see `open_weights`."""
    return open_weights(path, allow=allow).state


def open_weights(path: str | Path, *, allow: Collection[str] = ()) -> Weights:
    """The tensors of a checkpoint file or folder, and where in it they lay.

    Of a training state the entry `model`, `module` or `state_dict` is taken (in this order; an average only where there
    is nothing else), entries that are no tensors are dropped, and a `module.` before every name is cut off. Shapes and
    dtypes stay as stored: fp16, bf16 and fp64 are not made float32 here. Tensors lie on the CPU, most of them mapped
    from the file: changing one does not change the file, and the file must not be cut while they are in use.

    Args:
        path: a `.safetensors` file, a file of `torch.save` (new or old, a state dict or a whole module), a folder in
            the layout of Hugging Face or with a single file of weights, or one of DeepSpeed (with `latest`, or one of
            its steps).
        allow: names, or patterns with `*`, of tensors that may hold NaN or infinite numbers.

    Raises:
        DataError: it is missing, damaged, of another kind, asks to run code, or holds numbers that are not finite.
    """
    path = Path(path)
    try:
        return _finished(_read(path), str(path), allow)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}): check the file and its rights") from error
    except DataError as error:
        raise _in_one_line(error) from error.__cause__


def weights_of(value: Mapping[str, Any], origin: str, *, allow: Collection[str] = ()) -> Weights:
    """The tensors of a state dict in memory, or of a training state around it, chosen and checked as in a file.

    They share their memory with the caller's where those lie on the CPU. Raises DataError, which begins with `origin`.
    """
    try:
        chosen = _choose(value, origin)
        state = {name: tensor.detach().cpu() for name, tensor in chosen.tensors.items()}
        return _finished(Weights(state, ".".join(chosen.keys), chosen.others), origin, allow)
    except DataError as error:
        raise _in_one_line(error) from error.__cause__


def _choose(value: Any, origin: str) -> Chosen:
    try:
        return choose(value)
    except DataError as error:
        raise DataError(f"{origin}: {error}") from error


def _in_one_line(error: DataError) -> DataError:
    """Names in it come from the file: a line of them must stay one line on a terminal."""
    return DataError("".join(char if char.isprintable() else "?" for char in str(error)))


def _finished(weights: Weights, origin: str, allow: Collection[str]) -> Weights:
    """Without what wrappers put before the names, and checked."""
    state = _without_prefixes(weights.state)
    _check_finite(origin, state, allow)
    return weights._replace(state=state)


def _read(path: Path) -> Weights:
    if path.is_dir():
        return _read_folder(path)
    if path.is_file():
        return _read_file(path)
    raise DataError(f"{path}: no such file or folder")


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Cut off what wrappers of a model put before each of its names."""
    for prefix in _PREFIXES * 2:  # either may lie within the other
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _check_finite(origin: str, state: dict[str, Tensor], allow: Collection[str]) -> None:
    if not state:
        raise DataError(f"{origin}: no tensors in it: name a file that holds weights")
    bad = [name for name, value in state.items() if not _is_finite(value)]
    bad = [name for name in bad if not any(fnmatchcase(name, pattern) for pattern in allow)]
    if bad:
        raise DataError(
            f"{origin}: {bad[0]} holds NaN or infinite numbers (it and {len(bad) - 1} other tensors): training "
            "diverged before it was saved, or the file is damaged; take another checkpoint, or take these all the "
            f"same: --allow '{bad[0]}', or allow=[...]"
        )


def _is_finite(value: Tensor) -> bool:
    """True where no number is NaN or infinite; no copy of the tensor is made for the usual dtypes."""
    if not (value.is_floating_point() or value.is_complex()) or not value.numel():
        return True
    real = torch.view_as_real(value) if value.is_complex() else value
    low, high = torch.aminmax(real.float() if real.dtype.itemsize == 1 else real)  # both are NaN where one number is
    return bool(torch.isfinite(low) and torch.isfinite(high))


def _read_file(path: Path) -> Weights:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
    header = int.from_bytes(head[:8], "little")
    if not size:
        raise DataError(f"{path} is empty: {AGAIN}")
    if head[8:9] == b"{" and header <= _HEADER_LIMIT:
        return Weights(_read_safetensors(path))
    if head[:4] in (b"PK\3\4", b"PK\5\6") or head[:1] == b"\x80":
        return _read_torch(path)
    raise DataError(f"{path} is no checkpoint but {_other_kind(head)}")


def _other_kind(head: bytes) -> str:
    """What a file is that begins so, and what to do about it."""
    for magic, kind in _OTHER_FILES:
        if head.startswith(magic):
            return kind
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it first; files of torch.save before 2017 are not read"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<error")):
        return "a web page, most likely an error message in place of the download: download it again"
    start = head[:40]
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in start):
        return f"text that begins {start.decode()!r}: {AGAIN}"
    return f"something that begins {start[:8].hex(' ')}: neither safetensors nor of torch.save; {AGAIN}"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: a damaged safetensors file ({error}): {AGAIN}") from error


def _read_torch(path: Path) -> Weights:
    """The weights in a file of `torch.save`: by torch itself where it holds plain tensors, else by `TorchFile`."""
    file = open_torch_file(path)
    chosen = _choose(file.reading.value, str(path))
    file.verify(chosen.tensors.values())
    state = _load_plain(file, chosen) if file.reading.named <= _PLAIN_NAMES else None
    if state is None:
        state = {name: file.tensor(ref) for name, ref in chosen.tensors.items()}
    return Weights(state, ".".join(chosen.keys), chosen.others)


def _load_plain(file: TorchFile, chosen: Chosen) -> dict[str, Tensor] | None:
    """As torch reads it, for names of plain tensors only; None where its reader stumbles over what is no weight."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            found: Any = torch.load(file.path, map_location="cpu", weights_only=True, mmap=file.is_zip)
    except (
        UnpicklingError,
        RuntimeError,
        ValueError,
        TypeError,
        AssertionError,
        LookupError,
        EOFError,
        SafetensorError,
    ):
        return None  # the weights are there in full, sizes and checksums have been compared; and torch goes by suffixes
    for key in chosen.keys:
        found = found[key]
    return {name: found[name].detach() for name in chosen.tensors}


def _read_folder(folder: Path) -> Weights:
    if (folder / "latest").is_file():
        step = (folder / "latest").read_text(encoding="utf-8", errors="replace").strip()
        if not step or step != Path(step).name or not (folder / step).is_dir():
            raise DataError(f"{folder}/latest names {step[:80]!r}, which is no folder in it: copy the folder again")
        return _read_step(folder / step)
    if any(folder.glob("*_model_states.pt")):
        return _read_step(folder)
    for name in NAMED:
        if (folder / name).is_file():
            return _read_file(folder / name)
        if (folder / f"{name}.index.json").is_file():
            return Weights(_read_shards(folder, folder / f"{name}.index.json"))
    steps = sorted(path.parent.name for path in folder.glob("*/mp_rank_00_model_states.pt"))
    if steps:
        raise DataError(f"{folder} lacks the file latest: name one of its steps, as {folder / steps[-1]}")
    found = weight_files(folder)
    if len(found) == 1:
        return _read_file(found[0])
    if found:
        names = ", ".join(path.name for path in found[:4])
        raise DataError(f"{folder} holds {len(found)} files of weights ({names}): name the one that is meant")
    inside = ", ".join(sorted(path.name for path in folder.iterdir())[:4]) or "nothing"
    raise DataError(f"{folder} holds {inside}, but no weights ({', '.join(sum(PATTERNS, ()))}): name the file")


def _read_step(folder: Path) -> Weights:
    """One step of a DeepSpeed run: whole where the weights were not spread over processes."""
    file = folder / "mp_rank_00_model_states.pt"
    if any(folder.glob("zero_pp_rank_*_model_states.pt")) or any(folder.glob("mp_rank_01_*")):
        raise DataError(
            f"{folder}: its weights are spread over processes: run DeepSpeed's zero_to_fp32.py, which lies in the run, "
            "and name the file that it writes"
        )
    if not file.is_file():
        raise DataError(f"{file} is missing: copy the folder again")
    return _read_file(file)


def _read_shards(folder: Path, index: Path) -> dict[str, Tensor]:
    """All files of a list `weight_map`: name of a tensor -> name of a file beside it."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(places.values()))
        if any(shard != Path(shard).name for shard in shards):
            raise ValueError("it names files of other folders")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{index}: a damaged list of files ({error}): {AGAIN}") from error
    lost = [shard for shard in shards if not (folder / shard).is_file()]
    if lost:
        raise DataError(f"{folder}: {len(lost)} of {len(shards)} files are missing, first {lost[0]}: {AGAIN}")
    state: dict[str, Tensor] = {}
    for shard in shards:
        state |= _read_file(folder / shard).state
    absent = sorted(set(places) - set(state))
    if absent:
        raise DataError(f"{folder}: {places[absent[0]]} lacks {absent[0]} ({len(absent)} tensors): {AGAIN}")
    return state
