"""What pictures alone and words alone spare of pictures with words, and what experts are worth: on the built-in data.

    python benchmarks/vl_claims.py --seeds 3 --out runs/vl-claims
    python benchmarks/vl_claims.py --only experts --seeds 1

pairs     VQA accuracy and recall@1 against the share of image-text pairs, with and without masked image modeling and
          the text stage. What joins the two: "BEiT greatly reduces the reliance on image-text pairs".
experts   One feed-forward expert for each modality or one for all, with and without the text stage: VLMo's ablation
          (2111.02358, section 4).
staged    Recall@1 of retrieval after all stages against the steps that the one on pairs has, and from scratch.

Every arm has the same recipe, and the same number of steps in each of its stages, whatever the share of pairs; 1 % of
them is seen a hundred times as often. Then it is fine-tuned on all questions for VQA, and on its own pairs for
retrieval (by the contrast alone). The retrieval from scratch is also trained on until it has had the floating-point
operations of the whole chain (that with the shorter stage on pairs). A number is that of the last step, the interval a
95 % t interval over seeds. Drawn shapes: nothing here is evidence about natural images. A finished run is not repeated.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

from claims_command import claims_parser, run_claims
from claims_report import SCRATCH, SCRATCH_EQUAL, Point
from training import evaluations, flops_of_step, train

from vlbeit.config import RunConfig
from vlbeit.files import write_text

SHARES = (0.01, 0.03, 0.1, 0.3, 1.0)
VL_STEPS, VQA_STEPS, RETRIEVAL_STEPS = 200, 2000, 100
LONG_VL_STEPS = 1000  # of one arm: matching is learned after some 400


class Arm(NamedTuple):
    """What comes before the pairs."""

    mim: bool
    text: bool
    experts: str = "modality"

    @property
    def name(self) -> str:
        """Of its folders."""
        parts = [part for part, had in (("mim", self.mim), ("text", self.text)) if had] or ["neither"]
        return "-".join([*parts, *(["shared"] if self.experts == "shared" else [])])


ARMS = {
    "pictures and texts first": Arm(mim=True, text=True),
    "pictures first": Arm(mim=True, text=False),
    "texts first": Arm(mim=False, text=True),
    "neither": Arm(mim=False, text=False),
}
EXPERTS = {
    "experts, text stage": Arm(mim=True, text=True),
    "one for all, text stage": Arm(mim=True, text=True, experts="shared"),
    "experts, no text stage": Arm(mim=True, text=False),
    "one for all, no text stage": Arm(mim=True, text=False, experts="shared"),
}


class Lab:
    """The runs of one seed, made when they are asked for."""

    def __init__(self, seed: int, folder: Path, root: Path) -> None:
        self.seed, self.folder, self.root = seed, folder / f"seed-{seed}", root

    def mim(self) -> list[RunConfig]:
        """Tokenizer and masked image modeling: 40 % of 6 x 6 patches."""
        tokenizer = self._train("tokenizer", "stage=tokenizer")
        words = (f"stage.tokenizer={tokenizer.run}", "stage.mask_ratio=0.4", "stage.exact_count=true")
        return [tokenizer, self._train("mim", "stage=mim", *words)]

    def mlm(self, arm: Arm) -> list[RunConfig]:
        """The text stage, on a tower of pictures with frozen attention, or from scratch with all of it trained."""
        before = self.mim() if arm.mim else []
        init = before[-1].run if before else "none"
        words = ("stage=mlm", f"init={init}", f"model.experts={arm.experts}")
        return [*before, self._train(f"mlm-{arm.name}", *words)]

    def chain(self, arm: Arm, share: float = 1.0, steps: int = VL_STEPS) -> list[RunConfig]:
        """All runs up to and with the one on image-text pairs; every arm reads with the words of one text stage."""
        before = self.mlm(arm) if arm.text else self.mim() if arm.mim else []
        init = before[-1].run if before else "none"
        words = ("stage=vl", "recipe=scenes_vl", f"init={init}", *self._words_of(arm), *self._pairs(share))
        name = f"vl-{steps}-{arm.name}-{share:g}"
        return [*before, self._train(name, *words, f"steps={steps}", _last(steps))]

    def vqa(self, arm: Arm, share: float = 1.0) -> RunConfig:
        """Fine-tuned on all questions."""
        words = ("stage=vl", "task=vqa", "task.answers=own", "task.controls=false", f"model.experts={arm.experts}")
        start = f"init={self.chain(arm, share)[-1].run}"
        return self._train(f"vqa-{arm.name}-{share:g}", *words, start, f"steps={VQA_STEPS}", _last(VQA_STEPS))

    def retrieval(self, arm: Arm, share: float = 1.0, vl_steps: int = VL_STEPS) -> RunConfig:
        """Fine-tuned on the pairs that the arm has."""
        start = f"init={self.chain(arm, share, vl_steps)[-1].run}"
        return self._retrieval(f"retrieval-{vl_steps}-{arm.name}-{share:g}", arm, share, RETRIEVAL_STEPS, start)

    def retrieval_from_scratch(self, steps: int) -> RunConfig:
        """On all pairs."""
        arm = ARMS["neither"]
        return self._retrieval(f"retrieval-scratch-{steps}", arm, 1.0, steps, "init=none", *self._words_of(arm)[:1])

    def _retrieval(self, name: str, arm: Arm, share: float, steps: int, *words: str) -> RunConfig:
        kind = ("stage=vl", "task=retrieval", "recipe=scenes_retrieval", f"model.experts={arm.experts}")
        return self._train(name, *kind, *self._pairs(share), *words, f"steps={steps}", _last(steps))

    def _words_of(self, arm: Arm) -> tuple[str, str]:
        reader = self.mlm(arm if arm.text else ARMS["pictures and texts first"])[-1]
        return f"text.tokenizer={reader.run}", f"model.experts={arm.experts}"

    def _train(self, name: str, *words: str) -> RunConfig:
        """A run below the folder of this seed; on the scenes themselves where the words name no other data."""
        own = any(word.startswith("data=") for word in words)
        data = ["model=tiny"] if own else [f"data.root={self.root}"]
        patches = [] if "stage=tokenizer" in words else ["model.patch_size=8"]
        return train([*words, f"run={self.folder}/{name}", f"seed={self.seed}", *data, *patches])

    def _pairs(self, share: float) -> tuple[str, str]:
        """Data with a share of the training pictures, each with all its captions; smaller shares lie in larger ones."""
        out = self.folder / f"pairs-{share:g}"
        if not (out / "train.jsonl").exists():
            out.mkdir(parents=True, exist_ok=True)
            rows = {split: self._captions(split) for split in ("train", "val")}
            pictures = sorted({row["image"] for row in rows["train"]})
            Random(self.seed).shuffle(pictures)
            chosen = set(pictures[: max(2, round(share * len(pictures)))])
            rows["train"] = [row for row in rows["train"] if row["image"] in chosen]
            for split in ("val", "train"):
                write_text(out / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows[split]))
        return "data=pairs", f"data.root={out}"

    def _captions(self, split: str) -> list[dict[str, str]]:
        lines = (self.root / f"captions_{split}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        return [{**row, "image": str(self.root.absolute() / row["image"])} for row in rows]


def pairs(lab: Lab) -> Iterator[Point]:
    """Both numbers against the share of pairs."""
    for share in SHARES:
        for title, arm in ARMS.items():
            yield from _both("pairs", title, 100 * share, lab, arm, share)


def experts(lab: Lab) -> Iterator[Point]:
    """Both numbers with all pairs."""
    for title, arm in EXPERTS.items():
        yield from _both("experts", title, 0, lab, arm, 1.0)


def staged(lab: Lab) -> Iterator[Point]:
    """Retrieval after all stages, from scratch at equal steps, from scratch at the compute of the shorter chain."""
    arm, scratch = ARMS["pictures and texts first"], lab.retrieval_from_scratch(RETRIEVAL_STEPS)
    for steps in (VL_STEPS, LONG_VL_STEPS):
        tuned = lab.retrieval(arm, vl_steps=steps)
        for title, run in (("after all stages", tuned), (SCRATCH, scratch)):
            yield Point("staged", title, steps, lab.seed, recall(run), RETRIEVAL_STEPS)
    cost = sum((run.steps or 0) * flops_of_step(run) for run in lab.chain(arm))
    equal = RETRIEVAL_STEPS + round(cost / flops_of_step(scratch))
    yield Point("staged", SCRATCH_EQUAL, VL_STEPS, lab.seed, recall(lab.retrieval_from_scratch(equal)), equal)


def _both(claim: str, title: str, x: float, lab: Lab, arm: Arm, share: float) -> Iterator[Point]:
    vqa, retrieval = lab.vqa(arm, share), lab.retrieval(arm, share)
    yield Point(f"{claim}_vqa", title, x, lab.seed, last(vqa, "overall"), VQA_STEPS)
    yield Point(f"{claim}_recall", title, x, lab.seed, recall(retrieval), RETRIEVAL_STEPS)


def _last(steps: int) -> str:
    return f"engine.evaluate_every={steps}"


CLAIMS: dict[str, Callable[[Lab], Iterator[Point]]] = {claim.__name__: claim for claim in (staged, experts, pairs)}


def recall(run: RunConfig) -> float:
    """Mean of recall@1 from text to picture and from picture to text, in percent."""
    return (last(run, "txt_r1") + last(run, "img_r1")) / 2


def last(run: RunConfig, name: str) -> float:
    """A number of the last evaluation of a run."""
    return evaluations(run.run)[-1][name]


def main() -> None:
    run_claims(claims_parser(__doc__, "runs/vl-claims", CLAIMS).parse_args(), CLAIMS, Lab)


if __name__ == "__main__":
    main()
