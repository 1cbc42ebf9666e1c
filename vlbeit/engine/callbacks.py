"""What the engine calls back: it knows neither evaluators nor the files that users load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn


class Callbacks(NamedTuple):
    """Both optional."""

    evaluate: Callable[[nn.Module], dict[str, float]] | None = None
    """The numbers of the objective that it is given (the averaged one with EMA); called on every process."""

    export: Callable[[dict[str, Tensor], Path], object] | None = None
    """Write the objective's weights, a state dict on the CPU, for users into a folder; on the main process only. The
    tensors may be the live ones: they are not to be kept."""
