"""Text training on packed sequences against padded and length-bucketed batches: real tokens a second.

    OMP_NUM_THREADS=1 python benchmarks/packing.py --widths tiny base --medians 25 300

Texts have lengths drawn from a log-normal distribution (spread 0.8) around a median; their words are drawn too. Every
batch has about the same number of places (rows * longest row), so that bucketed batches of short texts have more rows.
Counted are real tokens: padding is not, and what is cut off a long text is not either; `seen` is the share of the
corpus that an epoch sees. Seconds are those of the process, on a CPU.
Forward and backward of masked language modeling with 30,522 words, no optimizer.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import torch

from vlbeit import table
from vlbeit.data.collate import collate
from vlbeit.data.masked_text import MaskedText
from vlbeit.data.packing import PackedTransform, packed
from vlbeit.data.records import ListRecords
from vlbeit.data.text import Tokenizer, train_wordpiece
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.heads import Heads
from vlbeit.models.presets import PRESETS
from vlbeit.models.spec import EncoderSpec
from vlbeit.objectives.mlm import MLMObjective
from vlbeit.stages.mlm import MLMTransform
from vlbeit.types import Batch, DataSpec

VOCABULARY = 30522
POOL = 50  # bucketed batches are cut from so many sorted together, as samplers of that kind do


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--widths", nargs="+", default=["tiny"], choices=PRESETS)
    parser.add_argument("--medians", nargs="+", type=int, default=[25, 300], help="tokens of the median text")
    parser.add_argument("--length", type=int, default=196, help="longest row")
    parser.add_argument("--rows", type=int, default=8, help="rows of a batch where every row is of that length")
    parser.add_argument("--batches", type=int, default=20, help="measured of each kind; a twentieth of it for base")
    parser.add_argument("--texts", type=int, default=3000)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for median in options.medians:
        records, tokenizer = corpus(options.texts, median, options.length)
        total = sum(tokenizer.lengths(records.column("text")))
        with tempfile.TemporaryDirectory() as cache:
            specs = {
                "one a row": DataSpec(records, MLMTransform(MaskedText(tokenizer)), collate),
                "packed": DataSpec(packed(records, tokenizer, cache), PackedTransform(MaskedText(tokenizer)), collate),
            }
            for width in options.widths:
                count = options.batches if width == "tiny" else max(2, options.batches // 20)
                model = objective(width, options.length).to(device)
                for name, batches in kinds(specs, tokenizer, options.length, options.rows).items():
                    seconds, real, places = measured(model, batches, count, device)
                    seen = total if name == "packed" else sum(np.minimum(lengths(specs, tokenizer), options.length))
                    figures = (f"{real / places:.1%}", f"{seen / total:.1%}", f"{real / seconds:,.0f}")
                    rows.append((width, median, name, *figures))
    table.show(("model", "median text", "batches", "real tokens", "seen", f"real tokens/s ({device})"), rows)


def corpus(count: int, median: int, length: int) -> tuple[ListRecords, Tokenizer]:
    """Texts of random words and a tokenizer that knows them: a word is a token."""
    generator = np.random.default_rng(0)
    words = ["".join(generator.choice(list("abcdefghij"), 4)) for _ in range(500)]
    sizes = np.maximum(1, generator.lognormal(np.log(median), 0.8, count).astype(int))
    texts = [" ".join(generator.choice(words, size)) for size in sizes]
    tokenizer = train_wordpiece(lambda: texts, 1000, length)
    return ListRecords([{"id": str(number), "text": text} for number, text in enumerate(texts)]), tokenizer


def objective(width: str, length: int) -> MLMObjective:
    """The text stage from scratch."""
    preset = PRESETS[width]
    torch.manual_seed(0)
    spec = EncoderSpec(
        preset.embed_dim,
        preset.depth,
        preset.num_heads,
        image_size=None,
        experts=("text",),
        vocab_size=VOCABULARY,
        text_positions=length,
        positions="absolute" if preset.positions == "absolute" else "per_layer",
        layer_scale=preset.layer_scale,
    )
    heads = Heads({"mlm": {"kind": "mlm", "dim": preset.embed_dim, "vocab_size": VOCABULARY}})
    return MLMObjective(MoMEEncoder(spec), heads).train()


def lengths(specs: dict[str, DataSpec], tokenizer: Tokenizer) -> np.ndarray:
    """Tokens of every text."""
    return np.array(tokenizer.lengths(specs["one a row"].records.column("text")))


def kinds(specs: dict[str, DataSpec], tokenizer: Tokenizer, length: int, rows: int) -> dict[str, Iterator[Batch]]:
    """Endless batches of every kind, from the same texts."""
    sizes = np.minimum(lengths(specs, tokenizer), length)
    return {
        "padded to the longest row there is": padded(specs["one a row"], rows, length),
        "padded to the longest of the batch": padded(specs["one a row"], rows, None),
        "bucketed by length": bucketed(specs["one a row"], sizes, rows * length),
        "packed": padded(specs["packed"], rows, None),
    }


def padded(spec: DataSpec, rows: int, length: int | None) -> Iterator[Batch]:
    """Random rows, filled up to the longest of them, or to `length`."""
    generator = np.random.default_rng(1)
    while True:
        batch = made(spec, generator.choice(len(spec.records), rows, replace=False))
        if length is not None:
            missing = length - batch["text_ids"].shape[1]
            fill = {"mlm_labels": -100}
            for name in ("text_ids", "mlm_ids", "mlm_labels", "text_keep"):
                batch[name] = torch.nn.functional.pad(batch[name], (0, missing), value=fill.get(name, 0))
        yield batch


def bucketed(spec: DataSpec, sizes: np.ndarray, places: int) -> Iterator[Batch]:
    """Batches of texts of like length, as many as fit; the batches in random order."""
    generator = np.random.default_rng(1)
    while True:
        pool = generator.permutation(len(sizes))[: POOL * 64]
        pool = pool[np.argsort(sizes[pool], kind="stable")[::-1]]
        cut: list[np.ndarray] = []
        while len(pool):
            fitting = max(1, places // int(sizes[pool[0]]))
            cut.append(pool[:fitting])
            pool = pool[fitting:]
        for index in generator.permutation(len(cut)):
            yield made(spec, cut[index])


def made(spec: DataSpec, indices: np.ndarray) -> Batch:
    """The samples of the indices as a batch."""
    return spec.collate([spec.transform(spec.records[int(index)]) for index in indices])


def measured(model: MLMObjective, batches: Iterator[Batch], count: int, device: str) -> tuple[float, int, int]:
    """Seconds, real tokens and places of so many batches; one more goes before them and is not counted."""
    clock = time.perf_counter if device == "cuda" else time.process_time  # on the CPU others may be at work as well
    seconds, real, places = 0.0, 0, 0
    for number in range(count + 1):
        found = next(batches)
        batch = {name: value.to(device) for name, value in found.items() if isinstance(value, torch.Tensor)}
        start = clock()
        model(batch, model.counts(batch)).losses["mlm"].backward()
        if device == "cuda":
            torch.cuda.synchronize()
        if number:
            seconds += clock() - start
            real, places = real + int(batch["text_keep"].sum()), places + batch["text_keep"].numel()
        model.zero_grad(set_to_none=True)
    return seconds, real, places


if __name__ == "__main__":
    main()
