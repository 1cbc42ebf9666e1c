"""Peak memory and time of a step of stage=vl: the whole batch at once, cached gradients, plain accumulation.

    OMP_NUM_THREADS=2 python benchmarks/contrast_memory.py --model tiny --size 48 --batch 256 --micro 32

Random pictures and texts, random weights, AdamW; each way in a process of its own, which takes `--steps` steps. Memory
is what the process held at most beyond what it held before the first step (on CUDA: allocated at most in all).
Seconds are of processor time on the CPU, which a busy machine disturbs less, else of the clock. `candidates`: among how
many pictures a text finds its own. The loss of the first step shows which ways compare the same: the first two, up to
what dropout draws (`--drop-path 0`: to the last digits).
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from vlbeit.config import DataConfig, OptimConfig, RunConfig, TextConfig
from vlbeit.engine.device import make_accelerator
from vlbeit.engine.loop import Engine
from vlbeit.engine.optim import build_optimizer
from vlbeit.engine.plan import FitPlan
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.presets import PRESETS
from vlbeit.models.spec import encoder_spec
from vlbeit.objectives.contrastive import ContrastRule
from vlbeit.objectives.global_contrast import GlobalContrast
from vlbeit.objectives.matching import hardest
from vlbeit.objectives.vl import VLObjective
from vlbeit.stages.vl import VLSettings, vl_heads
from vlbeit.types import Batch

WAYS = {"large batch": (False, True), "cached gradients": (True, False), "accumulation": (False, False)}
VOCABULARY, MASKED = 30522, 4  # words of bert-base-uncased; masked words of a text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="tiny", choices=sorted(PRESETS))
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--words", type=int, default=40)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--micro", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--drop-path", type=float, default=0.1)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--way", choices=sorted(WAYS), help="this one alone, in this process, as JSON")
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measured(options)))
        return
    print(f"{'way':18}{'at a time':>10}{'candidates':>12}{'memory MiB':>12}{'s/step':>8}{'first itc':>11}")
    for way in WAYS:
        command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
        found = json.loads(
            subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]
        )
        print(
            f"{way:18}{found['micro']:10}{found['candidates']:12}{found['memory']:12.0f}{found['seconds']:8.2f}"
            f"{found['itc']:11.5f}"
        )


def measured(options: argparse.Namespace) -> dict[str, float]:
    """One way: memory in MiB, seconds of a step (median but for the first), contrastive loss of the first step."""
    cached, at_once = WAYS[options.way]
    micro = options.batch if at_once else options.micro
    engine = make_engine(options, cached)
    before, seconds, losses = held(), [], []
    for batches in itertools.islice(steps(options, micro), options.steps):
        start = clock()
        engine.train_step(batches)
        seconds.append(clock() - start)
        losses.append(engine.meter.losses["itc"])
        engine.meter.restart(engine.state.samples)
    later = sorted(seconds[1:] or seconds)
    return {
        "micro": micro,
        "candidates": micro if options.way == "accumulation" else options.batch,
        "memory": peak() - before,
        "seconds": later[len(later) // 2],
        "itc": losses[0],
    }


def make_engine(options: argparse.Namespace, cached: bool) -> Engine:
    config = RunConfig(
        model=replace(PRESETS[options.model], drop_path=options.drop_path),
        data=DataConfig(image_size=options.size),
        text=TextConfig(max_length=options.words, positions=options.words),
        stage=VLSettings(name="vl"),
    )
    torch.manual_seed(0)
    spec = encoder_spec(config, experts=("image", "text"), fused=True, vocab_size=VOCABULARY, meta={})
    contrast = GlobalContrast(ContrastRule(), hardest, cached)
    objective = VLObjective(MoMEEncoder(spec), vl_heads(spec.embed_dim, VOCABULARY), contrast=contrast).train()
    optimizer = build_optimizer(
        [{"params": list(objective.parameters()), "weight_decay": 0.01, "lr_scale": 1.0}], OptimConfig(lr=1e-4)
    )
    plan = FitPlan(steps=options.steps, schedule=lambda step: 1e-4, precision=options.precision)
    return Engine(objective, optimizer, None, plan, make_accelerator(options.device, options.precision))


def steps(options: argparse.Namespace, micro: int) -> Iterator[list[Batch]]:
    """Every step the same pairs, cut into micro-batches."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(options.batch, 3, options.size, options.size, generator=generator)
    ids = torch.randint(5, VOCABULARY, (options.batch, options.words), generator=generator)
    while True:
        yield [
            {
                "image": image[start : start + micro],
                "picture": torch.arange(start, start + micro),
                "text_ids": ids[start : start + micro],
                "text_keep": torch.ones(micro, options.words, dtype=torch.bool),
                "mlm_ids": ids[start : start + micro],
                "mlm_labels": torch.where(torch.arange(options.words) < MASKED, ids[start : start + micro], -100),
                "sample_id": [str(row) for row in range(start, start + micro)],
                "bad": [],
            }
            for start in range(0, options.batch, micro)
        ]


def clock() -> float:
    """Seconds; what the engine reads of the device at the end of a step waits for it."""
    return time.perf_counter() if torch.cuda.is_initialized() else time.process_time()


def held() -> float:
    """MiB that the process holds now; 0 on CUDA, where everything counts."""
    if torch.cuda.is_initialized():
        return 0.0
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def peak() -> float:
    """MiB that the process held at most."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    main()
