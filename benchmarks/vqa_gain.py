"""What pre-training is worth on the built-in data: VQA through tokenizer, mim, mlm and vl against VQA from scratch.

    python benchmarks/vqa_gain.py --seeds 3 --out runs/gain

Both fine-tune for the same steps with the same vocabulary of answers. A third run from scratch gets as many steps as
the whole chain costs, counted in floating-point operations of one training step each (torch's FlopCounterMode), so
the numbers do not hang on the machine. Built-in data are drawn shapes: this says nothing about natural images.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from training import flops_of_step, train

from vlbeit import inference, table
from vlbeit.demo import paired_difference

STAGES = ("tokenizer", "mim", "mlm", "vl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/gain"))
    parser.add_argument("words", nargs="*", help="key=value words for every run, such as data.root=DIR")
    options = parser.parse_args()
    rows = [one_seed(seed, options.out / f"seed-{seed}", options.words) for seed in range(options.seeds)]
    columns = ("seed", "blind", "chain", "scratch", "difference", "scratch, equal compute", "difference")
    table.show(columns, [[f"{cell:.2f}" if isinstance(cell, float) else cell for cell in row] for row in rows])


def one_seed(seed: int, folder: Path, words: list[str]) -> list[object]:
    """Train all runs of one seed (a finished one is not repeated) and compare them question by question."""
    common = [f"seed={seed}", *words]
    flops = 0
    for stage, before in zip(STAGES, (None, None, "mim", "mlm"), strict=True):
        special = [f"stage.tokenizer={folder}/tokenizer"] if stage == "mim" else []
        special += [f"init={folder}/{before}"] if before else []
        config = train([f"stage={stage}", f"run={folder}/{stage}", *special, *common])
        flops += config.steps * flops_of_step(config)
    vqa = ["task=vqa", "task.answers=own", *common]
    chain = train([*vqa, f"run={folder}/vqa", f"init={folder}/vl"])
    step = flops_of_step(chain)
    equal = chain.steps + round(flops / step)
    scratch = [*vqa, "init=none", f"text.tokenizer={folder}/mlm"]
    train([*scratch, f"run={folder}/scratch"])
    train([*scratch, f"run={folder}/scratch-equal", f"steps={equal}"])
    scores = {name: score(folder / name) for name in ("vqa", "scratch", "scratch-equal")}
    numbers = json.loads((folder / "vqa" / "evaluation.json").read_text())
    row: list[object] = [seed, float(numbers["blind"]), mean(scores["vqa"])]
    for name in ("scratch", "scratch-equal"):
        difference, half = paired_difference(scores["vqa"], scores[name])
        note = "" if name == "scratch" else f" ({equal} steps)"
        row += [f"{mean(scores[name]):.2f}{note}", f"{difference:+.2f} +-{half:.2f}"]
    return row


def score(path: Path) -> dict[int, float]:
    """Question id -> score in percent."""
    inference.evaluate(str(path), ["task.controls=false"])
    return {row["question_id"]: 100 * row["score"] for row in json.loads((path / "vqa_details.json").read_text())}


def mean(scores: dict[int, float]) -> float:
    return sum(scores.values()) / len(scores)


if __name__ == "__main__":
    main()
