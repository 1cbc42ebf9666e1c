"""WebDataset shards that are there already: read once, whole, to know what is in them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vlbeit.errors import DataError

from .archives import Entry, entries
from .names import Names
from .pictures import Check, examine_picture, is_picture
from .shards import Item

_TEXTS = ("txt", "caption", "text")  # members that are a caption
_FACTS = ("caption", "captions", "text", "txt")  # keys of a JSON member that hold one, or a list of them


class Checked(NamedTuple):
    """What a shard holds."""

    samples: int
    usable: int  # those with a picture that can be read and a caption
    faults: dict[str, int]  # without details
    bad: list[dict[str, str]]  # id and what, of each


class _Sample(NamedTuple):
    key: str
    picture: bytes | None
    name: str
    captioned: bool


def check_shard(path: Path, check: Check) -> Checked:
    """Read a tar to its end. Raises `DataError` where it is cut off or damaged."""
    bad: list[dict[str, str]] = []
    samples = usable = 0
    seen = Names()
    for sample in _samples(path):
        samples += 1
        what = _faults(sample, check)
        if not seen.add(sample.key):
            what.append("members of one key are not together, or the key comes twice")
        usable += not any(part.startswith(("no ", "cannot", "members")) for part in what)
        bad += [{"id": sample.key, "what": part} for part in what]
    return Checked(samples, usable, dict(Counter(row["what"].partition(":")[0] for row in bad)), bad)


def _faults(sample: _Sample, check: Check) -> list[str]:
    found = [] if sample.captioned else ["no caption"]
    if sample.picture is None:
        return ["no picture", *found]
    item = Item((), {"id": sample.key, "image": sample.picture}, {"image": sample.name})
    return [*(fault.what for fault in examine_picture(item, check).faults), *found]


def _samples(path: Path) -> Iterator[_Sample]:
    """Members that follow each other and have all before the first dot of their names in common are a sample."""
    held: list[tuple[Entry, bytes]] = []
    current = ""
    with entries(path) as found:
        for entry in found:
            folder, _, base = entry.name.rpartition("/")
            stem = base.partition(".")[0]
            key = f"{folder}/{stem}" if folder else stem
            if not stem or entry.refused:
                continue
            if key != current and held:
                yield _sample(current, held)
                held = []
            current = key
            held.append((entry, entry.read()))
        if held:
            yield _sample(current, held)


def _sample(key: str, members: list[tuple[Entry, bytes]]) -> _Sample:
    pictures = [(data, entry.name) for entry, data in members if is_picture(entry.name)]
    picture, name = pictures[0] if pictures else (None, "")
    return _Sample(key, picture, name, any(_has_caption(entry.name, data) for entry, data in members))


def _has_caption(name: str, data: bytes) -> bool:
    ending = name.rpartition("/")[2].partition(".")[2].lower()
    try:
        if ending in _TEXTS:
            return bool(data.decode("utf-8-sig").strip())
        value: Any = json.loads(data) if ending == "json" else None
    except (ValueError, RecursionError):
        return False
    if not isinstance(value, dict):
        return False
    texts = next((value[key] for key in _FACTS if value.get(key)), None)
    return any(isinstance(text, str) and text.strip() for text in (texts if isinstance(texts, list) else [texts]))


def checked_shards(paths: list[Path], known: dict[str, Any]) -> list[Path]:
    """Those of the shards that are not known yet, as they are now. DataError where one is gone."""
    return [path for path in paths if known.get(str(path), {}).get("stamp") != stamp(path)]


def stamp(path: Path) -> list[int]:
    """Bytes and time of a shard: by these it is known again."""
    try:
        facts = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    return [facts.st_size, facts.st_mtime_ns]
