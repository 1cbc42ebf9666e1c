"""Time and memory of `vlbeit prepare vqa_v2` on files of the official size, and of reading what it wrote.

    OMP_NUM_THREADS=1 python benchmarks/vqa_prepare.py            # --share 0.01 for a quick try

The files are drawn in the official layout: as many questions, images and answers as published, answers as frequent as
words are (Zipf). The image files are empty: they are listed, not opened.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import tempfile
import time
from itertools import accumulate
from pathlib import Path

from vlbeit.config import DataConfig
from vlbeit.data.sources import open_records
from vlbeit.data.vqa_v2_files import SUBTYPES
from vlbeit.data_prep import vqa_v2
from vlbeit.data_prep.vqa_v2_parts import PUBLISHED

WORDS = [f"word {number}" for number in range(20_000)]
WEIGHTS = list(accumulate(1 / number for number in range(1, len(WORDS) + 1)))  # cumulative


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--share", type=float, default=1.0, help="of the published numbers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root, out = Path(name, "root"), Path(name, "out")
        draw(root, options.share)
        start, busy = time.perf_counter(), time.process_time()
        vqa_v2.prepare(out, root=root, official=options.share == 1, report=print)
        print(f"prepare: {time.perf_counter() - start:.0f} s, {time.process_time() - busy:.0f} s of the processor")
        print(f"most memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")
        data = DataConfig(name="vqa_v2", root=str(out), cache=str(Path(name, "cache")))
        for what in ("index for reading, once", "opened again"):
            start = time.perf_counter()
            count = len(open_records(data, "vqa", "train+trainable_val"))
            print(f"{count} training questions, {what}: {time.perf_counter() - start:.1f} s")


def draw(root: Path, share: float) -> None:
    """Question files, annotations and empty images of train, val and test."""
    rng, first = random.Random(0), 1
    for split in ("train", "val", "test"):
        counts, subtype = PUBLISHED[split], SUBTYPES[split]
        images = range(first, first + max(2, int(counts.images * share)))
        first = images.stop
        (root / subtype).mkdir(parents=True)
        for image in images:
            (root / subtype / f"COCO_{subtype}_{image:012d}.jpg").touch()
        each, more = divmod(max(len(images), int(counts.questions * share)), len(images))
        numbers = [(i * 1000 + k, i) for n, i in enumerate(images) for k in range(each + (n < more))]
        rows = [{"image_id": i, "question": "What is that thing over there?", "question_id": q} for q, i in numbers]
        Path(root, f"v2_OpenEnded_mscoco_{subtype}_questions.json").write_text(json.dumps({"questions": rows}))
        if split != "test":
            with open(root / f"v2_mscoco_{subtype}_annotations.json", "w") as file:
                file.write('{"annotations": [')
                file.writelines(
                    ("" if place == 0 else ", ") + json.dumps(annotation(question, image, rng))
                    for place, (question, image) in enumerate(numbers)
                )
                file.write("]}")


def annotation(question: int, image: int, rng: random.Random) -> dict[str, object]:
    """Seven humans agree, three have another answer."""
    most, others = rng.choices(WORDS, cum_weights=WEIGHTS, k=2)
    answers = [most] * 7 + [others] * 3
    return {
        "question_id": question, "image_id": image, "question_type": "what is", "answer_type": "other",
        "multiple_choice_answer": most,
        "answers": [{"answer": a, "answer_confidence": "yes", "answer_id": n} for n, a in enumerate(answers, 1)],
    }  # fmt: skip


if __name__ == "__main__":
    main()
