"""What pre-training is worth on the built-in data: VQA through tokenizer, mim, mlm and vl against VQA from scratch.

    python benchmarks/vqa_gain.py --seeds 3 --out runs/gain
    python benchmarks/vqa_gain.py --seeds 3 --out runs/gain --equal-compute

Both fine-tune for the same steps with the same vocabulary of answers. With --equal-compute a third run from scratch
gets as many steps as the whole chain costs, counted in floating-point operations of one training step each (torch's
FlopCounterMode), so the numbers do not hang on the machine. A finished run is not repeated. Built-in data are drawn
shapes: this says nothing about natural images.
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
    parser.add_argument("--equal-compute", action="store_true", help="a third run from scratch, as long as all stages")
    parser.add_argument("words", nargs="*", help="key=value words for every run, such as data.root=DIR")
    options = parser.parse_args()
    sides = {"scratch": False} | ({"scratch-equal": True} if options.equal_compute else {})
    rows = [one_seed(seed, options.out / f"seed-{seed}", sides, options.words) for seed in range(options.seeds)]
    table.show(("seed", "blind", "chain", *(part for side in sides for part in (side, "difference"))), rows)


def one_seed(seed: int, folder: Path, sides: dict[str, bool], words: list[str]) -> list[str]:
    """Train all runs of one seed and compare them question by question; a side is whether it is as long as all."""
    common = [f"seed={seed}", *words]
    flops = 0
    for stage, before in zip(STAGES, (None, None, "mim", "mlm"), strict=True):
        special = [f"stage.tokenizer={folder}/tokenizer"] if stage == "mim" else []
        special += [f"init={folder}/{before}"] if before else []
        config = train([f"stage={stage}", f"run={folder}/{stage}", *special, *common])
        flops += config.steps * flops_of_step(config)
    vqa = ["task=vqa", "task.answers=own", *common]
    chain = train([*vqa, f"run={folder}/vqa", f"init={folder}/vl"])
    scores = score(folder / "vqa")
    numbers = json.loads((folder / "vqa" / "evaluation.json").read_text())
    row = [str(seed), f"{numbers['blind']:.2f}", f"{mean(scores):.2f}"]
    for side, is_equal in sides.items():
        more = round(flops / flops_of_step(chain)) if is_equal else 0
        steps = [f"steps={chain.steps + more}"] if is_equal else []
        train([*vqa, "init=none", f"text.tokenizer={folder}/mlm", f"run={folder}/{side}", *steps])
        of_side = score(folder / side)
        difference, half = paired_difference(scores, of_side)
        row += [f"{mean(of_side):.2f}" + f" ({chain.steps + more} steps)" * is_equal, f"{difference:+.2f} +-{half:.2f}"]
    return row


def score(path: Path) -> dict[int, float]:
    """Question id -> score in percent."""
    inference.evaluate(str(path), ["task.controls=false"])
    return {row["question_id"]: 100 * row["score"] for row in json.loads((path / "vqa_details.json").read_text())}


def mean(scores: dict[int, float]) -> float:
    return sum(scores.values()) / len(scores)


if __name__ == "__main__":
    main()
