"""Every image task from every tower on the built-in data, in one table: {mim, vl, from scratch} x tasks, and chance.

    python benchmarks/image_tasks.py --seeds 1 --out runs/image-tasks

Each cell is one `vlbeit train`: the same recipe, data and steps, whatever it starts from. What is missing of the chain
is trained first, a finished run is not repeated. Chance is what an answer without looking scores: the commonest class,
or for detection the boxes of another picture. Drawn shapes: nothing here is evidence about natural images.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from training import train

from vlbeit import inference, table
from vlbeit.data.drawing import IGNORED
from vlbeit.data.sources import open_records
from vlbeit.engine.device import make_accelerator
from vlbeit.engine.evaluate import run_evaluators
from vlbeit.files import write_json
from vlbeit.launch import eval_loader
from vlbeit.types import Batch

STAGES = ("tokenizer", "mim", "mlm", "vl")


class Column(NamedTuple):
    """A task, or one of its heads."""

    title: str
    words: tuple[str, ...]
    metric: str


COLUMNS = (
    Column("classification", ("task=classification",), "top1"),
    Column("segmentation-upernet", ("task=segmentation", "task.head=upernet"), "miou"),
    Column("segmentation-setr_pup", ("task=segmentation", "task.head=setr_pup"), "miou"),
    Column("detection", ("task=detection",), "map_50"),
    Column("probe", ("task=probe",), "linear"),
)


class Blind(nn.Module):
    """Answers without looking: the commonest class of the validation split, or the boxes of the picture before."""

    def __init__(self, commonest: int, classes: int) -> None:
        super().__init__()
        self.commonest, self.classes = commonest, classes
        self.unused = nn.Parameter(torch.zeros(()))  # evaluation asks a module for its type of number
        self.boxes: dict[str, Tensor] = {name: torch.zeros(0) for name in ("boxes", "scores", "labels")}

    def class_logits(self, batch: Batch) -> Tensor:
        """The commonest class of every picture."""
        logits = torch.zeros(len(batch["sample_id"]), self.classes)
        logits[:, self.commonest] = 1.0
        return logits

    def predict(self, batch: Batch) -> list[Any]:
        """The commonest class of every pixel, or boxes."""
        if "truth" not in batch:
            return [torch.full_like(label, self.commonest) for label in batch["original_segments"]]
        return [self._next(truth) for truth in batch["truth"]]

    def _next(self, truth: dict[str, Any]) -> dict[str, Tensor]:
        given = self.boxes
        labels = torch.tensor(truth["labels"], dtype=torch.long)
        self.boxes = {
            "boxes": torch.tensor(truth["boxes"]).reshape(-1, 4),
            "scores": torch.ones(len(labels)),
            "labels": labels,
        }
        return given


def chance(path: str, metric: str) -> float:
    """What answering blindly scores on the validation split of a trained run, by the evaluator of its task."""
    run = inference.Trained(path)
    records = open_records(run.config.data, run.recipe.kind, run.config.data.val_split)
    evaluators = run.recipe.evaluators(records, run.meta)
    loader = eval_loader(run.config, run.recipe.data(records, run.meta, train=False))
    blind = Blind(_commonest(loader), len(run.meta["classes"]))
    return run_evaluators(blind, loader, evaluators, make_accelerator("cpu", "fp32"), len(records))[metric]


def _commonest(loader: Any) -> int:
    counts: Counter[int] = Counter()
    for batch in loader:
        for label in batch.get("original_segments", [batch["label"]] if "label" in batch else []):
            counts.update(label.flatten().tolist())
    counts.pop(IGNORED, None)
    return counts.most_common(1)[0][0] if counts else 0


def one_seed(seed: int, folder: Path, words: list[str]) -> dict[str, dict[str, float]]:
    """Train the chain and every cell: row -> column -> percent."""
    common = [f"seed={seed}", *words]
    for stage, before in zip(STAGES, (None, None, "mim", "mlm"), strict=True):
        special = [f"stage.tokenizer={folder}/tokenizer"] if stage == "mim" else []
        special += [f"init={folder}/{before}"] if before else []
        train([f"stage={stage}", f"run={folder}/{stage}", *special, *common])
    starts = {"mim": f"init={folder}/mim", "vl": f"init={folder}/vl", "from scratch": "init=none"}
    found: dict[str, dict[str, float]] = {name: {} for name in (*starts, "chance")}
    for column in COLUMNS:
        for name, init in starts.items():
            tower = "vl" if name == "vl" else "mim"
            run = f"{folder}/{column.title}-{name.replace(' ', '-')}"
            train([f"stage={tower}", *column.words, init, f"run={run}", *common])
            numbers = json.loads(Path(run, "evaluation.json").read_text())
            found[name][column.title] = numbers[column.metric]
        found["chance"][column.title] = numbers["majority"] if "majority" in numbers else chance(run, column.metric)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/image-tasks"))
    parser.add_argument("words", nargs="*", help="key=value words for every run, such as data.root=DIR")
    options = parser.parse_args()
    seeds = [one_seed(seed, options.out / f"seed-{seed}", options.words) for seed in range(options.seeds)]
    write_json(options.out / "image_tasks.json", seeds, indent=1)
    rows = []
    for name in seeds[0]:
        cells = [_cell([seed[name][column.title] for seed in seeds]) for column in COLUMNS]
        rows.append((name, *cells))
    table.show(("start", *(f"{column.title} {column.metric}" for column in COLUMNS)), rows)
    print(f"wrote {options.out / 'image_tasks.json'}")


def _cell(values: list[float]) -> str:
    """The mean over seeds, and the deviation where there are several."""
    spread = f" (sd {stdev(values):.2f})" if len(values) > 1 and not math.isnan(fmean(values)) else ""
    return f"{fmean(values):.2f}{spread}"


if __name__ == "__main__":
    main()
