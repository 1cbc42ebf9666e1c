"""Memory of a stream over shards against the number of its pairs, and its speed against data=pairs.

    OMP_NUM_THREADS=1 python benchmarks/stream_memory.py --pairs 10000 10000000

Every case is a process of its own, with a loader like that of training: it opens the shards, reads steps at the start,
in the middle and at the end of an epoch, and says what it and its workers hold, in total and of anonymous memory (what
is not the content of a file). The shards are WebDataset tars of 10,000 tiny pairs, or Parquet files; all are links to
four files, which the program does not know: each has its path, its index and its counts. `mix` is half tars, half
Parquet. The speed is that of one process with pictures of 256 pixels, read alone and decoded too, by the second of its
processor: files are in the page cache, and other programs may run beside it.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageFilter

from vlbeit import table

EACH = 10_000  # pairs of a shard
MASTERS = 4  # files that differ
SHAPES = ("tar", "parquet", "mix")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, nargs="*", default=[10_000, 10_000_000], help="none: speed alone")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--steps", type=int, default=200, help="of 64 pairs, at each of the three places")
    parser.add_argument("--pictures", type=int, default=2000, help="of the comparison of speed")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(case(**json.loads(options.case))))
        return
    with tempfile.TemporaryDirectory() as name:
        if options.pairs:
            memory(Path(name), options)
        speed(Path(name) / "speed", options.pictures)


# ---- memory


def memory(folder: Path, options: argparse.Namespace) -> None:
    rows = []
    masters = {"tar": [tar(folder / f"master-{n}.tar", EACH) for n in range(MASTERS)]}
    masters["parquet"] = [parquet(folder / f"master-{n}.parquet", EACH) for n in range(MASTERS)]
    for shape in SHAPES:
        for workers in options.workers:
            least: dict[str, float] = {}
            for pairs in options.pairs:
                words = linked(folder / f"{shape}-{pairs}", shape, pairs, masters)
                asked = {"words": words, "workers": workers, "steps": options.steps, "cache": str(folder / "cache")}
                command = [sys.executable, __file__, "--case", json.dumps(asked)]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(done.stderr)
                found = json.loads(done.stdout.splitlines()[-1])
                least = least or found
                rows.append(
                    (
                        shape, workers, f"{pairs:,}", f"{found['opened']:.1f} s", f"{found['resident']:.0f} MB",
                        f"{found['resident'] - least['resident']:+.0f} MB",
                        f"{found['anonymous'] - least['anonymous']:+.0f} MB", f"{found['rate']:.0f}",
                    )
                )  # fmt: skip
                print(*rows[-1], file=sys.stderr)
    heading = ("shards", "workers", "pairs", "opened in", "resident", "growth", "of it anonymous", "pairs/s")
    table.show(heading, rows)


def linked(folder: Path, shape: str, pairs: int, masters: dict[str, list[Path]]) -> dict[str, object]:
    """A folder of links to the masters; returns what data.* must be."""
    shapes = ("tar", "parquet") if shape == "mix" else (shape,)
    for each in shapes:
        own = folder / each
        if not own.exists():
            own.mkdir(parents=True)
            for number in range(max(1, pairs // EACH // len(shapes))):
                os.link(masters[each][number % MASTERS], own / f"{number:05d}.{each}")
                (own / f"{number:05d}_stats.json").write_text(json.dumps({"successes": EACH}))
    if shape == "mix":
        return {"name": "mix", "root": str(folder), "mix": ["tar", "parquet"]}
    return {"name": "shards", "root": str(folder / shape)}


def case(words: dict, workers: int, steps: int, cache: str) -> dict[str, float]:
    """What a loader holds after steps at three places of an epoch, in MB, and pairs per second of the second place."""
    from vlbeit.config import DataConfig
    from vlbeit.data.collate import collate
    from vlbeit.data.loader import TrainLoader
    from vlbeit.data.order import epoch_length
    from vlbeit.data.sources import open_records
    from vlbeit.types import DataSpec

    start = time.perf_counter()
    records = open_records(DataConfig(**words, cache=cache, val_split="train"), "pairs", "train")
    opened = time.perf_counter() - start
    spec = DataSpec(records, _Length(), collate)
    loader = TrainLoader(spec, seed=0, global_batch_size=64, micro_batch_size=64, workers=workers, max_bad_fraction=0.0)
    epoch = epoch_length(records) // 64
    found = {"opened": opened, "resident": 0.0, "anonymous": 0.0, "rate": 0.0}
    for place in (0, epoch // 2, max(0, epoch - steps)):
        for number, _ in enumerate(loader.steps(place, place + steps)):
            if number == steps // 2:
                start = time.perf_counter()
        found["rate"] = max(found["rate"], 64 * (steps - 1 - steps // 2) / (time.perf_counter() - start))
        iterator = loader.steps(place, place + steps)  # while the workers are there
        for _ in range(steps // 2):
            next(iterator)
        held = [memory_of(process) for process in (os.getpid(), *children())]
        iterator.close()
        for name in ("resident", "anonymous"):
            found[name] = max(found[name], sum(each[name] for each in held))
    return found


class _Length:
    """The sizes of a pair: nothing is decoded."""

    def __call__(self, record: dict) -> dict:
        return {"sample_id": record["id"], "bytes": len(record["image"]), "letters": len(record["text"])}


def children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def memory_of(process: int) -> dict[str, float]:
    """MB of a process: pages that it shares with others are counted by halves, thirds and so on."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    facts = {line.split(":")[0]: int(line.split()[1]) / 1e3 for line in lines[1:]}
    return {"resident": facts["Pss"], "anonymous": facts["Pss_Anon"]}


def tar(path: Path, count: int) -> Path:
    with tarfile.open(path, "w") as file:
        for number in range(count):
            for ending, content in (("jpg", _tiny(number)), ("txt", _text(number).encode())):
                info = tarfile.TarInfo(f"{number:09d}.{ending}")
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return path


def parquet(path: Path, count: int) -> Path:
    columns = {"image": [_tiny(n) for n in range(count)], "caption": [_text(n) for n in range(count)]}
    pq.write_table(pa.table(columns), path, row_group_size=500)
    return path


def _tiny(number: int) -> bytes:
    return number.to_bytes(4, "little") * 64


def _text(number: int) -> str:
    return f"a caption of about sixty letters, as those of the web are, {number}"


# ---- speed


def speed(folder: Path, count: int) -> None:
    from vlbeit.config import DataConfig
    from vlbeit.data.collate import collate
    from vlbeit.data.loader import TrainLoader
    from vlbeit.data.sources import open_records
    from vlbeit.types import DataSpec

    write_pictures(folder, count)
    rows = []
    for name, config in {
        "pairs, a file each": {"name": "pairs", "root": str(folder / "pairs")},
        "shards, tar": {"name": "shards", "root": str(folder / "tar")},
        "shards, Parquet": {"name": "shards", "root": str(folder / "parquet")},
    }.items():
        records = open_records(DataConfig(**config, cache=str(folder / "cache"), val_split="train"), "pairs", "train")
        rates = []
        for look in (_Read(), _Decode()):
            spec, sizes = DataSpec(records, look, collate), {"global_batch_size": 50, "micro_batch_size": 50}
            loader = TrainLoader(spec, seed=0, workers=0, max_bad_fraction=0.0, **sizes)
            list(loader.steps(0, count // 50))  # indexes are made, files are in the page cache
            start = time.process_time()
            list(loader.steps(count // 50, 2 * (count // 50)))
            rates.append(count / (time.process_time() - start))
        rows.append((name, f"{rates[0]:.0f}", f"{rates[1]:.0f}"))
    table.show(("source", "pairs read", "pairs decoded, each by the second"), rows)


class _Read:
    def __call__(self, record: dict) -> dict:
        image = record["image"]
        return {
            "sample_id": record["id"],
            "bytes": len(image if isinstance(image, bytes) else Path(image).read_bytes()),
        }


class _Decode:
    def __call__(self, record: dict) -> dict:
        from vlbeit.data.records import open_image

        return {"sample_id": record["id"], "width": open_image(record["image"]).width}


def write_pictures(folder: Path, count: int) -> None:
    """The same pictures as files with JSON lines, as tars and as Parquet files, 500 a shard."""
    for name in ("pairs", "tar", "parquet"):
        (folder / name).mkdir(parents=True)
    pictures, lines = [], []
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 256, (256, 256, 3), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(noise).filter(ImageFilter.GaussianBlur(1)).save(out, "JPEG", quality=90)
        pictures.append(out.getvalue())
        (folder / "pairs" / f"{number}.jpg").write_bytes(out.getvalue())
        lines.append(json.dumps({"image": f"{number}.jpg", "caption": _text(number)}))
    (folder / "pairs" / "train.jsonl").write_text("\n".join(lines))
    for shard, start in enumerate(range(0, count, 500)):
        part = range(start, min(count, start + 500))
        with tarfile.open(folder / "tar" / f"{shard:05d}.tar", "w") as file:
            for number in part:
                for ending, content in (("jpg", pictures[number]), ("txt", _text(number).encode())):
                    info = tarfile.TarInfo(f"{number:09d}.{ending}")
                    info.size = len(content)
                    file.addfile(info, io.BytesIO(content))
        columns = {"image": [pictures[n] for n in part], "caption": [_text(n) for n in part]}
        pq.write_table(pa.table(columns), folder / "parquet" / f"{shard:05d}.parquet", row_group_size=100)


if __name__ == "__main__":
    main()
