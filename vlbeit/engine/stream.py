"""What the engine trains on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from vlbeit.types import Batch


class Stream(Protocol):
    """Training data, addressed by the optimizer step."""

    def steps(self, start: int, stop: int) -> Iterator[list[Batch]]:
        """For every step from start up to stop: the micro-batches of this process, each with its `sample_id`."""
        ...
