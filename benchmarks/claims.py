"""What BEiT claims, each in miniature on the built-in data: a table, plots, intervals over seeds.

    python benchmarks/claims.py --seeds 3 --out runs/claims
    python benchmarks/claims.py --only convergence labels --seeds 1

| claim | asked of | the paper (2106.08254) |
|---|---|---|
| convergence | accuracy per epoch of fine-tuning, from scratch and from masked image modeling | fewer epochs suffice |
| labels | accuracy with 1, 10 and 100 % of the labels | fewer labels suffice |
| sizes | four model sizes on fixed data, supervised alone and after masked image modeling | large models gain more |
| length | accuracy against the steps of pre-training | longer is better |
| masks | blocks against single random patches | blocks are better |
| targets | visual tokens against pixels | tokens are better |

Each comparison is made at equal fine-tuning steps, and at equal total compute: the run from scratch is trained on until
it has had the floating-point operations of tokenizer, pre-training and fine-tuning together, and so are pixels beside
tokens. Both sides have the best of the same four settings, found by `--choose` on a seed that is not reported. Accuracy
is that of the last step on 1,000 validation pictures, the interval a 95 % t interval over seeds. Drawn shapes: nothing
here is evidence about natural images. A finished run is not repeated, so that an interrupted benchmark goes on.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from random import Random

from claims_command import claims_parser, run_claims
from claims_report import SCRATCH, SCRATCH_EQUAL, Point
from training import evaluations, flops_of_step, train

from vlbeit import table
from vlbeit.config import RunConfig
from vlbeit.data_prep.scenes import prepare

EPOCHS = 8  # of fine-tuning on all labels; other shares take the same number of steps
MIM_STEPS = 200
LENGTHS = (50, 200, 800)
SHARES = (0.01, 0.1, 1.0)
SIZES = ((32, 2, 2), (64, 3, 4), (96, 4, 6), (128, 6, 8))  # width, depth, heads
TINY = 64  # the width of model=tiny, which every other claim is about
_RANDOM, _PIXELS = "stage.masking=random", "stage.target=pixels"
CHOICES = [
    (f"optim.lr={lr:g}", f"optim.layer_decay={decay:g}") for lr in (1e-3, 3e-3) for decay in (0.85, 1.0)
]  # of --choose
PRETRAINED = ("optim.lr=0.003", "optim.layer_decay=0.85")
FROM_SCRATCH = ("optim.lr=0.003", "optim.layer_decay=0.85")


class Lab:
    """The runs of one seed, made when they are asked for."""

    def __init__(self, seed: int, folder: Path, root: Path) -> None:
        self.seed, self.folder, self.root = seed, folder / f"seed-{seed}", root

    @cached_property
    def tokenizer(self) -> RunConfig:
        """The image tokenizer that every pre-training with tokens shares."""
        return train(["stage=tokenizer", f"run={self.folder}/tokenizer", *self._scenes()])

    def pretrain(self, name: str, *words: str, steps: int = MIM_STEPS) -> RunConfig:
        """Masked image modeling: 40 % of 6 x 6 patches, exactly; evaluated at its end alone."""
        tokens = _PIXELS not in words
        target = [f"stage.tokenizer={self.tokenizer.run}"] if tokens else []
        fixed = ["stage.mask_ratio=0.4", "stage.exact_count=true", f"steps={steps}", f"engine.evaluate_every={steps}"]
        return train(
            ["stage=mim", f"run={self.folder}/{name}", "model.patch_size=8", *fixed, *target, *self._scenes(), *words]
        )

    def tune(self, name: str, init: str, *words: str, share: float = 1.0, steps: int | None = None) -> RunConfig:
        """Fine-tuning on the labels, or a share of them, for the steps of `EPOCHS` on all of them."""
        pictures = len(list((self.root / "imagefolder" / "train").glob("*/*.jpg")))
        epoch = max(1, pictures // 32)
        steps = EPOCHS * epoch if steps is None else steps
        data = self.root / "imagefolder" if share == 1.0 else self._labelled(share)
        return train(
            [
                *("stage=mim", "task=classification", "data=imagefolder", f"data.root={data}", f"init={init}"),
                *("model=tiny", "model.patch_size=8", "recipe=scenes_classification", f"seed={self.seed}"),
                *(FROM_SCRATCH if init == "none" else PRETRAINED),
                *(f"run={self.folder}/{name}", f"steps={steps}", f"engine.evaluate_every={epoch}", *words),
            ]
        )

    def pairs(self, claim: str, x: float, pretrained: RunConfig, *words: str, share: float = 1.0) -> Iterator[Point]:
        """Three points: after pre-training, from scratch at equal steps, from scratch at equal compute."""
        size = "-".join([f"{share:g}", *(word.partition("=")[2] for word in words)])
        tuned = self.tune(f"tune-{Path(pretrained.run).name}-{size}", pretrained.run, *words, share=share)
        scratch = self.tune(f"scratch-{size}", "none", *words, share=share)
        assert tuned.steps is not None and scratch.steps is not None
        step = flops_of_step(tuned)
        equal = tuned.steps + round(self.cost(pretrained) / step)
        longer = self.tune(f"scratch-{size}-{equal}", "none", *words, share=share, steps=equal)
        yield Point(claim, "after pre-training", x, self.seed, top1(tuned), tuned.steps)
        yield Point(claim, SCRATCH, x, self.seed, top1(scratch), scratch.steps)
        yield Point(claim, SCRATCH_EQUAL, x, self.seed, top1(longer), equal)

    def cost(self, pretrained: RunConfig) -> int:
        """Floating-point operations of pre-training, its tokenizer included."""
        runs = [pretrained] if pretrained.stage.target == "pixels" else [pretrained, self.tokenizer]
        return sum((run.steps or 0) * flops_of_step(run) for run in runs)

    def _scenes(self) -> list[str]:
        return [f"data.root={self.root}", f"seed={self.seed}"]

    def _labelled(self, share: float) -> Path:
        """A folder of classes with a share of the training pictures, the same of each class, as links."""
        out, source = self.folder / f"labels-{share:g}", self.root.absolute() / "imagefolder"
        if not out.is_dir():
            made = out.with_name(f".{out.name}")
            shutil.rmtree(made, ignore_errors=True)
            for folder in sorted((source / "train").iterdir()):
                pictures = sorted(folder.iterdir())
                chosen = Random(f"{self.seed}:{folder.name}").sample(pictures, max(1, round(share * len(pictures))))
                (made / "train" / folder.name).mkdir(parents=True, exist_ok=True)
                for picture in chosen:
                    (made / "train" / folder.name / picture.name).symlink_to(picture)
            (made / "val").symlink_to(source / "val")
            made.rename(out)
        return out


def convergence(lab: Lab) -> Iterator[Point]:
    """Accuracy after each epoch; the run at equal compute is in `labels` at 100 %."""
    pretrained = lab.pretrain("mim")
    for arm, run in (
        ("after pre-training", lab.tune("tune-mim-1", pretrained.run)),
        (SCRATCH, lab.tune("scratch-1", "none")),
    ):
        for epoch, value in enumerate(accuracies(run), 1):
            yield Point("convergence", arm, epoch, lab.seed, value, run.steps or 0)


def labels(lab: Lab) -> Iterator[Point]:
    """Accuracy against the share of labels."""
    pretrained = lab.pretrain("mim")
    for share in SHARES:
        yield from lab.pairs("labels", 100 * share, pretrained, share=share)


def sizes(lab: Lab) -> Iterator[Point]:
    """Accuracy against the width, at fixed data."""
    for width, depth, heads in SIZES:
        words = (f"model.embed_dim={width}", f"model.depth={depth}", f"model.num_heads={heads}")
        if width == TINY:
            yield from lab.pairs("sizes", width, lab.pretrain("mim"))
        else:
            yield from lab.pairs("sizes", width, lab.pretrain(f"mim-{width}x{depth}", *words), *words)


def length(lab: Lab) -> Iterator[Point]:
    """Accuracy against the steps of pre-training."""
    for steps in LENGTHS:
        name = "mim" if steps == MIM_STEPS else f"mim-{steps}"
        yield from lab.pairs("length", steps, lab.pretrain(name, steps=steps))


def masks(lab: Lab) -> Iterator[Point]:
    """Blocks against random patches: the same number is masked, the same compute is spent."""
    yield from _sides(lab, "masks", {"blockwise": lab.pretrain("mim"), "random": lab.pretrain("mim-random", _RANDOM)})


def targets(lab: Lab) -> Iterator[Point]:
    """Visual tokens against pixels at equal steps, and pixels trained on for what the tokenizer costs."""
    tokens, pixels = lab.pretrain("mim"), lab.pretrain("mim-pixels", _PIXELS)
    equal = round(lab.cost(tokens) / flops_of_step(pixels))
    longer = lab.pretrain(f"mim-pixels-{equal}", _PIXELS, steps=equal)
    yield from _sides(lab, "targets", {"tokens": tokens, "pixels": pixels, "pixels, equal compute": longer})


def _sides(lab: Lab, claim: str, pretrained: dict[str, RunConfig]) -> Iterator[Point]:
    """Each kind of pre-training, fine-tuned alike."""
    for arm, run in pretrained.items():
        tuned = lab.tune(f"tune-{Path(run.run).name}-1", run.run)
        yield Point(claim, arm, 0, lab.seed, top1(tuned), tuned.steps or 0)


def choose(lab: Lab) -> None:
    """Print what each side reaches with each of `CHOICES`."""
    pretrained = lab.pretrain("mim")
    rows = []
    for words in CHOICES:
        name = "-".join(word.partition("=")[2] for word in words)
        sides = [lab.tune(f"choose-{Path(init).name}-{name}", init, *words) for init in (pretrained.run, "none")]
        rows.append((*words, *(f"{top1(run):.1f}" for run in sides)))
    table.show(("lr", "layer decay", "after pre-training", SCRATCH), rows)


CLAIMS: dict[str, Callable[[Lab], Iterator[Point]]] = {
    claim.__name__: claim for claim in (convergence, labels, sizes, length, masks, targets)
}


def accuracies(run: RunConfig) -> list[float]:
    """Top-1 at every evaluation of a run, in order."""
    return [numbers["top1"] for numbers in evaluations(run.run)]


def top1(run: RunConfig) -> float:
    """Top-1 at the last step, not the best one."""
    return accuracies(run)[-1]


def main() -> None:
    options_of = claims_parser(__doc__, "runs/claims", CLAIMS)
    options_of.add_argument("--choose", action="store_true", help="try the settings of both sides, and stop")
    options = options_of.parse_args()
    if options.choose:
        prepare(options.root, images=10000, report=print)
        choose(Lab(options.first_seed, options.out, options.root))
    else:
        run_claims(options, CLAIMS, Lab)


if __name__ == "__main__":
    main()
