"""Counter-based randomness: the state of every generator follows from numbers, so none is ever saved."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_generators(*counters: int | str) -> None:
    """Seed torch (CPU and the devices in use), numpy and random from a stable hash of the counters."""
    digest = hashlib.blake2b("/".join(map(str, counters)).encode(), digest_size=8).digest()
    value = int.from_bytes(digest, "little") >> 1  # torch takes up to 2^63 - 1
    torch.default_generator.manual_seed(value)  # torch.manual_seed queues a call for every kind of device not in use
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(value)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(value)
    np.random.seed(value % 2**32)
    random.seed(value)


@contextmanager
def preserved_generators() -> Iterator[None]:
    """Leave torch's, numpy's and random's global generators as they were found."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
