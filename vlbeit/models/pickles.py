"""Reads a pickle without running it: `pickletools` cuts it into steps, and this follows them on a stack of its own.

Containers and plain values become Python's, everything that the file names or calls goes to `standins`.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from pickle import UnpicklingError
from typing import Any, NamedTuple, Protocol

from vlbeit.models.standins import Notes, StorageRef, build, set_item


class Stream(Protocol):
    """What is needed of a file; `read` must not reserve more memory than there are bytes: BytesIO, mmap."""

    def read(self, size: int, /) -> bytes: ...
    def readline(self) -> bytes: ...
    def tell(self) -> int: ...


class Reading(NamedTuple):
    """What a pickle holds, the names in it, and every storage that it refers to."""

    value: Any
    named: set[str]
    storages: set[StorageRef]


def read(stream: Stream) -> Reading:
    """One pickle, from the stream's place to its end; the stream is left there.

    Raises:
        UnpicklingError: it asks to run code (named), refers to what torch does not write, or is damaged.
    """
    notes, machine = Notes(), _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(stream):  # type: ignore[arg-type]
            machine.step(notes, opcode.name, argument)
        return Reading(machine.pop(), notes.named, notes.storages)
    except UnpicklingError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        raise UnpicklingError(f"the pickle is cut short or damaged ({str(error)[:80]})") from error


class _Machine:
    """The stack, the places of its marks, and the memo, as the pickle protocol has them."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self, notes: Notes, opcode: str, argument: Any) -> None:
        """Follow one step; those without effect on the value are passed over."""
        if opcode in _PLAIN:
            self.push(argument)
        elif opcode in _FRESH:
            self.push(_FRESH[opcode]())
        elif opcode in _STACK:
            _STACK[opcode](self, argument)
        elif opcode in _NAMES:
            _NAMES[opcode](self, notes, argument)
        elif opcode not in ("PROTO", "FRAME", "STOP"):
            raise UnpicklingError(f"it takes the step {opcode}, which torch.save never does")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        return self.stack.pop()

    def pop_many(self, count: int) -> list[Any]:
        """The last `count` values, in their order."""
        if len(self.stack) < count:
            raise IndexError("the stack is too short")
        found = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return found

    def pop_mark(self) -> list[Any]:
        """The values above the last mark."""
        return self.pop_many(len(self.stack) - self.marks.pop())

    def remember(self, index: int | None) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def extend(self, values: list[Any]) -> None:
        """Append to the list on top; what stands for another class with members loses them."""
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)

    def set_items(self, values: list[Any]) -> None:
        """Entries of the dict on top."""
        for key, value in zip(values[::2], values[1::2], strict=True):
            set_item(self.stack[-1], key, value)

    def make_dict(self, values: list[Any]) -> None:
        self.push({})
        self.set_items(values)


def _push_name(machine: _Machine, notes: Notes, argument: str) -> None:
    machine.push(notes.name(*argument.split(" ", 1)))


def _push_stacked_name(machine: _Machine, notes: Notes, _: Any) -> None:
    machine.push(notes.name(*machine.pop_many(2)))


def _call(machine: _Machine, notes: Notes, _: Any) -> None:
    machine.push(notes.call(*machine.pop_many(2), function=True))


def _call_marked(machine: _Machine, notes: Notes, argument: str | None) -> None:
    """INST and OBJ, of Python 2: the arguments lie above a mark, the class before them or in the step."""
    values = machine.pop_mark()
    target = values.pop(0) if argument is None else notes.name(*argument.split(" ", 1))
    machine.push(notes.call(target, values, function=True))


def _new(count: int) -> Callable[[_Machine, Notes, Any], None]:
    return lambda machine, notes, _: machine.push(notes.call(machine.pop_many(count)[0], (), function=False))


_PLAIN = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_FRESH: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": list,  # sets become lists: their members may have no hash
}
_STACK: dict[str, Callable[[_Machine, Any], Any]] = {
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "POP": lambda machine, _: machine.pop(),
    "POP_MARK": lambda machine, _: machine.pop_mark(),
    "DUP": lambda machine, _: machine.push(machine.stack[-1]),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.remember),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, index: machine.push(machine.memo[index])),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_mark())),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.pop_many(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.pop_many(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.pop_many(3))),
    "LIST": lambda machine, _: machine.push(machine.pop_mark()),
    "FROZENSET": lambda machine, _: machine.push(machine.pop_mark()),
    "DICT": lambda machine, _: machine.make_dict(machine.pop_mark()),
    "APPEND": lambda machine, _: machine.extend(machine.pop_many(1)),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda machine, _: machine.extend(machine.pop_mark())),
    "SETITEM": lambda machine, _: machine.set_items(machine.pop_many(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_mark()),
}
_NAMES: dict[str, Callable[[_Machine, Notes, Any], None]] = {
    "GLOBAL": _push_name,
    "STACK_GLOBAL": _push_stacked_name,
    "PERSID": lambda machine, notes, reference: machine.push(notes.persistent(reference)),
    "BINPERSID": lambda machine, notes, _: machine.push(notes.persistent(machine.pop())),
    "REDUCE": _call,
    "INST": _call_marked,
    "OBJ": _call_marked,
    "NEWOBJ": _new(2),
    "NEWOBJ_EX": _new(3),
    "BUILD": lambda machine, _, __: build(machine.stack[-2], machine.pop()),
}
