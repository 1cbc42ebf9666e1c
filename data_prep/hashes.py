"""Published hashes of the archives, and their comparison."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from vlbeit.errors import DataError

from .progress import Progress, Report

# ILSVRC2012: the download page of image-net.org, and torchvision. ADE20K: the loader of GluonCV. COCO: PaddleDetection.
PUBLISHED = {
    "ILSVRC2012_img_train.tar": ("md5", "1d675b47d978889d74fa0da5fadfb00e"),
    "ILSVRC2012_img_val.tar": ("md5", "29b22e2961454d5413ddabcf34fc5622"),
    "ILSVRC2012_devkit_t12.tar.gz": ("md5", "fa75699e90414af021442c21a62c3abf"),
    "ADEChallengeData2016.zip": ("sha1", "219e1696abb36c8ba3a3afe7fb2f4b4606a897c7"),
    "train2017.zip": ("md5", "cced6f7f71b7629ddf16f17bbcfab6b2"),
    "val2017.zip": ("md5", "442b8da7639aecaf257c1dceb8ba8c80"),
    "annotations_trainval2017.zip": ("md5", "f4bbac642086de4f52a3fdda2de5fa2c"),
}
_CHUNK = 2**24


def verify(paths: Sequence[Path], report: Report) -> None:
    """Compare the archives with what their names have published. `DataError` for the first that differs."""
    for path in paths:
        if path.name not in PUBLISHED:
            report(f"{path.name}: no published hash is known")
            continue
        kind, wanted = PUBLISHED[path.name]
        found = _hash(path, kind, report)
        if found != wanted:
            raise DataError(f"{path}: its {kind} is {found}, published is {wanted}; get the archive again")
        report(f"{path.name}: {kind} {wanted}, as published")


def _hash(path: Path, kind: str, report: Report) -> str:
    digest = hashlib.new(kind, usedforsecurity=False)
    with open(path, "rb") as file, Progress(f"{kind} of {path.name}", path.stat().st_size, report) as progress:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            progress.add(len(chunk))
    return digest.hexdigest()
