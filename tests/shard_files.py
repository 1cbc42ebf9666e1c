"""Shards of a few small pictures, as tests write them."""

from __future__ import annotations

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def picture(number, side=24):
    """An encoded picture of one colour that is the number's own."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), (number % 256, number // 256, 99)).save(file, "PNG")
    return file.getvalue()


def number_in(data):
    """The number of such a picture, bytes or a path."""
    red, green, _ = Image.open(io.BytesIO(data) if isinstance(data, bytes) else data).getpixel((0, 0))
    return red + 256 * green


def write_tar(path, members):
    """A tar file of {name: bytes or text}, or of such pairs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items() if isinstance(members, dict) else members:
            content = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def pair_members(numbers):
    """Pictures with texts, as img2dataset names them."""
    members = {}
    for number in numbers:
        members[f"{number:09d}.jpg"] = picture(number)
        members[f"{number:09d}.txt"] = f"text {number}"
        members[f"{number:09d}.json"] = json.dumps({"caption": f"text {number}", "status": "success"})
    return members


def write_tars(folder, sizes, first=0):
    """img2dataset's layout: 00000.tar with 00000_stats.json and 00000.parquet beside it; pictures are numbered on."""
    for shard, size in enumerate(sizes):
        write_tar(folder / f"{shard:05d}.tar", pair_members(range(first, first + size)))
        (folder / f"{shard:05d}_stats.json").write_text(json.dumps({"count": size + 3, "successes": size}))
        table = pa.table({"url": ["http://x"] * (size + 3), "caption": [f"c {n}" for n in range(size + 3)]})
        pq.write_table(table, folder / f"{shard:05d}.parquet")
        first += size
    return folder


def write_parquet(path, numbers, *, texts=None, image="image", caption="caption", group=10, struct=False):
    """A table of pictures with texts, as `datasets` writes it with `struct`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = list(numbers)
    images = [picture(number) for number in numbers]
    values = [{"bytes": data, "path": None} for data in images] if struct else images
    texts = [f"text {number}" for number in numbers] if texts is None else texts
    pq.write_table(pa.table({image: values, caption: texts}), path, row_group_size=group)
    return path
