"""ImageNet (ILSVRC2012, or any archives of class folders) for data=imagefolder.

Read as they are published: the training tar is a tar of one tar a class, the validation tar a flat list of pictures
whose labels come from elsewhere. The archives of the Hub (train_images_0.tar.gz, ...: the class stands in the names),
zips and sorted folders work too. Classes are the sorted names, as everywhere: label 0 is n01440764.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from vlbeit.errors import DataError, UsageError

from .archives import TAR_SUFFIXES, Entry, entries, nested
from .imagenet_labels import file_labels, from_devkit, val_number, wnid_in
from .pictures import Check, examine_picture, is_picture
from .preparation import Format, Options, Plan, Split, chosen, fingerprint, given, next_command, run
from .progress import Report
from .shards import Fault, Item, Layout, Position

_SPLITS = ("train", "val")
_LABELS = (
    "give the labels of val in one of three ways: the devkit (--from ...,ILSVRC2012_devkit_t12.tar.gz), --val-labels "
    "FILE with the class of each picture, one a line, or an archive whose names end in the class, as the Hub's "
    "val_images.tar.gz (ILSVRC2012_val_00000001_n01751748.JPEG)"
)


class _Sources(NamedTuple):
    archives: Mapping[str, list[Path]]  # by split
    devkit: Path | None


class _Survey(NamedTuple):
    """What the headers of a split tell: no picture is read for it."""

    files: int  # those that its headers show
    bytes: int
    groups: Mapping[str, str]  # class -> the first file that has it
    nameless: Sequence[str]  # files whose names tell no class


class _Found(NamedTuple):
    """A file of a split: place, class as far as its name tells, entry."""

    position: Position
    group: str | None
    entry: Entry


def prepare(
    out: Path,
    *,
    from_: list[str],
    val_labels: Path | None = None,
    format: Format = "auto",
    check: Check = "header",
    threads: int = 0,
    shard_mb: int = 256,
    verify: bool = False,
    report: Report | None = None,
) -> str:
    """Prepare ImageNet's archives, or a folder train/CLASS/*.jpg, for data=imagefolder.

    --from takes archives whose names tell train, val and devkit (else train=FILE, val=FILE), or one folder with them
    or with train/ and val/. --format index leaves the pictures of a folder where they are, folder writes them as files,
    parquet into shards of --shard-mb. --check header opens every picture, full decodes it. --verify compares published
    hashes. The same command after an interruption goes on where it stopped.
    """
    sources = _sources(given(from_))
    in_place = all(path.is_dir() for paths in sources.archives.values() for path in paths)
    surveys = {split: _survey(paths) for split, paths in sources.archives.items()}
    classes = sorted(surveys["train"].groups)
    if not classes:
        raise DataError(f"{sources.archives['train'][0]} has no classes: neither tars, folders nor names with a wnid")
    labels = _labels(sources, val_labels)
    if "val" in surveys:
        _check_val(surveys["val"], classes, labels)
    numbers = {name: label for label, name in enumerate(classes)}

    def items(split: str) -> Callable[[Position], Iterator[Item]]:
        paths = sources.archives[split]
        return lambda after: (_item(found, split, numbers, labels) for found in _walk(paths, after))

    every = [path for paths in sources.archives.values() for path in paths]
    used = {s: [*map(fingerprint, paths), surveys[s].files] for s, paths in sources.archives.items()}
    arguments = {
        "from": used,
        "val_labels": str(val_labels or sources.devkit or ""),
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
    known = len(classes) == 1000 and "val" in sources.archives
    words = "stage=mim task=classification" + (" recipe=beit_base_in1k" if known else "") + " data=imagefolder"
    return next_command(words if "val" in sources.archives else "stage=mim data=imagefolder data.val_split=train", out)


def _sources(parts: Sequence[str]) -> _Sources:
    """The archives of each split and the devkit, by what their names say, or as `train=FILE` says."""
    found: dict[str, list[Path]] = {split: [] for split in _SPLITS}
    devkits: list[Path] = []
    for name, path in (pair for part in parts for pair in _named(part)):
        if not path.exists():
            raise DataError(f"{path} does not exist; give --from the archives or the folder")
        (devkits if name == "devkit" else found[name]).append(path)
    if not found["train"]:
        raise UsageError(f"--from {','.join(parts)} has no training data; give its archive, if need be as train=FILE")
    return _Sources({split: paths for split, paths in found.items() if paths}, devkits[0] if devkits else None)


def _named(part: str) -> Iterator[tuple[str, Path]]:
    """Split (or devkit) and path of one part of --from; a folder may hold several."""
    word, _, rest = part.partition("=")
    if word in (*_SPLITS, "devkit") and rest:
        yield word, Path(rest).expanduser()
        return
    path = Path(part).expanduser()
    inside = sorted(path.iterdir()) if path.is_dir() else []
    if folders := [child for child in inside if child.is_dir() and child.name in _SPLITS]:
        yield from ((child.name, child) for child in folders)
    elif archives := [child for child in inside if child.name.endswith((*TAR_SUFFIXES, ".zip")) and _guess(child)]:
        yield from ((_guess(child), child) for child in archives)
    elif name := _guess(path):
        yield name, path
    else:
        raise UsageError(
            f"--from {part}: its name tells neither train, val nor devkit; write train={part} or val={part}"
            + (", or give a folder with train/ and val/" if path.is_dir() else "")
        )


def _guess(path: Path) -> str:
    return next((name for name in ("devkit", *_SPLITS) if name in path.name.lower()), "")


def _survey(paths: Sequence[Path]) -> _Survey:
    """Classes and bytes of a split, of tars inside a tar by their names.

    Raises `DataError` for an archive that is cut off, before hours are spent on it.
    """
    count = size = 0
    groups: dict[str, str] = {}
    nameless: list[str] = []
    for path in paths:
        with entries(path) as found:
            for entry in found:
                if entry.refused or not (entry.is_tar or is_picture(entry.name)):
                    continue
                count, size = count + 1, size + entry.size
                if group := _group(entry):
                    groups.setdefault(group, entry.name)
                else:
                    nameless.append(entry.name)
    return _Survey(count, size, groups, nameless)


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
    group = found.group or labels[val_number(entry.name) or 0]
    inside = entry.value is not None and entry.name.startswith(f"{group}/")
    name = entry.name if inside else f"{group}/{PurePosixPath(entry.name).name}"
    record = {"id": name, "image": entry.value or entry.read(), "label": numbers[group]}
    return Item(found.position, record, {"image": f"{split}/{name}"})


def _labels(sources: _Sources, file: Path | None) -> Mapping[int, str]:
    """Number of a validation picture -> class, where a file or the devkit says it."""
    if file:
        return file_labels(file)
    return from_devkit(sources.devkit) if sources.devkit else {}


def _check_val(survey: _Survey, classes: Sequence[str], labels: Mapping[int, str]) -> None:
    """Every validation picture has a class, and it is one of the training split's."""
    known = set(classes)
    groups = dict(survey.groups)
    for name in survey.nameless:
        group = labels.get(val_number(name) or 0)
        if group is None:
            raise DataError(f"{name} of val has no label; {_LABELS}")
        groups.setdefault(group, name)
    if unknown := sorted(groups.keys() - known):
        raise DataError(
            f"val has {len(unknown)} classes that train has not, such as {unknown[0]} of {groups[unknown[0]]}; take "
            "both from the same release, or give val with the classes of train alone"
        )
