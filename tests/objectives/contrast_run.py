"""A tiny vision-language objective on eight given pairs, and what two gloo processes make of it.

Also a script: `python contrast_run.py FOLDER PORT` is the two processes, forked once everything is imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor

from vlbeit import dist
from vlbeit.engine.callbacks import Callbacks
from vlbeit.engine.device import make_accelerator
from vlbeit.engine.folder import RunFolder
from vlbeit.engine.loop import Engine
from vlbeit.engine.plan import FitPlan
from vlbeit.engine.sharded import whole
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.heads import Compared
from vlbeit.models.spec import EncoderSpec
from vlbeit.objectives.contrastive import ContrastRule, contrast, others_of_picture, own_columns
from vlbeit.objectives.global_contrast import GlobalContrast
from vlbeit.objectives.matching import choose, hardest
from vlbeit.objectives.vl import VLObjective
from vlbeit.stages.vl import vl_heads
from vlbeit.types import Batch

PAIRS, WORDS = 8, 7
PICTURES = (3, 9, 9, 4, 3, 5, 6, 9)  # captions of one picture lie in different micro-batches and processes
RULES = {
    "softmax": ContrastRule(),
    "sigmoid": ContrastRule("sigmoid"),
    "published": ContrastRule("softmax", "published", True),
}


def make_objective(
    rule: ContrastRule, *, cached: bool = False, drop_path: float = 0.0, dtype: torch.dtype = torch.float64
) -> VLObjective:
    torch.manual_seed(0)
    parts = {"experts": ("image", "text"), "fused_layers": 1, "vocab_size": 50, "text_positions": 12}
    encoder = MoMEEncoder(EncoderSpec(32, 3, 2, image_size=(32, 32), drop_path=drop_path, **parts))
    objective = VLObjective(encoder, vl_heads(32, 50, rule.loss), 0.25, GlobalContrast(rule, hardest, cached))
    with torch.no_grad():  # away from the beginning, where everything is alike
        for name, parameter in objective.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
            if name.endswith("logit_bias"):
                parameter.fill_(-2.0)
    return objective.to(dtype)


def batch(start: int, stop: int, step: int = 0, dtype: torch.dtype = torch.float64) -> Batch:
    """Pairs start to stop of a step; texts are as wide as the longest of them."""
    generator = torch.Generator().manual_seed(step)
    image = torch.randn(PAIRS, 3, 32, 32, generator=generator, dtype=torch.float64)
    ids = torch.randint(5, 50, (PAIRS, WORDS), generator=generator)
    keep = torch.arange(WORDS) < torch.tensor([4, 7, 5, 4, 3, 6, 4, 5])[:, None]
    labels = torch.where((torch.rand(PAIRS, WORDS, generator=generator) < 0.4) & keep, ids, -100)
    labels[:, 1] = ids[:, 1]
    rows = slice(start, stop)
    width = int(keep[rows].sum(1).max())
    return {
        "image": image[rows].to(dtype),
        "picture": torch.tensor(PICTURES)[rows],
        "text_ids": (ids * keep)[rows, :width],
        "text_keep": keep[rows, :width],
        "mlm_ids": torch.where(labels == -100, ids * keep, 4)[rows, :width],
        "mlm_labels": labels[rows, :width],
        "sample_id": [f"{step}-{row}" for row in range(start, stop)],
        "bad": [],
    }


class Pairs:
    """Step t: the eight pairs of seed t, shared among the processes, in micro-batches."""

    def __init__(self, micro: int, dtype: torch.dtype) -> None:
        self.micro, self.dtype = micro, dtype

    def steps(self, start: int, stop: int) -> Iterator[list[Batch]]:
        own = PAIRS // dist.world_size()
        first = dist.rank() * own
        for step in range(start, stop):
            yield [batch(row, row + self.micro, step, self.dtype) for row in range(first, first + own, self.micro)]


def trained(rule: ContrastRule, micro: int, path: Path, *, cached: bool, steps: int = 2) -> dict[str, Any]:
    """Weights and metrics of a few steps of plain gradient descent in double precision."""
    objective = make_objective(rule, cached=cached)
    run_engine(objective, micro, path, steps)
    log = path / "metrics.jsonl"  # of the main process
    state = objective.state_dict()
    return {
        "weights": {name: whole(value) for name, value in state.items()},
        "sharded": any(isinstance(value, DTensor) for value in state.values()),
        "metrics": log.read_text() if dist.is_main() else "",
    }


def run_engine(objective: VLObjective, micro: int, path: Path, steps: int, precision: str = "fp64") -> None:
    plan = FitPlan(
        steps=steps,
        schedule=lambda step: 0.03,
        precision=precision,
        log_every=1,
        save_every=steps,
        evaluate_every=steps,
    )
    optimizer = torch.optim.SGD([{"params": list(objective.parameters()), "lr_scale": 1.0}], lr=0.03)
    accelerator = make_accelerator("cpu", precision, (), path)
    Engine(
        objective,
        optimizer,
        Pairs(micro, next(objective.parameters()).dtype),
        plan,
        accelerator,
        RunFolder(path),
        Callbacks(),
    ).fit()


def step_of(objective: VLObjective, given: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and gradients of one step over all processes, as the engine and DistributedDataParallel make them."""
    counts = {name: dist.sum_over_ranks(n.double()) / dist.world_size() for name, n in objective.counts(given).items()}
    losses = objective(given, counts).losses
    torch.stack(list(losses.values())).sum().backward()
    mean = {name: dist.sum_over_ranks(loss) / dist.world_size() for name, loss in losses.items()}
    return mean, {n: dist.sum_over_ranks(p.grad) / dist.world_size() for n, p in objective.named_parameters()}


def unit_rows() -> tuple[Tensor, Tensor, Tensor]:
    """Unscaled texts and pictures, and the scale."""
    generator = torch.Generator().manual_seed(0)
    return *torch.randn(2, 6, 8, generator=generator).unbind(), torch.tensor(9.0)


def compared(losses: Any, start: int, stop: int) -> dict[str, Tensor]:
    """Loss and gradients of rows start to stop under a loss of (texts, pictures, scale, bias)."""
    text, image, scale = unit_rows()
    leaves = [text[start:stop].clone(), image[start:stop].clone(), scale.clone(), torch.tensor(-3.0)]
    text, image, scale, bias = (leaf.requires_grad_() for leaf in leaves)
    loss = losses(F.normalize(text, dim=-1), F.normalize(image, dim=-1), scale, bias)
    loss.backward()
    names = ("text", "image", "scale", "bias")
    return {"loss": loss.detach()} | {
        name: torch.zeros(()) if leaf.grad is None else leaf.grad for name, leaf in zip(names, leaves, strict=True)
    }


def ours(rule: ContrastRule) -> Any:
    def loss(text: Tensor, image: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return contrast(Compared(text, image, scale, bias if rule.loss == "sigmoid" else None), rule)[0].mean()

    return loss


def open_clips() -> dict[str, Any]:
    """The losses of open_clip: softmax with each way to gather, sigmoid with each way to exchange."""
    places = {"rank": dist.rank(), "world_size": dist.world_size(), "cache_labels": False}

    def clip(**ways: bool) -> Any:
        module = open_clip.loss.ClipLoss(**ways, **places)
        return lambda text, image, scale, bias: module(image, text, scale)

    def siglip(way: str) -> Any:
        module = open_clip.loss.SigLipLoss(dist_impl=way, **places)
        return lambda text, image, scale, bias: module(image, text, scale, bias)

    return {
        "clip local": clip(local_loss=True, gather_with_grad=True),
        "clip whole": clip(local_loss=False, gather_with_grad=True),
        "clip published": clip(local_loss=False, gather_with_grad=False),
        "siglip bidir": siglip("bidir"),
        "siglip gather": siglip("gather"),
    }


def chosen_columns(start: int, stop: int) -> Tensor:
    """The hardest pictures and texts of rows start to stop, other captions of a picture left out."""
    text, image, scale = unit_rows()
    rows = Compared(F.normalize(text[start:stop], dim=-1), F.normalize(image[start:stop], dim=-1), scale)
    own, picture = own_columns(stop - start, text.device), torch.tensor(PICTURES)[start:stop]
    left_out = others_of_picture(picture, dist.gather(picture), own)
    return torch.stack(choose(contrast(rows, ContrastRule(), left_out)[1], own, left_out, hardest)[:2])


def one_of_two(folder: Path) -> None:
    accelerator = make_accelerator("cpu", "fp32")
    assert accelerator.num_processes == 2
    rank = dist.rank()
    rows = (3 * rank, 3 * rank + 3)
    found: dict[str, Any] = {name: compared(loss, *rows) for name, loss in open_clips().items()}
    found |= {name: compared(ours(rule), *rows) for name, rule in RULES.items()}
    found["columns"] = chosen_columns(*rows)
    for name, rule in RULES.items():
        given = batch(4 * rank, 4 * rank + 4, dtype=torch.float32)
        found[f"step {name}"] = step_of(make_objective(rule, dtype=torch.float32), given)
    given = batch(0, 2, dtype=torch.float32) | {"picture": torch.tensor([1, 1])}
    found["one picture"] = step_of(make_objective(ContrastRule(), dtype=torch.float32), given)
    wanted = torch.tensor([[5, 0, 0], [1, 1, 4]])[rank]
    table = torch.arange(18.0).view(6, 3)[3 * rank : 3 * rank + 3]
    taken: list[Tensor] = []
    found["fetched"] = dist.fetch_rows(lambda indices: taken.append(indices) or table[indices], 3, wanted)
    found["sent"] = taken[0]
    found["fetched of one"] = dist.fetch_rows(table.__getitem__, 3, torch.zeros(2, dtype=torch.long))
    for name, rule in RULES.items():
        found[f"cached {name}"] = trained(rule, 2, folder / f"cached-{name}", cached=True)
    found["large published"] = trained(RULES["published"], 4, folder / "large", cached=False)
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    found["cached sharded"] = trained(RULES["softmax"], 2, folder / "sharded", cached=True)
    torch.save(found, folder / f"rank{rank}.pt")
    dist.barrier()
    dist.leave()


def two_processes(folder: Path, port: str) -> int:
    """Exit code: 0 where both processes ended well."""
    children = []
    for rank in "01":
        child = os.fork()
        if child == 0:
            os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            one_of_two(folder)
            os._exit(0)
        children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(two_processes(Path(sys.argv[1]), sys.argv[2]))
