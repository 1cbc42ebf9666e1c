"""Which archives and folders are ImageNet's train, val and devkit: by their names, or by the user's word."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vlbeit.errors import DataError, UsageError

from .archives import TAR_SUFFIXES

_SPLITS = ("train", "val")
_ARCHIVES = (*TAR_SUFFIXES, ".zip")
# ILSVRC2012_img_train_t3.tar (dogs alone), ..._bbox_train_v2.tar.gz and devkits of other tasks must not be taken
_NAMES = {
    "train": re.compile(r"ilsvrc2012_img_train|train(_images)?(_\d+)?"),
    "val": re.compile(r"ilsvrc2012_img_val|val(_images)?(_\d+)?"),
    "devkit": re.compile(r"(ilsvrc2012_)?devkit(_t12)?"),
}


class Sources(NamedTuple):
    """What --from means. `passed_over`: lines about what lies beside it and is not read."""

    archives: Mapping[str, list[Path]]  # by split; folders too
    devkit: Path | None
    passed_over: Sequence[str]


def find_sources(parts: Sequence[str]) -> Sources:
    """The archives of each split and the devkit, by what their names say, or as `train=FILE` says.

    `UsageError` for a name that says nothing, for a folder in which it is not clear what is meant, and where train is
    missing; `DataError` for what does not exist.
    """
    found: dict[str, list[Path]] = {name: [] for name in _NAMES}
    passed_over: list[str] = []
    for part in parts:
        for name, path in _named(part, passed_over):
            found[name].append(path)
    devkits = found.pop("devkit")
    if len(devkits) > 1:
        raise UsageError(f"--from {','.join(parts)} names {len(devkits)} devkits; give one")
    if not found["train"]:
        raise UsageError(f"--from {','.join(parts)} has no training data; give its archive, if need be as train=FILE")
    archives = {split: paths for split, paths in found.items() if paths}
    return Sources(archives, devkits[0] if devkits else None, passed_over)


def _named(part: str, passed_over: list[str]) -> Iterator[tuple[str, Path]]:
    """Split (or devkit) and path of one part of --from; a folder may hold several."""
    word, _, rest = part.partition("=")
    said = word in _NAMES and bool(rest)
    path = Path(rest if said else part).expanduser()
    if not path.exists():
        raise DataError(f"{path} does not exist; give --from the archives or the folder")
    inside = sorted(path.iterdir()) if path.is_dir() and not said else []
    archives = [child for child in inside if child.is_file() and child.name.lower().endswith(_ARCHIVES)]
    if said:
        yield word, path
    elif folders := {child.name: child for child in inside if child.is_dir() and child.name in _SPLITS}:
        _check_beside(part, folders, archives)
        yield from folders.items()
        for child in archives:
            beside = f", {name}/ lies beside it" if (name := _meant(child)) in folders else ": write it into --from"
            passed_over.append(f"{child.name}: not read{beside}")
    elif any(map(_meant, archives)):
        yield from _of_folder(part, archives)
        passed_over += [
            f"{child.name}: not read, its name tells neither train, val nor devkit"
            for child in archives
            if not _meant(child)
        ]
    elif name := _meant(path):
        yield name, path
    else:
        raise UsageError(
            f"--from {part}: its name tells neither train, val nor devkit; write train={part} or val={part}"
            + (", or give a folder with train/ and val/" if path.is_dir() else "")
        )


def _meant(path: Path) -> str:
    """train, val or devkit where the whole name says so; "" for any other."""
    name = path.name.lower()
    suffix = max((suffix for suffix in _ARCHIVES if name.endswith(suffix)), key=len, default="")
    return next((meant for meant, names in _NAMES.items() if names.fullmatch(name.removesuffix(suffix))), "")


def _of_folder(part: str, archives: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """The archives of a folder with what they are. Several of a split must be the numbered parts of one release."""
    for name in _NAMES:
        paths = [path for path in archives if _meant(path) == name]
        if len({re.sub(r"\d+", "", path.name) for path in paths}) > 1:
            raise UsageError(
                f"--from {part} has several for {name}: {', '.join(path.name for path in paths)}; name those that "
                f"belong together, as --from {name}=FILE,..."
            )
        yield from ((name, path) for path in paths)


def _check_beside(part: str, folders: Mapping[str, Path], archives: Sequence[Path]) -> None:
    """`UsageError` where one split is a folder and the other an archive: only the user knows what is meant."""
    for name in _SPLITS:
        alone = [path for path in archives if _meant(path) == name and name not in folders]
        if alone:
            both = ",".join(f"{split}={path}" for split, path in (*folders.items(), (name, alone[0])))
            raise UsageError(f"--from {part} has folders, but {name} only as {alone[0].name}; write --from {both}")
