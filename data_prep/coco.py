"""COCO's boxes and outlines (instances_*.json, cocodataset.org) for data=coco."""

from __future__ import annotations

import contextlib
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

from vlbeit.data.following import BEIT, next_command
from vlbeit.data.instances import Instances, chosen_release
from vlbeit.data.json_file import JsonFile
from vlbeit.errors import DataError, UsageError

from .archives import Entry, entries
from .pictures import Check, examine_picture, is_picture
from .preparation import (
    Format,
    Options,
    Out,
    Plan,
    ShardMB,
    Split,
    Threads,
    Verify,
    chosen,
    fingerprint,
    given,
    run,
)
from .progress import Report
from .shards import Fault, Finding, Item, Layout, Position

_SPLITS = ("train", "val")
_FILE = re.compile(r"(?:^|/)instances_((?:train|val)(?:2017|2014)?)\.json$")


class _Part(NamedTuple):
    """A split: its name in COCO, its annotations, and size and file names of the pictures that are there."""

    name: str
    instances: Instances
    fingerprint: str
    bytes: int
    in_place: bool

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Target of every picture -> width and height that the annotations count in."""
        pictures = self.instances.pictures.values()
        return {f"{self.name}/{picture.name}": (picture.width, picture.height) for picture in pictures}


def prepare(
    out: Out,
    *,
    from_: Annotated[list[str], "folder with the zips of COCO or with what is in them, or its zips A,B"],
    format: Format = "auto",
    check: Check = "header",
    threads: Threads = 0,
    shard_mb: ShardMB = 256,
    verify: Verify = False,
    report: Report | None = None,
) -> str:
    """Prepare COCO's pictures and instances_*.json for data=coco.

    --from takes a folder with train2017.zip, val2017.zip, annotations_trainval2017.zip, or with train2017/, val2017/
    and annotations/, or those zips by name. The same command after an interruption goes on where it stopped.
    """
    stores = _stores(given(from_))
    names = _names(stores)
    stores = _with_pictures(stores, names.values())
    parts = {split: _part(stores, name) for split, name in names.items()}
    categories = parts["train"].instances.categories
    for part in parts.values():
        if part.instances.categories != categories:
            raise DataError(f"instances_{part.name}.json has other categories than train; take both of one release")

    def items(split: str) -> Callable[[Position], Iterator[Item]]:
        return lambda after: _items(stores, parts[split], after)

    files = {split: part.fingerprint for split, part in parts.items()}
    sizes = {target: size for part in parts.values() for target, size in part.sizes().items()}
    plan = Plan(
        layout=Layout(
            "boxes", chosen(format, all(part.in_place for part in parts.values())),
            {"from": [fingerprint(path) for path in stores], "files": files, "check": check, "shard_mb": shard_mb},
        ),
        classes=list(categories.values()),
        splits=[Split(split, part.bytes, items(split)) for split, part in parts.items()],
        examine=lambda item: _examine(item, check, sizes),
        archives=[path for path in stores if path.is_file()],
    )  # fmt: skip
    run(out, plan, Options(threads, shard_mb, verify), report)
    return next_command(f"stage=mim task=detection init={BEIT} data=coco", out, "detection")


def _stores(parts: Sequence[str]) -> list[Path]:
    """The zips and folders to look into for annotations: a folder before the zips in it."""
    found: list[Path] = []
    for path in (Path(part).expanduser() for part in parts):
        if not path.exists():
            raise DataError(f"{path} does not exist; give --from the folder or the zips of COCO")
        if path.is_file() and path.suffix != ".zip":
            raise UsageError(f"--from {path} is no zip; give the folder or the zips of COCO")
        found += [path, *(sorted(path.glob("annotations*.zip")) if path.is_dir() else [])]
    return found


def _with_pictures(stores: Sequence[Path], names: Iterable[str]) -> list[Path]:
    """And the zips of the pictures themselves; others that lie beside them, unlabeled2017.zip say, are left shut."""
    zips = [folder / f"{name}.zip" for folder in stores if folder.is_dir() for name in names]
    return [*stores, *(path for path in zips if path.is_file())]


@contextlib.contextmanager
def _open(stores: Sequence[Path]) -> Iterator[Iterator[Entry]]:
    """The files of all the stores, which stay open."""
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(entries(path)) for path in stores]
        yield (entry for found in opened for entry in found)


def _names(stores: Sequence[Path]) -> dict[str, str]:
    """Split -> its name in COCO, all of one release."""
    with _open(stores) as found:
        there = {match[1] for entry in found if not entry.refused and (match := _FILE.search(entry.name))}
    where = ", ".join(map(str, stores))
    year = chosen_release(there.__contains__)
    names = {split: f"{split}{year}" for split in _SPLITS if f"{split}{year}" in there}
    if "train" not in names:
        raise DataError(
            f"{where}: no instances_train2017.json in any; give the folder with annotations/ or "
            f"annotations_trainval2017.zip"
        )
    other = sorted(name for name in there if name.startswith("val"))
    if "val" not in names and other:
        raise DataError(
            f"{where}: instances_{names['train']}.json beside instances_{other[0]}.json; releases "
            "share pictures: take both of one"
        )
    return names


def _part(stores: Sequence[Path], name: str) -> _Part:
    """The annotations of a split, every row checked, and its pictures."""
    with _open(stores) as found:
        listed = list(found)
        place = re.compile(rf"(?:^|/)instances_{name}\.json$")
        entry = next(entry for entry in listed if not entry.refused and place.search(entry.name))
        pictures = _pictures(listed, name)
        if not pictures:
            raise DataError(f"{entry.archive}: {entry.name} is there, but no {name}/ or {name}.zip beside it")
        data = entry.read()
    instances = Instances(JsonFile(f"{entry.archive}: {entry.name}", data))
    instances.check()
    in_place = all(picture.value is not None for picture in pictures.values())
    print_ = f"{len(data)}-{zlib.crc32(data):08x}"
    return _Part(name, instances, print_, sum(picture.size for picture in pictures.values()), in_place)


def _pictures(listed: Sequence[Entry], name: str) -> dict[str, Entry]:
    """File name -> picture, of the folder `name` wherever it lies; a folder goes before a zip."""
    place = re.compile(rf"(?:^|/){name}/(.+)$")
    found: dict[str, Entry] = {}
    for entry in listed:
        if not entry.refused and is_picture(entry.name) and (match := place.search(entry.name)):
            found.setdefault(match[1], entry)
    return found


def _items(stores: Sequence[Path], part: _Part, after: Position) -> Iterator[Item]:
    """The pictures in the order of the annotation file; refused members behind them, as part of train."""
    with _open(stores) as found:
        listed = list(found)
        pictures = _pictures(listed, part.name)
        labels = {number: label for label, number in enumerate(part.instances.categories)}
        place = 0
        for place, number in enumerate(part.instances.pictures):
            if (place,) > after:
                record, changes = part.instances.record(number, labels)
                faults = tuple(Fault(f"box {what}: annotation {annotation}", False) for annotation, what in changes)
                yield _item((place,), record, faults, pictures.get(record["id"]), part.name)
        if part.name.startswith("train"):
            for number, entry in enumerate((entry for entry in listed if entry.refused), start=place + 1):
                if (number,) > after:
                    yield Item((number,), {"id": entry.name}, faults=(Fault(f"refused: {entry.refused}", True),))


def _item(position: Position, record: dict, faults: tuple[Fault, ...], picture: Entry | None, part: str) -> Item:
    if picture is None:
        return Item(position, {"id": record["id"]}, faults=(Fault("picture is missing", True),))
    whole = record | {"image": picture.value or picture.read()}
    return Item(position, whole, {"image": f"{part}/{record['id']}"}, faults)


def _examine(item: Item, check: Check, sizes: Mapping[str, tuple[int, int]]) -> Finding:
    """As of any picture; and its size is the one that the annotations were drawn on. Counts boxes by class."""
    found = examine_picture(item, check)._replace(classes=item.record.get("labels", ()))
    wanted = sizes[item.targets["image"]] if found.size else None
    if found.size and wanted and found.size != wanted:
        what = "{}x{}, annotations {}x{}".format(*found.size, *wanted)
        return found._replace(faults=(Fault(f"another size than in the annotations: {what}", True), *found.faults))
    return found
