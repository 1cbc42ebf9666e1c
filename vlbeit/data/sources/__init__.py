"""Data sources by name. `open_records` is the one door for stages and tasks."""

from __future__ import annotations

from collections.abc import Sequence

from vlbeit import registry
from vlbeit.config import DataConfig
from vlbeit.data.records import KINDS, take
from vlbeit.data.sources.base import DataSource
from vlbeit.errors import DataError, UsageError
from vlbeit.types import Records


def open_source(config: DataConfig) -> DataSource:
    """The source `data=NAME`. Raises `UsageError` for an unknown name."""
    return registry.get("data", config.name)(config)


def check_kind(config: DataConfig, kind: str) -> None:
    """Raise `UsageError`, naming the sources that fit, unless `data=NAME` gives records of this kind."""
    kinds = registry.get("data", config.name).kinds
    if kind not in kinds:
        fitting = [name for name in registry.names("data") if kind in _kinds(name)]
        raise UsageError(
            f"data={config.name} gives {', '.join(kinds)}, not {kind}; {kind} records come from "
            + (", ".join(f"data={name}" for name in fitting) or "no source that is installed")
        )


def open_records(config: DataConfig, kind: str, split: str) -> Records:
    """The records of one kind and split, cut to `data.limit`.

    Raises `UsageError` where the source has no such kind, `DataError` where files are missing, damaged or empty.
    """
    assert kind in KINDS, kind
    check_kind(config, kind)
    source = open_source(config)
    source.check()
    try:
        records = source.records(kind, split)
    except NotADirectoryError as error:
        raise DataError(
            f"data.root={config.root} is a file, and data={config.name} reads a folder: set data.root= to one, "
            "or data= to what reads such a file"
        ) from error
    if not len(records):
        raise DataError(f"data={config.name}: the split {split!r} of {config.root} has no {kind} records")
    return take(records, config.limit)


def check_classes(config: DataConfig, found: Sequence[str], known: Sequence[str], remedy: str = "") -> None:
    """Raise `DataError` unless the classes `found` in the data are those `known` to the run, in the same order.

    `remedy` is what else a task has to offer, added to the message.
    """
    if list(found) != list(known):
        differing = sorted({*found} ^ {*known})
        what = f"such as {differing[0]!r}" if differing else "in another order"
        raise DataError(
            f"data.root={config.root} has {len(found)} classes, the run was trained on {len(known)}, and they differ "
            f"({what}): give it the classes of its training split{remedy}"
        )


def _kinds(name: str) -> tuple[str, ...]:
    try:
        return registry.get("data", name).kinds
    except UsageError:  # a broken plug-in breaks only itself
        return ()
