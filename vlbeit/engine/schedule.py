"""Learning rate as a pure function of the step: step 0 is the first update. The engine writes it into the groups.

The forms are those of the reference recipes: BEiT's cosine (warmup includes its end point, then the cosine starts at
its top), VLMo's linear decay (warmup excludes it) and mmsegmentation's poly decay (it runs from step 0 on, and warmup
is a factor on it).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from vlbeit.config import OptimConfig

Schedule = Callable[[int], float]

WARMUP_RATIO = 1e-6  # of schedule=poly: the factor at step 0, as in BEiT's ADE20K recipes


def make_schedule(config: OptimConfig, steps: int) -> Schedule:
    """The schedule of a run of `steps` updates, before any group's `lr_scale`."""
    warmup = config.warmup_steps * steps if config.warmup_steps < 1 else config.warmup_steps
    warmup = round(warmup)
    if config.schedule == "cosine":
        return functools.partial(cosine, lr=config.lr, min_lr=config.min_lr, warmup=warmup, steps=steps)
    if config.schedule == "linear":
        return functools.partial(linear, lr=config.lr, warmup=warmup, steps=steps)
    if config.schedule == "poly":
        return functools.partial(
            poly, lr=config.lr, min_lr=config.min_lr, power=config.power, warmup=warmup, steps=steps
        )
    return functools.partial(constant, lr=config.lr, warmup=warmup)


def cosine(step: int, *, lr: float, min_lr: float, warmup: int, steps: int) -> float:
    """From 0 to `lr` over `warmup` points, both ends included, then half a cosine towards `min_lr`."""
    if step < warmup:
        return lr * step / max(warmup - 1, 1)
    progress = min((step - warmup) / max(steps - warmup, 1), 1.0)
    return min_lr + 0.5 * (lr - min_lr) * (1 + math.cos(math.pi * progress))


def linear(step: int, *, lr: float, warmup: int, steps: int) -> float:
    """From 0 to `lr` at step `warmup`, then in a straight line to 0 at step `steps`."""
    if step < warmup:
        return lr * step / warmup
    return lr * max(steps - step, 0) / max(steps - warmup, 1)


def poly(step: int, *, lr: float, min_lr: float, power: float, warmup: int, steps: int) -> float:
    """`lr - min_lr` times (1 - step / steps) ** power, above `min_lr`.

    Over the first `warmup` steps this is multiplied by a factor that grows in a straight line from `WARMUP_RATIO`: the
    rate at the end of warmup is that of the decay there, a little below `lr`.
    """
    rate = min_lr + (lr - min_lr) * max(1 - step / steps, 0.0) ** power
    if step < warmup:
        rate *= WARMUP_RATIO + (1 - WARMUP_RATIO) * step / warmup
    return rate


def constant(step: int, *, lr: float, warmup: int) -> float:
    """From 0 to `lr` at step `warmup`, then constant."""
    return lr * step / warmup if step < warmup else lr
