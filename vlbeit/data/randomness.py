"""Counter-based randomness: what is drawn depends on a key of numbers, never on what was drawn before."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def stream(*key: int) -> np.random.Generator:
    """A generator of its own for this key. The numbers of a key must not be negative."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seed `random`, numpy and torch (CPU) from the key for the length of a `with`, then put their old states back."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    words = np.random.SeedSequence(key).generate_state(6, np.uint64)
    try:
        random.seed(int(words[0]))
        np.random.seed(words[1:5].view(np.uint32))
        torch.default_generator.manual_seed(int(words[5]))  # torch.manual_seed would seed the accelerators as well
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def drawn() -> np.random.Generator:
    """A generator seeded by numpy's global state: inside `seeded` it hangs on the key alone."""
    return np.random.Generator(np.random.PCG64(np.random.randint(0, 2**32, size=4, dtype=np.uint32)))
