"""Which weights of a saved object are meant: training states wrap them, keep averages beside them, or are a module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlbeit.errors import DataError
from vlbeit.models.standins import OTHER_TENSORS, Standin, TensorRef

_FIRST = ("model", "module", "state_dict")
_LAST = ("model_ema", "ema", "ema_model", "state_dict_ema", "ema_state_dict", "teacher")
_OTHER_STATE = {"optimizer", "optimizers", "optim", "scheduler", "schedulers", "scaler", "amp", "rng", "meta", "args"}
_HERE, _ANY = len(_FIRST), len(_FIRST) + 1  # ranks of tensors that lie there directly, and of a key of any other name
_DEPTH = 5
_MOST_NAMES, _LONGEST_NAME = 100_000, 1000  # of a module: nothing real comes near

Rank = tuple[int, ...]


class Chosen(NamedTuple):
    """`tensors`: name -> tensor, below `keys` of the object. `others`: dotted keys of the weights that were left.

    A tensor of a file is a `TensorRef`, one of an object in memory is itself.
    """

    keys: tuple[str, ...]
    tensors: dict[str, Any]
    others: tuple[str, ...] = ()


def choose(value: Any) -> Chosen:
    """The weights in a saved object, as `pickles.read` gives it, or as it lies in memory.

    The entries `model`, `module`, `state_dict` come first, in this order, then tensors that lie there directly, then an
    entry of any other name, and only then averages (`model_ema`, `ema`, `teacher`, ...).

    Raises:
        DataError: there are no tensors, or two sets of weights with nothing to choose by.
    """
    found = _candidates(value, (), set())
    if not found:
        raise DataError("no tensors in it, under none of its keys: name a file that holds weights")
    (rank, best), rest = found[0], found[1:]
    equals = [best, *(other for other_rank, other in rest if _is_tie(rank, best, other_rank, other))]
    if len(equals) > 1:
        names = ", ".join(".".join(chosen.keys) for chosen in equals)
        raise DataError(f"several sets of weights in it ({names}): save the one that is meant in a file of its own")
    for name, value in best.tensors.items():
        if not _is_ordinary(value):
            kinds = "sparse, quantised, spread over devices or without numbers"
            raise DataError(f"{name} is {kinds}: save it as an ordinary tensor")
    return best._replace(others=tuple(".".join(chosen.keys) or "the top level" for _, chosen in rest))


def _is_tie(rank: Rank, chosen: Chosen, other_rank: Rank, other: Chosen) -> bool:
    """True where the first keys in which two candidates differ say nothing about which is meant."""
    for one, two, key, other_key in zip(rank, other_rank, chosen.keys, other.keys, strict=False):
        if one != two or key != other_key:
            return one == two == _ANY
    return False


def _candidates(node: Any, keys: tuple[str, ...], seen: set[int]) -> list[tuple[Rank, Chosen]]:
    """Every dict of tensors and every module from `node` down, the best first; a rank has a number for each key."""
    if id(node) in seen or len(keys) > _DEPTH:
        return []
    seen.add(id(node))
    if isinstance(node, Standin) and "_modules" in node.state:
        return [((), Chosen(keys, module_tensors(node)))]
    items = node.items if isinstance(node, Standin) else node
    if not isinstance(items, Mapping):
        return []
    tensors = {name: value for name, value in items.items() if isinstance(name, str) and _is_tensor(value)}
    found: list[tuple[Rank, Chosen]] = [((_HERE,), Chosen(keys, tensors))] if tensors else []
    for key, value in items.items():
        if isinstance(key, str) and not _OTHER_STATE & set(key.lower().split("_")):
            found += [((_rank(key), *rank), chosen) for rank, chosen in _candidates(value, (*keys, key), seen)]
    return sorted(found, key=lambda one: one[0])


def _rank(key: str) -> int:
    if key in _FIRST:
        return _FIRST.index(key)
    return _ANY + 1 + _LAST.index(key) if key in _LAST else _ANY


def _is_tensor(value: Any) -> bool:
    other = isinstance(value, Standin) and value.of.startswith(OTHER_TENSORS)
    return other or isinstance(value, TensorRef | Tensor)


def _is_ordinary(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.layout == torch.strided and not value.is_quantized and not value.is_meta
    return isinstance(value, TensorRef)


def module_tensors(module: Standin) -> dict[str, TensorRef]:
    """The parameters and buffers of a saved module under the names that its `state_dict()` would give them."""
    found: dict[str, TensorRef] = {}
    waiting, visited = [("", module)], 0
    while waiting:
        prefix, node = waiting.pop()
        visited += 1
        if visited + len(waiting) + len(found) > _MOST_NAMES or len(prefix) > _LONGEST_NAME:
            raise DataError("a module in it holds itself: damaged, or made to be read without an end")
        unsaved = node.state.get("_non_persistent_buffers_set")
        unsaved = unsaved if isinstance(unsaved, list) else []
        for name, value in [*_entries(node, "_parameters"), *_entries(node, "_buffers")]:
            if name not in unsaved and _is_tensor(value):
                found[prefix + name] = value
        children = [(name, child) for name, child in _entries(node, "_modules") if isinstance(child, Standin)]
        waiting += [(f"{prefix}{name}.", child) for name, child in reversed(children)]
    return found


def _entries(module: Standin, part: str) -> list[tuple[str, Any]]:
    """Names and values of a module's parameters, buffers or modules."""
    entries = module.state.get(part)
    if not isinstance(entries, dict):
        return []
    return [(name, value) for name, value in entries.items() if isinstance(name, str) and len(name) <= _LONGEST_NAME]
