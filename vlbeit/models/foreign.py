"""Checkpoints of others: told from our own, read, and brought under our names."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vlbeit.errors import UserError
from vlbeit.models.convert import Hints, convert
from vlbeit.models.convert.beside import hints_beside
from vlbeit.models.convert.dvae import join_pair
from vlbeit.models.convert.layout import State
from vlbeit.models.report import LoadReport
from vlbeit.models.weight_files import weight_files
from vlbeit.models.weights import read_weights, weights_of

log = logging.getLogger(__name__)

_DALLE = ("encoder.pkl", "decoder.pkl")  # which openai/DALL-E publishes apart


class Foreign(NamedTuple):
    """A checkpoint in our terms: what a `Checkpoint` is made of."""

    description: dict[str, Any]
    state: State
    report: LoadReport


Key = tuple[Any, ...]
_descriptions: dict[Key, dict[str, Any]] = {}  # of the files that were read
# The last file whose description was asked for: its weights go to the next reader. Most are mapped from the file and
# cost no memory of our own until then.
_waiting: dict[Key, Foreign] = {}


def is_foreign(path: Path) -> bool:
    """Whether a file, or a folder with weights that is no run and no checkpoint of ours, lies there."""
    if not path.is_dir():
        return path.is_file()
    if (path / "checkpoint" / "config.json").is_file() or _is_ours(path / "config.json"):
        return False
    return bool(weight_files(path)) or any((path / name).is_file() for name in ("latest", _DALLE[0]))


def read_foreign(path: Path, hints: Hints, allow: Sequence[str] = ()) -> Foreign:
    """The file or folder in our terms; `allow` has patterns of names that may be missing, in excess, or hold
    NaN and infinite numbers.

    Raises DataError, naming the file, where it cannot be read, is in no known layout or lacks something that is not
    expected; UsageError where a hint is needed.
    """
    return _waiting.pop(_key(path, hints, allow), None) or _read(path, hints, allow)


def read_description(path: Path, hints: Hints, allow: Sequence[str] = ()) -> dict[str, Any]:
    """Its description alone. The weights, which tell it, are kept for the `read_foreign` that follows."""
    key = _key(path, hints, allow)
    if key not in _descriptions:
        found = _read(path, hints, allow)
        _waiting.clear()
        _waiting[key] = found
        _descriptions[key] = found.description
    return _descriptions[key]


def from_state(
    state: Mapping[str, Any], hints: Hints, allow: Sequence[str] = (), origin: str = "state dict"
) -> Foreign:
    """A state dict, or the dict of a training state around it, in our terms. Raises as `read_foreign`, by `origin`."""
    return _converted(weights_of(state, origin, allow=allow).state, hints, allow, origin)


def _read(path: Path, hints: Hints, allow: Sequence[str]) -> Foreign:
    completed = hints_beside(path, hints)
    return _converted(_weights(path, allow), completed, allow, str(path), described=completed != hints)


def _weights(path: Path, allow: Sequence[str]) -> State:
    """The tensors there; of DALL-E's two files as one."""
    encoder, decoder = (path / name for name in _DALLE)
    if not encoder.is_file():
        return read_weights(path, allow=allow)
    parts = [read_weights(file, allow=allow) for file in (encoder, decoder) if file.is_file()]
    return parts[0] if len(parts) == 1 else join_pair(*parts)


def _converted(state: State, hints: Hints, allow: Sequence[str], origin: str, *, described: bool = False) -> Foreign:
    """The tensors in our terms; what had to be assumed is said, unless a config.json `described` the model."""
    try:
        found = convert(state, hints)
    except UserError as error:
        raise type(error)(f"{origin}: {error}") from error
    report = LoadReport(
        list(found.state),
        remapped=dict(found.sources),
        missing=found.missing,
        unexpected=found.unexpected,
        layout=found.layout,
    )
    for line in () if described else found.assumed:
        log.warning("%s: %s", origin, line)
    report.check(f"{origin} ({found.layout})", allow=allow)
    report.unexpected = [*report.unexpected, *found.dropped]
    return Foreign(found.description, found.state, report)


def _is_ours(file: Path) -> bool:
    """A config.json of a checkpoint of ours; also one that is damaged, where reading it will say so."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True
    return isinstance(values, dict) and bool({"sha256", "description", "vlbeit"} & values.keys())


def _key(path: Path, hints: Hints, allow: Sequence[str]) -> Key:
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    stamps = tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files)
    return (path.absolute(), stamps, hints, tuple(allow))
