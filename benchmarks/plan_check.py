"""`vlbeit plan` against what is measured: parameters, FLOPs, tensors kept for the backward pass, optimizer state.

    OMP_NUM_THREADS=1 python benchmarks/plan_check.py --models tiny base --stages mim mlm vl

The plan traces tensors without values; here the same objective is built, filled and run on the CPU, on pictures and
texts of the same size: FLOPs by FlopCounterMode, memory by saved-tensor hooks, state by a step of the optimizer.
"""

from __future__ import annotations

import argparse
import time

import torch

from vlbeit import compose, table
from vlbeit.engine.optim import build_optimizer
from vlbeit.planning import planner, trace

SAMPLES = 2
WORDS = {
    "mim": ["stage=mim"],
    "mlm": ["stage=mlm"],
    "packed": ["stage=mlm", "stage.pack=true"],
    "vl": ["stage=vl"],
    "classification": ["stage=mim", "task=classification"],
    "vqa": ["stage=vl", "task=vqa"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=["tiny"])
    parser.add_argument("--stages", nargs="+", default=list(WORDS), choices=WORDS)
    rows = []
    options = parser.parse_args()
    for model in options.models:
        for name in options.stages:
            words = [*WORDS[name], f"model={model}", f"global_batch_size={SAMPLES}", f"micro_batch_size={SAMPLES}"]
            words += [] if model == "tiny" else ["data.image_size=224", "text.max_length=40", "text.positions=196"]
            begun = time.process_time()
            found = planner.plan(words, planner.Machine())
            planned = time.process_time() - begun
            rows += [(model, name, *row) for row in compared(found, measured(words))]
            print(f"{model} {name}: planned in {planned:.1f} s of the processor", flush=True)
    table.show(("model", "run", "what", "planned", "measured", "deviation"), rows)


def measured(words: list[str]) -> dict[str, float]:
    """The same quantities, of an objective with values."""
    config = compose.compose(words).config
    with planner.without_data(config) as (config, recipe, meta, _):
        (batch, *_) = planner.batches_of(config, recipe, meta)
    torch.manual_seed(0)
    objective = recipe.objective(meta).train()
    for name in ("image", "pixels"):
        if name in batch:
            batch[name] = torch.rand_like(batch[name])
    optimizer = build_optimizer(recipe.param_groups(objective, config.optim), config.optim)
    cost = trace.measure(objective, batch)
    sum(objective(batch, objective.counts(batch)).losses.values()).backward()
    optimizer.step()
    state = (value for each in optimizer.state.values() for value in each.values() if value.ndim)
    return {
        "parameters": sum(parameter.numel() for parameter in objective.parameters()),
        "FLOPs forward, a sample": cost.forward / SAMPLES,
        "FLOPs backward, a sample": cost.backward / SAMPLES,
        "activations, bytes": cost.saved,
        "optimizer, bytes": sum(value.nbytes for value in state),
    }


def compared(found: planner.Plan, real: dict[str, float]) -> list[tuple[str, str, str, str]]:
    """What, planned, measured, deviation."""
    planned = {
        "parameters": found.parameters,
        "FLOPs forward, a sample": found.forward,
        "FLOPs backward, a sample": found.backward,
        "activations, bytes": found.memory.activations,
        "optimizer, bytes": found.memory.optimizer,
    }
    return [
        (what, f"{planned[what]:,.0f}", f"{value:,.0f}", f"{planned[what] / value - 1:+.3%}")
        for what, value in real.items()
    ]


if __name__ == "__main__":
    main()
