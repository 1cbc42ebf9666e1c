"""ImageNet (ILSVRC2012, or any archives of class folders) for data=imagefolder.

Read as they are published: the training tar is a tar of one tar a class, the validation tar a flat list of pictures
whose labels come from elsewhere. The archives of the Hub (train_images_0.tar.gz, ...: the class stands in the names),
zips and sorted folders work too. Classes are the sorted names, as everywhere: label 0 is n01440764.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, NamedTuple

from vlbeit.data.following import BEIT, next_command
from vlbeit.errors import DataError

from .archives import Entry, entries, nested
from .imagenet_labels import file_labels, from_devkit, val_number, wnid_in
from .imagenet_sources import Sources, find_sources
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
from .shards import Fault, Item, Layout, Position

_LABELS = (
    "give the labels of val in one of three ways: the devkit (--from ...,ILSVRC2012_devkit_t12.tar.gz, needs pip "
    "install scipy), --val-labels FILE with the class of each picture, one a line, or an archive whose names end in "
    "the class, as the Hub's val_images.tar.gz (ILSVRC2012_val_00000001_n01751748.JPEG)"
)


class _Survey(NamedTuple):
    """What the headers of a split tell: no picture is read for it."""

    files: int  # those that its headers show
    bytes: int
    groups: Mapping[str, str]  # class -> the first file that has it
    nameless: Sequence[str]  # files whose names tell no class
    listing: str  # hash of the names and sizes, in their order: places in it stay what they are


class _Found(NamedTuple):
    """A file of a split: place, class as far as its name tells, entry."""

    position: Position
    group: str | None
    entry: Entry


def prepare(
    out: Out,
    *,
    from_: Annotated[list[str], "archives A,B, or the folder with them or with train/ and val/"],
    val_labels: Annotated[Path | None, "file with the classes of val, where neither folders nor devkit tell"] = None,
    format: Format = "auto",
    check: Check = "header",
    threads: Threads = 0,
    shard_mb: ShardMB = 256,
    verify: Verify = False,
    report: Report | None = None,
) -> str:
    """Prepare ImageNet's archives, or a folder train/CLASS/*.jpg, for data=imagefolder.

    --from takes archives with the names of ILSVRC2012 or of the Hub (others as train=FILE, val=FILE, devkit=FILE), or
    one folder with them or with train/ and val/. The same command after an interruption goes on where it stopped.
    """
    sources = find_sources(given(from_))
    if report:
        for line in sources.passed_over:
            report(line)
    labels = _labels(sources, val_labels)
    in_place = all(path.is_dir() for paths in sources.archives.values() for path in paths)
    surveys = {split: _survey(paths) for split, paths in sources.archives.items()}
    classes = sorted(surveys["train"].groups)
    if not classes:
        raise DataError(f"{sources.archives['train'][0]} has no classes: neither tars, folders nor names with a wnid")
    if "val" in surveys:
        _check_val(surveys["val"], classes, labels, val_labels)
    numbers = {name: label for label, name in enumerate(classes)}

    def items(split: str) -> Callable[[Position], Iterator[Item]]:
        paths = sources.archives[split]
        return lambda after: (_item(found, split, numbers, labels) for found in _walk(paths, after))

    every = [path for paths in sources.archives.values() for path in paths]
    arguments = {
        "from": {split: [*map(fingerprint, paths)] for split, paths in sources.archives.items()},
        "files": {split: f"{survey.files} files, {survey.listing}" for split, survey in surveys.items()},
        "labels": f"{len(labels)} labels, {_hash(sorted(labels.items()))}",
        "check": check,
        "shard_mb": shard_mb,
    }
    plan = Plan(
        layout=Layout("labelled", chosen(format, in_place), arguments),
        classes=classes,
        splits=[Split(split, survey.bytes, items(split)) for split, survey in surveys.items()],
        examine=lambda item: examine_picture(item, check),
        archives=[path for path in (*every, *filter(None, [sources.devkit])) if path.is_file()],
    )
    run(out, plan, Options(threads, shard_mb, verify), report)
    if "val" not in sources.archives:
        return next_command("stage=tokenizer data=imagefolder data.val_split=train", out, "tokenizer")
    recipe = " recipe=beit_base_in1k" if len(classes) == 1000 else ""
    words = f"stage=mim task=classification{recipe} init={BEIT} data=imagefolder"
    return next_command(words, out, "classification")


def _survey(paths: Sequence[Path]) -> _Survey:
    """Classes and bytes of a split, of tars inside a tar by their names.

    Raises `DataError` for an archive that is cut off, before hours are spent on it.
    """
    count = size = 0
    groups: dict[str, str] = {}
    nameless: list[str] = []
    listing = hashlib.sha256()
    for path in paths:
        with entries(path) as found:
            for entry in found:
                count += 1
                listing.update(f"{entry.name}\0{entry.size}\0".encode())
                if entry.refused or not (entry.is_tar or is_picture(entry.name)):
                    continue
                size += entry.size
                if group := _group(entry):
                    groups.setdefault(group, entry.name)
                else:
                    nameless.append(entry.name)
    return _Survey(count, size, groups, nameless, listing.hexdigest()[:16])


def _hash(value: object) -> str:
    """Of what JSON can write."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _group(entry: Entry) -> str | None:
    """The class that a name tells: in a folder the first folder below the split's, as data=imagefolder has it.

    In an archive the name of an inner tar, else a wnid in the file's name, else the file's folder.
    """
    path = PurePosixPath(entry.name)
    if entry.value is not None:
        return path.parts[0] if len(path.parts) > 1 else wnid_in(path.name)
    if entry.is_tar:
        return path.name.partition(".")[0]
    official = val_number(path.name) is not None  # these lie in one folder, whatever its name
    return wnid_in(path.name) or (None if official else path.parent.name) or None


def _walk(paths: Sequence[Path], after: Position) -> Iterator[_Found]:
    """The files behind a position; what lies before it is passed over without being read."""
    for number, path in enumerate(paths):
        if (number,) < after[:1]:
            continue
        with entries(path) as found:
            for outer, entry in enumerate(found):
                here = (number, outer)
                if here < after[:2]:
                    continue
                if entry.is_tar and not entry.refused:
                    group = _group(entry)
                    for inner, member in enumerate(nested(entry)):
                        if (*here, inner) > after:
                            yield _Found((*here, inner), group, member)
                elif (*here, 0) > after:
                    yield _Found((*here, 0), _group(entry), entry)


def _item(found: _Found, split: str, numbers: Mapping[str, int], labels: Mapping[int, str]) -> Item:
    entry = found.entry
    if entry.refused:
        return Item(found.position, {"id": entry.name}, faults=(Fault(f"refused: {entry.refused}", True),))
    if not is_picture(entry.name):
        return Item(found.position, {"id": entry.name}, faults=(Fault("not a picture by its name", True),))
    group = found.group or labels.get(val_number(entry.name) or 0)
    if group is None or group not in numbers:
        fault = Fault("no class: neither its name nor its folder tells one", True)
        return Item(found.position, {"id": entry.name}, faults=(fault,))
    inside = entry.value is not None and entry.name.startswith(f"{group}/")
    name = entry.name if inside else f"{group}/{PurePosixPath(entry.name).name}"
    record = {"id": name, "image": entry.value or entry.read(), "label": numbers[group]}
    return Item(found.position, record, {"image": f"{split}/{name}"}, origin=f"{entry.archive}: {entry.name}")


def _labels(sources: Sources, file: Path | None) -> Mapping[int, str]:
    """Number of a validation picture -> class, where a file or the devkit says it."""
    if file:
        return file_labels(file)
    return from_devkit(sources.devkit) if sources.devkit else {}


def _check_val(survey: _Survey, classes: Sequence[str], labels: Mapping[int, str], file: Path | None) -> None:
    """Every validation picture has a class, and it is one of the training split's; `file` is that of --val-labels."""
    if file and survey.nameless and len(labels) != len(survey.nameless):
        raise DataError(
            f"--val-labels {file} has labels for {len(labels)} pictures, val has {len(survey.nameless)}: they must be "
            "of the same release; correct the file"
        )
    known = set(classes)
    groups = dict(survey.groups)
    for name in survey.nameless:
        group = labels.get(val_number(name) or 0)
        if group is None:
            raise DataError(f"{name} of val has no label; {_LABELS}")
        groups.setdefault(group, name)
    if unknown := sorted(groups.keys() - known):
        many = "classes" if len(unknown) > 1 else "class"
        raise DataError(
            f"val has {len(unknown)} {many} that train has not, such as {unknown[0]} of {groups[unknown[0]]}; take "
            "both from the same release, or give val with the classes of train alone"
        )
