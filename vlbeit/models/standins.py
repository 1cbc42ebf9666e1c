"""What a pickle names and calls, noted down in place of being done: no import and no call that a file could steer.

Tensors become a `TensorRef` (where the numbers lie, not the numbers), an instance of any class a `Standin`. A file that
asks for more than weights need is refused all the same, and what it asked for is said.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch

# Modules of Python where nothing runs code or touches the machine, and single names of others. The rest is refused.
_QUIET_MODULES = {"argparse", "collections", "datetime", "decimal", "fractions", "math", "numbers", "typing", "uuid"}
_PATHS = {"Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath"}
_QUIET_NAMES = {
    "builtins": {
        *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "getattr", "int", "list", "object"),
        *("range", "set", "slice", "str", "tuple", "type", "long", "unicode", "xrange"),  # the last three: Python 2
    },
    "pathlib": _PATHS,
    "pathlib._local": _PATHS,
    "_codecs": {"encode"},
    "functools": {"partial"},
    "types": {"SimpleNamespace"},
    "copyreg": {"_reconstructor", "__newobj__", "__newobj_ex__"},
}
# Functions of libraries that build a value. Any other function is refused; classes are stood in for.
_BUILDERS = {
    *("numpy.dtype", "numpy.ndarray", "torch.device", "torch.serialization._get_layout"),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")),
}
OTHER_TENSORS = "torch._utils._rebuild_"  # what builds tensors that are sparse, quantised, without numbers, ...
_PYTHON2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_STORAGES = {
    "Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128, "Untyped": torch.uint8,
}  # fmt: skip
_LARGEST = 2**48  # bytes, dimensions and the like beyond this are nonsense
_MOST_DIMENSIONS = 25


class Name(NamedTuple):
    """Something that the file names by module and name: never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Standin:
    """In place of an instance of a class, or of what a function would have returned."""

    of: str
    state: dict[Any, Any] = field(default_factory=dict)
    items: dict[Any, Any] = field(default_factory=dict)  # where the class is a kind of dict


class StorageRef(NamedTuple):
    """A run of `numel` numbers, from number `start` of the part of the file that is called `key`."""

    key: str
    dtype: torch.dtype
    numel: int
    start: int = 0


class TensorRef(NamedTuple):
    """A tensor that has not been read; `offset` and `stride` count numbers of the storage."""

    storage: StorageRef
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Notes:
    """Stands for every name and call of one pickle; `named` and `storages` are what has come up so far."""

    def __init__(self) -> None:
        self.named: set[str] = set()
        self.storages: set[StorageRef] = set()

    def name(self, module: str, name: str) -> Name:
        """A name in the file. UnpicklingError for those of Python itself that a checkpoint has no use for."""
        found = Name(_PYTHON2.get(module, module), name)
        if found.module.partition(".")[0] in sys.stdlib_module_names and not _is_quiet(found):
            raise UnpicklingError(f"it asks for {found}, which no weights need and which can run code")
        self.named.add(str(found))
        return found

    def persistent(self, reference: Any) -> Any:
        """What torch keeps outside the pickle: a storage, or in old files a class together with its source code."""
        kind, *rest = reference if isinstance(reference, tuple) else (None,)
        if kind == "module" and rest:
            return rest[0]
        if kind != "storage" or len(rest) not in (4, 5) or not isinstance(rest[0], Name):
            raise UnpicklingError("it refers to something outside the pickle that is no storage")
        dtype = _STORAGES.get(rest[0].name.removesuffix("Storage"))
        if dtype is None:
            raise UnpicklingError(f"numbers of a kind that is not known here ({rest[0]})")
        whole = StorageRef(str(rest[1]), dtype, _count(rest[3]))
        self.storages.add(whole)
        if len(rest) == 4 or rest[4] is None:
            return whole
        _, start, length = rest[4]
        if _count(start) + _count(length) > whole.numel:
            raise UnpicklingError(f"a part of storage {whole.key} ends beyond its {whole.numel} numbers")
        return whole._replace(numel=length, start=start)

    def call(self, target: Any, arguments: Any, *, function: bool) -> Any:
        """What stands for `target(*arguments)`; `function`: the file asks for a call, not for a bare instance."""
        if not isinstance(target, Name):
            raise UnpicklingError("it calls what another call returned, which no weights need and which can run code")
        if str(target) in _VALUES:
            return _VALUES[str(target)](self, *arguments)
        is_class = all(part.lstrip("_")[:1].isupper() for part in target.name.split("."))
        builds = is_class or str(target) in _BUILDERS or str(target).startswith(OTHER_TENSORS) or _is_quiet(target)
        if function and not builds:
            raise UnpicklingError(f"it calls {target}, which no weights need and which can run code")
        return Standin(str(target))


def build(target: Any, state: Any) -> None:
    """Give a stand-in its attributes; those of dicts and tensors are of no use here."""
    if isinstance(target, Name):
        raise UnpicklingError(f"it changes {target} itself, which no weights need and which can run code")
    if isinstance(target, Standin):
        for part in state if isinstance(state, tuple) else (state,):
            target.state.update(part if isinstance(part, dict) else {})


def set_item(target: Any, key: Any, value: Any) -> None:
    """An entry of a dict; where the key is no plain value it cannot name a tensor, and the entry is left out."""
    items = target.items if isinstance(target, Standin) else target
    if isinstance(items, dict) and isinstance(key, str | int | float | bytes | None):
        items[key] = value


def _is_quiet(name: Name) -> bool:
    quiet = name.module in _QUIET_MODULES and "." not in name.name
    return quiet or name.name in _QUIET_NAMES.get(name.module, ())


def _count(value: Any) -> int:
    """A size: a whole number from 0."""
    if type(value) is not int or not 0 <= value <= _LARGEST:
        raise UnpicklingError("a size that is no number of things")
    return value


def _dict(_: Notes, pairs: Any = (), *__: Any) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    for key, value in pairs if isinstance(pairs, list) else ():
        set_item(made, key, value)
    return made


def _tensor(_: Notes, storage: StorageRef, offset: int, size: Any, stride: Any, *__: Any) -> TensorRef:
    return _checked(TensorRef(storage, storage.dtype, offset, size, stride))


def _typed_tensor(
    _: Notes, storage: StorageRef, offset: int, size: Any, stride: Any, __: Any, ___: Any, dtype: Name, *____: Any
) -> TensorRef:
    """Of the newer kinds of numbers: the storage counts bytes, the tensor says what they are."""
    kind = vars(torch).get(dtype.name)
    if dtype.module != "torch" or not isinstance(kind, torch.dtype):
        raise UnpicklingError(f"numbers of a kind that is not known here ({dtype})")
    return _checked(TensorRef(storage, kind, offset, size, stride))


def _checked(tensor: TensorRef) -> TensorRef:
    """The tensor as it came; UnpicklingError where it reaches beyond its storage."""
    if not isinstance(tensor.size, tuple) or len(tensor.size) > _MOST_DIMENSIONS:
        raise UnpicklingError("a tensor without a shape")
    numel, last = 1, _count(tensor.offset)
    for length, step in zip(tensor.size, tensor.stride, strict=True):
        numel, last = numel * _count(length), last + (length - 1) * _count(step)
    held = tensor.storage.numel * tensor.storage.dtype.itemsize // tensor.dtype.itemsize
    if numel > held or (numel and last >= held):
        raise UnpicklingError(f"a tensor of shape {list(tensor.size)} has only {held} numbers stored for it")
    return tensor


# The values that matter, tensors and dicts, by the name of what builds them; each gets the arguments in the file.
_VALUES: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _dict,
    "collections.defaultdict": lambda notes, *_: {},
    "builtins.dict": _dict,
    "builtins.set": lambda notes, members=(): members,
    "torch.Size": lambda notes, sizes=(): tuple(sizes[:_MOST_DIMENSIONS]),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": lambda notes, data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda notes, data, *_: data,
    "torch._tensor._rebuild_from_type_v2": lambda notes, make, _, arguments, *__: notes.call(
        make, arguments, function=True
    ),
    "copyreg._reconstructor": lambda notes, kind, *_: notes.call(kind, (), function=False),
    "copyreg.__newobj__": lambda notes, kind, *_: notes.call(kind, (), function=False),
    "copyreg.__newobj_ex__": lambda notes, kind, *_: notes.call(kind, (), function=False),
}
