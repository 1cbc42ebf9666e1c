"""Time of `vlbeit inspect data` on drawn-up data in the layout of VQA v2: questions and pictures a second.

    OMP_NUM_THREADS=1 python benchmarks/health_speed.py --questions 100000 --pictures 2000

Questions and answers are random words, answers with a long tail as people's have; pictures are noise of 640x480 pixels
and about 110 kB. The files are in the page cache, so that what is measured is the work of the program, not the disk.
The first line includes the time in which torch is loaded.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from vlbeit import table
from vlbeit.config import DataConfig
from vlbeit.health.layout import layout
from vlbeit.health.official import read_part
from vlbeit.health.pictures import look_at
from vlbeit.health.report import Wanted, inspect

WORDS = ("is", "the", "man", "dog", "red", "what", "color", "how", "many", "people", "in", "table", "near", "food")
SHARE = 0.25  # of val


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--questions", type=int, default=100_000)
    parser.add_argument("--pictures", type=int, default=2000, help="files; the questions are spread over them")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        writer = get_context("spawn").Process(target=write, args=(root, options.questions, options.pictures))
        writer.start()  # in a process of its own, whose memory does not count
        writer.join()
        config = DataConfig(name="vqa_v2", root=str(root))
        rows = [("all, by headers", options.questions, *timed(lambda: inspect(Wanted(config))))]
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        parts = [read_part(files, str) for files in layout(config).official]
        for what, thorough in (("pictures, headers and ends", False), ("pictures, decoded", True)):
            rows.append((what, options.pictures, *timed(partial(look_at, parts, str, thorough=thorough))))
    lines = [(what, f"{n:,}", f"{s:.1f} s", f"{busy:.1f} s", f"{n / busy:,.0f}") for what, n, s, busy in rows]
    table.show(("", "number", "time", "processor time", "per processor second"), lines)
    print(f"most memory of the first: {most:,.0f} MB")


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock and of the processor."""
    start, busy = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - busy


def write(root: Path, questions: int, pictures: int) -> None:
    """Files of train2014 and val2014; pictures repeat after 16, each with a comment of its own."""
    blobs = [jpeg(np.random.default_rng(number)) for number in range(16)]
    first = 1
    for subtype, share in (("train2014", 1 - SHARE), ("val2014", SHARE)):
        count = max(1, round(share * pictures))
        (root / subtype).mkdir()
        images = range(first, first + count)
        first += count
        for image in images:
            comment = b"\xff\xfe\x00\x0a" + f"{image:08d}".encode()
            blob = blobs[image % len(blobs)]
            (root / subtype / f"COCO_{subtype}_{image:012d}.jpg").write_bytes(blob[:2] + comment + blob[2:])
        rows = list(drawn(Random(subtype), images, round(share * questions)))
        head = {"info": {}, "data_type": "mscoco", "data_subtype": subtype, "license": {}}
        asked = [{key: row[key] for key in ("image_id", "question", "question_id")} for row in rows]
        said = [{key: value for key, value in row.items() if key != "question"} for row in rows]
        for name, key, items in (("OpenEnded_mscoco", "questions", asked), ("mscoco", "annotations", said)):
            (root / f"v2_{name}_{subtype}_{key}.json").write_text(json.dumps({**head, key: items}))


def drawn(rng: Random, images: range, count: int) -> Iterator[dict[str, Any]]:
    answers = ["yes", "no", "2", "1", "white", *(f"thing {number}" for number in range(20_000))]
    for number in range(count):
        image = images[number % len(images)]
        main = answers[min(int(rng.paretovariate(0.5)), len(answers)) - 1]
        humans = [main if rng.random() < 0.8 else rng.choice(answers) for _ in range(10)]
        main = max(humans, key=humans.count)
        yield {
            "image_id": image,
            "question_id": image * 1000 + number // len(images),
            "question": " ".join(rng.choices(WORDS, k=rng.randint(4, 9))) + "?",
            "question_type": " ".join(rng.choices(WORDS[:5], k=2)),
            "answer_type": "yes/no" if main in ("yes", "no") else "number" if main.isdigit() else "other",
            "multiple_choice_answer": main,
            "answers": [
                {"answer": answer, "answer_confidence": "yes", "answer_id": place}
                for place, answer in enumerate(humans, 1)
            ],
        }


def jpeg(rng: np.random.Generator) -> bytes:
    pixels = np.clip(np.cumsum(rng.normal(0, 6, (480, 640, 3)), axis=1) + 128, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=60)
    return file.getvalue()


if __name__ == "__main__":
    main()
