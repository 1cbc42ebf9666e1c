"""Time of `vlbeit prepare imagenet` on a synthetic archive of ILSVRC2012's form, and of reading what it wrote.

    OMP_NUM_THREADS=1 python benchmarks/prepare_speed.py --classes 20 --each 100

The archive is a tar of class tars with pictures of 500x375 pixels and about 110 kB, as the real ones on average. Reads
are in random order, as in training, in one process, without decoding. The files are in the page cache, so that what is
compared is the work of the program and not the disk.
"""

from __future__ import annotations

import argparse
import io
import random
import shutil
import statistics
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from vlbeit import table
from vlbeit.data.prepared import prepared_records
from vlbeit.data_prep import imagenet

CASES = (("parquet", "none"), ("parquet", "header"), ("parquet", "full"), ("folder", "header"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--each", type=int, default=100, help="pictures of a class")
    parser.add_argument("--reads", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive = write_archive(folder / "train.tar", options.classes, options.each)
        megabytes = archive.stat().st_size / 1e6
        print(f"{options.classes * options.each} pictures, {megabytes:.0f} MB")
        rows = []
        for format, check in CASES:
            out = folder / f"{format}-{check}"
            start, start_busy = time.perf_counter(), time.process_time()
            imagenet.prepare(out, from_=[str(archive)], format=format, check=check, threads=options.threads)
            seconds, busy = time.perf_counter() - start, time.process_time() - start_busy
            size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) / 1e6
            rate, share, read = megabytes / seconds, size / megabytes, read_time(out, options.reads) * 1e3
            rows.append(
                (format, check, f"{seconds:.1f} s", f"{busy:.1f} s", f"{rate:.0f}", f"{share:.3f}", f"{read:.2f} ms")
            )
            shutil.rmtree(out)
    table.show(("format", "check", "time", "processor time", "MB/s", "size / archive", "one picture read"), rows)


def write_archive(path: Path, classes: int, each: int) -> Path:
    """A tar of class tars. The pictures repeat after 16: nothing in the preparation looks for that."""
    pictures = [picture(seed) for seed in range(16)]
    with tarfile.open(path, "w") as outer:
        for number in range(classes):
            wnid, inner_file = f"n{number:08d}", io.BytesIO()
            with tarfile.open(fileobj=inner_file, mode="w") as inner:
                for index in range(each):
                    add(inner, f"{wnid}_{index}.JPEG", pictures[(number + index) % len(pictures)])
            add(outer, f"{wnid}.tar", inner_file.getvalue())
    return path


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def picture(seed: int) -> bytes:
    """Soft noise of 500x375 pixels, about 110 kB as JPEG."""
    noise = np.random.default_rng(seed).integers(0, 256, (375, 500, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).filter(ImageFilter.GaussianBlur(0.6)).save(out, "JPEG", quality=85)
    return out.getvalue()


def read_time(root: Path, count: int) -> float:
    """Median seconds for the bytes of one record, in random order."""
    records = prepared_records(root, "labelled", "train", root / "cache")
    assert records is not None
    places = random.Random(0).choices(range(len(records)), k=count)
    seconds = []
    for place in places:
        start = time.perf_counter()
        value = records[place]["image"]
        if isinstance(value, str):
            Path(value).read_bytes()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
