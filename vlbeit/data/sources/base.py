"""What every data source offers, and how sources find the files of a split."""

from __future__ import annotations

import logging
import os
import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from vlbeit import dist
from vlbeit.config import DataConfig
from vlbeit.data.prepared import prepared_kinds
from vlbeit.data.vqa_splits import called
from vlbeit.errors import DataError, MissingSplitError, UsageError
from vlbeit.types import Records

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class DataSource(ABC):
    """Gives the records of the splits below `data.root`, which it never writes to."""

    kinds: ClassVar[tuple[str, ...]]  # of vlbeit.data.records.KINDS
    takes_images: ClassVar[bool] = False  # whether `data.images` means something

    def __init__(self, config: DataConfig) -> None:
        self.config = config
        self.root = Path(config.root).expanduser().absolute()  # indexes hold whole paths

    def check(self) -> None:
        """Raise `DataError` unless `data.root` is there and can be read, `UsageError` for a key that it has not."""
        self.check_images()
        if not self.root.exists():
            raise DataError(f"data.root={self.root} does not exist; set data.root= to where the data lies")
        if not os.access(self.root, os.R_OK | (os.X_OK if self.root.is_dir() else 0)):
            raise DataError(f"data.root={self.root} cannot be read; give yourself permission or set data.root=")

    def check_images(self) -> None:
        """Raise `UsageError` for a `data.images` that would have no say."""
        if self.config.images and not self.takes_images:
            raise UsageError(
                f"data={self.config.name} has no use for data.images={self.config.images}: leave it out; paths in it "
                "are relative to data.root"
            )

    def given(self, kind: str) -> set[str]:
        """The kinds that its data, which gave records of `kind`, are known to give; they are not opened for it."""
        prepared = prepared_kinds(self.root)
        return set(self.kinds) if prepared is None else prepared.intersection(self.kinds)

    @abstractmethod
    def records(self, kind: str, split: str) -> Records:
        """The records of one of `kinds`. Raises `DataError` where the files of the split are missing or damaged."""

    def question_file(self, split: str) -> Path | None:
        """The official question file that a split is; None where it is none, or several."""
        return None

    def classes(self, kind: str = "labelled") -> list[str]:
        """Names of the labels 0, 1, ... of the records of a kind: labelled, masks or boxes."""
        raise DataError(f"data={self.config.name} has no classes of {kind} records")


def say(line: str) -> None:
    """A note about the data in the log, once over all processes."""
    if dist.is_main():
        log.info(line)


def split_files(root: Path, split: str, suffixes: Sequence[Sequence[str]], layout: str) -> list[Path]:
    """The files of a split: `root` itself where it is a file, else the files of the folder that are named after it.

    `suffixes`: of files that are read together, the first of these kinds that the split has is taken. Where none is
    named after val, those named validation, valid or dev are. `train.txt` goes before `*_train.txt`, `train_0.txt`,
    `train-00000-of-00002.parquet`.
    Raises `DataError` with the expected layout where there is none; a single file is the split `train`.
    """
    known = [suffix for kind in suffixes for suffix in kind]
    if root.is_file():
        if root.suffix not in known:
            raise DataError(f"data.root={root} does not end in {', '.join(known)}; {layout}")
        if split != "train":
            raise MissingSplitError(
                f"data.root={root} is one file, the split 'train', and has no split {split!r}; {layout}, "
                f"or set data.val_split=train"
            )
        return [root]
    files = sorted(file for file in root.iterdir() if file.suffix in known and file.is_file())
    named = (_named(files, name) for name in called(split))
    found = next((those for those in named if those), [])
    if not found:
        raise MissingSplitError(f"data.root={root} has no file for the split {split!r}; {layout}")
    of_kinds = ([file for file in found if file.suffix in kind] for kind in suffixes)
    return next(those for those in of_kinds if those)


def _named(files: Sequence[Path], split: str) -> list[Path]:
    return [file for file in files if file.stem == split] or [file for file in files if is_named(file.stem, split)]


def is_named(stem: str, split: str) -> bool:
    """Whether a file of this name, without its suffix, is named after a split: `train-00000-of-00002`."""
    return re.search(rf"(^|[_.-]){re.escape(split)}([_.-]|$)", stem) is not None


def walk_images(folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> Iterator[tuple[str, list[str]]]:
    """Every folder below, itself included, in order, with its image files; hidden ones are left out.

    Raises `DataError` for the first of them whose path is not UTF-8, which no index can hold.
    """
    for top, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found = sorted(name for name in files if not name.startswith(".") and name.lower().endswith(suffixes))
        for path in (os.path.join(top, name) for name in found):
            try:
                path.encode()
            except UnicodeEncodeError as error:
                shown = os.fsencode(path).decode(errors="backslashreplace")
                raise DataError(f"{shown} has a name that is not UTF-8; rename it") from error
        yield top, found


def check_pictures(folder: Path) -> None:
    """Raise `DataError` unless there are image files below a folder."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: name one with pictures in it")
    if not any(names for _, names in walk_images(folder)):
        raise DataError(f"{folder} has no pictures in it: name another folder")


def missing_files(paths: Iterable[Path]) -> list[Path]:
    """Which files are not there, by listing each folder once instead of asking for every file."""
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for path in paths:
        by_folder[path.parent].append(path)
    missing = []
    for folder, wanted in by_folder.items():
        try:
            with os.scandir(folder) as entries:
                there = {entry.name for entry in entries}
        except OSError:
            there = set()
        missing += [path for path in wanted if path.name not in there]
    return missing
