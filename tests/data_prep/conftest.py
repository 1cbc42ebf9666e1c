"""Small archives, made by hand."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def picture(number: int = 0, *, size: tuple[int, int] = (24, 16), mode: str = "RGB", format: str = "JPEG") -> bytes:
    """A small picture of noise, other noise for each number."""
    channels = {"RGB": 3, "CMYK": 4, "L": 1}[mode]
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels.squeeze() if channels == 1 else pixels, mode).save(out, format)
    return out.getvalue()


def tar_bytes(members: Iterable[tuple[str, bytes] | tarfile.TarInfo], mode: str = "w") -> bytes:
    """A tar of (name, content) and of headers without content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return out.getvalue()


@pytest.fixture
def make_picture() -> Callable[..., bytes]:
    return picture


@pytest.fixture
def make_tar(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str, members: Iterable[tuple[str, bytes] | tarfile.TarInfo], mode: str = "w") -> Path:
        path = tmp_path / name
        path.write_bytes(tar_bytes(members, mode))
        return path

    return make


@pytest.fixture
def pack() -> Callable[..., bytes]:
    return tar_bytes
