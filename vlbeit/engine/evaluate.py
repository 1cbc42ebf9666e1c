"""Run evaluators over a split: the same for the evaluation clock of training and for `vlbeit evaluate`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import nn

from vlbeit import dist
from vlbeit.engine.device import batch_dtype, to_device
from vlbeit.engine.interrupt import broken_off_together
from vlbeit.engine.progress import counting
from vlbeit.engine.randomness import preserved_generators, seed_generators
from vlbeit.types import Batch, Evaluator


def run_evaluators(
    objective: nn.Module,
    loader: Iterable[Batch],
    evaluators: Mapping[str, Evaluator],
    accelerator: Accelerator,
    samples: int,
) -> dict[str, float]:
    """Show every batch to every evaluator and merge their numbers; tell how far it is where that takes long.

    The loader gives each of `samples` once over all processes; `unreadable` counts those whose image it had to replace.
    `compute` runs on every process and merges what the others saw by itself (`vlbeit.dist.gather_objects`). Two
    evaluators must not give the same name. Raises Stopped where training evaluates and is asked to stop
    while it reads batches: `compute`, in which processes exchange, runs to its end.
    """
    objective.to(accelerator.device)
    unreadable = 0
    with evaluation_mode(objective), accelerator.autocast(), counting("evaluated", samples) as add:
        with broken_off_together(accelerator.device):
            for batch in loader:
                unreadable += len(batch.get("bad", ()))
                on_device = to_device(batch, accelerator.device, batch_dtype(objective))
                for evaluator in evaluators.values():
                    evaluator.update(objective, on_device)
                add(len(batch["sample_id"]))
        results: dict[str, float] = {}
        for name, evaluator in evaluators.items():
            numbers = evaluator.compute()
            if doubled := sorted(results.keys() & numbers.keys()):
                raise ValueError(f"evaluator {name} gives {', '.join(doubled)}, which another one gave already")
            results |= numbers
    unreadable = sum(dist.gather_objects(unreadable))
    return results | ({"unreadable": unreadable} if unreadable else {})


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """No gradient, modules in evaluation mode, a fixed seed; all of it put back, submodule by submodule."""
    training = {submodule: submodule.training for submodule in module.modules()}
    with torch.no_grad(), preserved_generators():
        seed_generators("evaluation")
        module.eval()
        try:
            yield
        finally:
            for submodule, mode in training.items():
                submodule.training = mode
