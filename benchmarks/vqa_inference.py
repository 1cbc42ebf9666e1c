"""What the ways of reading pictures and questions cost in VQA inference, measured in one process.

    OMP_NUM_THREADS=2 python benchmarks/vqa_inference.py --model tiny --size 224 --pictures 24

Drawn JPEG pictures of COCO's usual shapes (640 pixels on the longer side, three of four landscape), `--questions` on
each, of 5 to 20 tokens; weights are random, which costs no less. Reading is that of one loader process. The ways are
timed in turns, so that a noisy machine disturbs all alike; the median of the rounds counts.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vlbeit.config import DataConfig, RunConfig, Settings, TextConfig
from vlbeit.data.loader import EvalLoader
from vlbeit.data.recent import Recent
from vlbeit.data.records import ListRecords
from vlbeit.engine.device import batch_dtype, make_accelerator, to_device
from vlbeit.models.presets import PRESETS
from vlbeit.tasks.vqa.answering import Answering
from vlbeit.tasks.vqa.task import VQA, VQASettings
from vlbeit.types import Batch, DataSpec, Layout, Meta, Records

SHAPES = ((640, 480), (640, 427), (480, 640), (640, 480))  # width, height
TEXT = "what is the color of a dog on left how many people are in this picture near red bus and"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="base", choices=sorted(PRESETS))
    parser.add_argument("--size", type=int, default=480)
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--questions", type=int, default=5, help="on each picture")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        records = drawn(Path(folder), options.pictures, options.questions)
        bench(records, options)


def bench(records: Records, options: argparse.Namespace) -> None:
    """Print the table of the ways, those of each comparison together."""
    accelerator = make_accelerator(options.device, options.precision)
    recipes = {resize: recipe(options.model, options.size, resize) for resize in ("square", "native")}
    meta = recipes["square"].meta(records, {})
    torch.manual_seed(0)
    objective = recipes["square"].objective(meta).to(accelerator.device).eval()
    specs = {resize: one.data(records, meta, train=False) for resize, one in recipes.items()}
    by_row = specs["square"]._replace(layout=Layout())
    batches = {
        "square": read(specs["square"], options.batch),
        "in the order of the file": read(by_row, options.batch),
        "native": read(specs["native"], options.batch),
    }

    def answer(which: str) -> Callable[[], None]:
        on_device = [to_device(batch, accelerator.device, batch_dtype(objective)) for batch in batches[which]]

        def call() -> None:
            with accelerator.autocast():
                for batch in on_device:
                    Answering(meta["answers"])(objective, batch)
            if options.device == "cuda":
                torch.cuda.synchronize()

        return call

    ways = {
        "read: a picture decoded for every question": lambda: read(specs["square"], options.batch, keep=0),
        "read: a picture decoded once": lambda: read(specs["square"], options.batch),
        "answer: square, in the order of the file": answer("in the order of the file"),
        "answer: square, batches by length": answer("square"),
        "answer: native, batches by grid and length": answer("native"),
    }
    seconds = in_turns(ways, options.rounds)
    show(seconds, len(records), meta)
    print(f"{options.model}, {options.size} pixels, batches of {options.batch}, {options.precision}, {options.device}")
    patches = {name: mean_patches(found, recipes["square"]) for name, found in batches.items()}
    print(f"patches a picture: square {patches['square']:.0f}, native {patches['native']:.0f}")
    shares = {name: f"{padding(found):.2f}" for name, found in batches.items()}
    print("padding, share of text tokens:", ", ".join(f"{name} {share}" for name, share in shares.items()))


def show(seconds: Mapping[str, float], questions: int, meta: Meta) -> None:
    """Questions a second, and the ratio to the first way of the same kind."""
    print(f"{questions} questions, {len(meta['answers'])} answers")
    first: dict[str, float] = {}
    for name, value in seconds.items():
        base = first.setdefault(name.partition(":")[0], value)
        print(f"{name:45s} {questions / value:9.1f} questions/s   x {base / value:.2f}")


def in_turns(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each way; a first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(rounds + 1):
        for name, call in ways.items():
            start = time.perf_counter()
            call()
            if round_:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def read(spec: DataSpec, batch: int, keep: int = 64) -> list[Batch]:
    """All batches of evaluation, with `keep` pictures kept for other questions."""
    transform = spec.transform
    transform.recent = Recent(keep)  # type: ignore[attr-defined]
    return list(EvalLoader(spec, batch_size=batch, workers=0, max_bad_fraction=0))


def mean_patches(batches: list[Batch], recipe: VQA) -> float:
    """Of a question's picture."""
    side = recipe.config.model.patch_size
    counts = [batch["image"].shape[2] * batch["image"].shape[3] // side**2 for batch in batches]
    return float(np.average(counts, weights=[len(batch["sample_id"]) for batch in batches]))


def padding(batches: list[Batch]) -> float:
    """Share of the text tokens that are padding."""
    kept = sum(int(batch["text_keep"].sum()) for batch in batches)
    return 1 - kept / sum(batch["text_keep"].numel() for batch in batches)


def recipe(model: str, size: int, resize: str) -> VQA:
    """The task on a tower with random weights."""
    return VQA(
        RunConfig(
            stage=Settings(name="vl"),
            task=VQASettings(name="vqa", min_count=1),
            model=PRESETS[model],
            data=DataConfig(image_size=size, resize=resize),
            text=TextConfig(vocab_size=300, max_length=40),
        )
    )


def drawn(folder: Path, pictures: int, questions: int) -> Records:
    """Pictures with something to compress, and questions of whole words on them."""
    draw = np.random.default_rng(0)
    rows = []
    for number in range(pictures):
        width, height = SHAPES[number % len(SHAPES)]
        blocks = draw.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        image = Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC)
        image.save(folder / f"{number}.jpg", quality=90)
        for _ in range(questions):
            text = " ".join(draw.choice(TEXT.split(), size=int(draw.integers(3, 19))))
            rows.append(
                {
                    "id": str(len(rows)), "image": str(folder / f"{number}.jpg"), "question": text,
                    "question_id": len(rows), "image_id": number, "question_type": "what", "answer_type": "other",
                    "answers": [f"answer {len(rows) % 100}"] * 10, "multiple_choice_answer": "",
                }
            )  # fmt: skip
    return ListRecords(rows)


if __name__ == "__main__":
    main()
