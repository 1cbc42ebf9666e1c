"""Pictures with captions, out of folders and archives, as folders of the kind `pairs`.

What each preparation tells is which file has which captions and belongs to which split. The pictures are taken in the
order in which folders and archives hold them, so that a tar is read as a stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from vlbeit.errors import DataError, some

from .archives import Entry
from .pictures import Check, examine_picture
from .preparation import Format, Options, Plan, Split, chosen, fingerprint, run
from .progress import Report
from .shards import Fault, Item, Layout, Position
from .stores import Stores


class Captioned(NamedTuple):
    """A picture and where its captions come from."""

    id: str  # of its row; record ids are id#0, id#1, ...
    picture: str  # names the picture in every data set that has it: coco-391895
    texts: Callable[[], list[str]]


Wanted = Mapping[str, Captioned]
"""File name without folders -> the picture. Two names of one picture may both be there: the first file counts."""


class Found(NamedTuple):
    """Which of the wanted pictures there are: bytes, how many lie in folders, why others cannot be had."""

    bytes: int
    in_place: bool
    missing: list[tuple[Captioned, str]]  # in the order of `Wanted`


class Job(NamedTuple):
    """How it is done, as the options say."""

    out: Path
    format: Format
    check: Check
    options: Options
    report: Report | None


def write_pairs(stores: Stores, splits: Mapping[str, Wanted], arguments: Mapping[str, Any], job: Job) -> dict[str, Any]:
    """Write the folder; returns what prepared.json holds. `arguments`: what a restart must find unchanged.

    Raises `DataError` where of a split no picture is there.
    """
    found = {split: _look(stores, wanted) for split, wanted in splits.items()}
    for split, wanted in splits.items():
        ids = {picture.id for picture in wanted.values()}
        if len(found[split].missing) == len(ids):
            raise DataError(
                f"{stores}: none of the {len(ids):,} pictures of {split} is there, such as {next(iter(wanted), '-')}; "
                f"give their folder or archive too: --from A,B"
            )
    plan = Plan(
        layout=Layout(
            "pairs", chosen(job.format, all(part.in_place for part in found.values())),
            {
                "from": [fingerprint(path) for path in stores.paths], "check": job.check,
                "shard_mb": job.options.shard_mb, **arguments,
            },
        ),
        classes=[],
        splits=[Split(split, part.bytes, _items(stores, splits[split], part)) for split, part in found.items()],
        examine=lambda item: examine_picture(item, job.check),
        archives=stores.archives,
    )  # fmt: skip
    return run(job.out, plan, job.options, job.report)


def _matches(stores: Stores, wanted: Wanted) -> Iterator[tuple[int, Entry, Captioned]]:
    """The files that are a wanted picture, each picture once, with their place among all files."""
    taken: set[str] = set()
    for number, entry in enumerate(stores.entries()):
        picture = wanted.get(PurePosixPath(entry.name).name)
        if picture is not None and picture.id not in taken:
            if not entry.refused:
                taken.add(picture.id)
            yield number, entry, picture


def _look(stores: Stores, wanted: Wanted) -> Found:
    size, in_place = 0, True
    pictures = {picture.id: picture for picture in wanted.values()}
    reasons = dict.fromkeys(pictures, "picture is missing")
    for _, entry, picture in _matches(stores, wanted):
        if entry.refused:
            reasons[picture.id] = f"refused: {entry.refused}"
        else:
            del reasons[picture.id]
            size += entry.size
            in_place &= entry.value is not None
    return Found(size, in_place, [(pictures[name], why) for name, why in reasons.items()])


def _items(stores: Stores, wanted: Wanted, found: Found) -> Callable[[Position], Iterator[Item]]:
    """The pictures behind a position in the order of the stores, then those that are missing."""

    def items(after: Position) -> Iterator[Item]:
        for number, entry, picture in _matches(stores, wanted):
            if not entry.refused and (0, number) > after:
                yield _item((0, number), entry, picture)
        for number, (picture, why) in enumerate(found.missing):
            if (1, number) > after:
                yield Item((1, number), {"id": picture.id}, faults=(Fault(why, True),))

    return items


def _item(position: Position, entry: Entry, picture: Captioned) -> Item:
    texts = [" ".join(text.split()) for text in picture.texts()]
    kept = [text for text in texts if text]
    faults = []
    if not kept:
        faults.append(Fault("no caption", True))
    elif len(kept) < len(texts):
        faults.append(Fault(f"caption without text left out: {len(texts) - len(kept)} of {len(texts)}", False))
    image = entry.value if entry.value is not None else (entry.read() if kept else b"")
    record = {"id": picture.id, "image": image, "text": kept, "picture": picture.picture}
    target = f"images/{PurePosixPath(entry.name).name}"
    return Item(position, record, {"image": target}, tuple(faults), origin=f"{entry.archive}: {entry.name}")


def once(pictures: list[tuple[str, Captioned]], place: str) -> dict[str, Captioned]:
    """File name -> picture. Raises `DataError` where two pictures have one name."""
    found = dict(pictures)
    if len(found) < len(pictures):
        seen: set[str] = set()
        twice = [name for name, _ in pictures if name in seen or seen.add(name)]  # type: ignore[func-returns-value]
        raise DataError(f"{place}: pictures named twice: {some(twice)}; remove the copies")
    return found
