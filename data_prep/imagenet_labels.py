"""Labels of ILSVRC2012's validation pictures: from the devkit, from a file, from the pictures' own names."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

from vlbeit.errors import DataError, UsageError

from .archives import entries

_WNID = re.compile(r"(?:^|[_/,\s])(n\d{8})(?![0-9])")
_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})")
_HEADING = "ImageId,PredictionString"  # of Kaggle's LOC_val_solution.csv


def wnid_in(name: str) -> str | None:
    """The wnid that a name holds: n01440764_10026.JPEG, ILSVRC2012_val_00000001_n01751748.JPEG; the last of several."""
    found = _WNID.findall(name)
    return found[-1] if found else None


def val_number(name: str) -> int | None:
    """The number of an official validation picture, from 1."""
    match = _NUMBER.search(name)
    return int(match[1]) if match else None


def file_labels(path: Path) -> dict[int, str]:
    """Number -> wnid, from a file with a wnid a line in the order of the numbers.

    A line may name the picture as well (`ILSVRC2012_val_00000001.JPEG n01751748`, or Kaggle's LOC_val_solution.csv,
    whose heading is passed over). Raises `DataError` with a line that has no wnid.
    """
    if not path.is_file():
        raise UsageError(f"--val-labels {path} does not exist; give a text file with a class a line")
    labels: dict[int, str] = {}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text ({error.reason} at byte {error.start}); save it as such") from error
    lines = [line for line in text.splitlines() if line.strip()]
    if lines and lines[0].strip() == _HEADING:
        lines = lines[1:]
    for place, line in enumerate(lines, start=1):
        found = _WNID.search(line)
        if found is None:
            raise DataError(f"{path}: {line[:60]!r} has no class (n and 8 digits); one a line, in the order of val")
        labels[val_number(line) or place] = found[1]
    return labels


def from_devkit(path: Path) -> dict[int, str]:
    """Number -> wnid, from ILSVRC2012_devkit_t12.tar.gz or its folder.

    Its ground truth has an ILSVRC2012_ID (1..1000, not in the order of the wnids) a line, which meta.mat resolves;
    reading that needs scipy. Raises `DataError` for a devkit that lacks one of the two.
    """
    files = {"ILSVRC2012_validation_ground_truth.txt": b"", "meta.mat": b""}
    with entries(path) as found:
        for entry in found:
            name = entry.name.rpartition("/")[2]
            if name in files and not entry.refused:
                files[name] = entry.read()
    truth, meta = files.values()
    if not truth or not meta:
        raise DataError(f"{path} lacks {' and '.join(name for name, data in files.items() if not data)}; get it again")
    synsets = _synsets(meta, path)
    try:
        return {number: synsets[int(line)] for number, line in enumerate(truth.split(), start=1)}
    except (ValueError, KeyError) as error:
        raise DataError(f"{path}: its ground truth has an ID that meta.mat has not: {error}; get it again") from error


def _synsets(meta: bytes, path: Path) -> dict[int, str]:
    """ILSVRC2012_ID -> wnid."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise UsageError(
            f"reading meta.mat of {path} needs scipy: pip install scipy; or give the labels by --val-labels FILE"
        ) from error
    try:
        rows: Any = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows}
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"{path}: meta.mat is not as in ILSVRC2012 ({error}); get it again") from error
