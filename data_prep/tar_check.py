"""WebDataset shards that are there already: read once, whole, to know what is in them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from vlbeit.data.names import Names
from vlbeit.data.tar_samples import Sample, tar_samples
from vlbeit.errors import DataError

from .pictures import Check, examine_picture
from .shards import Item


class Checked(NamedTuple):
    """What a shard holds."""

    samples: int
    usable: int  # those with a picture that can be read and a caption
    faults: dict[str, int]  # without details
    bad: list[dict[str, str]]  # id and what, of each


def check_shard(path: Path, check: Check) -> Checked:
    """Read a tar to its end. Raises `DataError` where it is cut off or damaged."""
    bad: list[dict[str, str]] = []
    samples = usable = 0
    seen = Names()
    try:
        with open(path, "rb") as file, open(path, "rb") as pictures:
            for sample in tar_samples(file, str(path)):
                samples += 1
                pictures.seek(max(0, sample.at))
                what = _faults(sample, pictures.read(max(0, sample.length)), check)
                usable += not any(part.startswith(("no ", "cannot")) for part in what)
                if not seen.add(sample.key):
                    what.append("members of one key are not together, or the key comes twice")
                bad += [{"id": sample.key, "what": part} for part in what]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    return Checked(samples, usable, dict(Counter(row["what"].partition(":")[0] for row in bad)), bad)


def _faults(sample: Sample, picture: bytes, check: Check) -> list[str]:
    found = [] if sample.texts else ["no caption"]
    if sample.at < 0:
        return ["no picture", *found]
    item = Item((), {"id": sample.key, "image": picture}, {"image": sample.name})
    return [*(fault.what for fault in examine_picture(item, check).faults), *found]


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
