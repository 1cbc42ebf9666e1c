from __future__ import annotations

import random

import numpy as np
import torch

from vlbeit.engine.randomness import preserved_generators, seed_generators


def drawn() -> tuple[float, ...]:
    return torch.rand(1).item(), np.random.rand(), random.random()


def test_numbers_follow_from_the_counters():
    with preserved_generators():
        draws = []
        for counters in ((0, 1, 23), (0, 12, 3), (0, 1, 23), (0, 1, "after")):
            seed_generators(*counters)
            draws.append(drawn())
    assert draws[0] == draws[2]
    assert len({value for draw in (draws[0], draws[1], draws[3]) for value in draw}) == 9


def test_hash_is_the_same_in_every_process_and_version():
    """A run may be resumed by another interpreter: Python's own hash of a string is salted."""
    with preserved_generators():
        seed_generators(0, 1, "after")
        assert random.getrandbits(32) == 1256154602


def test_states_are_put_back():
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = drawn()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    with preserved_generators():
        seed_generators(5)
        drawn()
    assert drawn() == expected
