"""What training makes of the machine: waiting for data, tokens, floating-point operations, memory.

Nothing is guessed: the operations are those that torch counts in one micro-batch, the utilisation is left out where the
device's peak is not known.
"""

from __future__ import annotations

import re
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from vlbeit import dist


class Peak(NamedTuple):
    """Floating-point operations per second that a device is built for, dense, in 10^12; None: it has no such units."""

    half: float  # fp16 and, but for the oldest, bf16, summed in fp32
    tf32: float | None
    fp32: float


# From the manufacturer's data sheets; numbers "with sparsity" halved. The names are those that the driver gives,
# but for maker and memory. Whatever else stands in one (NVL, a MIG slice) is another device: nothing is known of it.
PEAKS = {
    "V100 SXM2": Peak(125, None, 15.7),
    "V100 PCIE": Peak(112, None, 14),
    "T4": Peak(65, None, 8.1),
    "A10": Peak(125, 62.5, 31.2),
    "A30": Peak(165, 82, 10.3),
    "A40": Peak(149.7, 74.8, 37.4),
    "A100 SXM4": Peak(312, 156, 19.5),
    "A100 PCIE": Peak(312, 156, 19.5),
    "L4": Peak(121, 60, 30.3),
    "L40S": Peak(362, 183, 91.6),
    "H100 HBM3": Peak(989, 495, 67),
    "H100 PCIE": Peak(756, 378, 51),
    "H200": Peak(989, 495, 67),
}


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Operations per second that one device could do at this precision; None where we do not know."""
    if device.type != "cuda":
        return None
    words = torch.cuda.get_device_name(device)
    return peak_of(words, precision, tf32=torch.get_float32_matmul_precision() != "highest")


def peak_of(name: str, precision: str, *, tf32: bool) -> float | None:
    """`peak_flops` of a device by its full name, such as `NVIDIA A100-SXM4-80GB`."""
    words = [word.upper() for word in name.replace("-", " ").split()]
    told = [word for word in words if word not in ("NVIDIA", "TESLA") and not re.fullmatch(r"\d+GB", word)]
    peak = PEAKS.get(" ".join(told))
    if peak is None or precision == "fp64":
        return None
    if precision == "bf16" and peak.tf32 is None:
        return None  # the first generations have no units for it
    if precision == "fp32":
        units = peak.tf32 if tf32 else peak.fp32
        return None if units is None else 1e12 * units
    return 1e12 * peak.half


def memory_peak(device: torch.device) -> float:
    """Largest memory of this process so far in GiB: what torch held on a CUDA device, else of main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def speed_on(device: torch.device, precision: str, *, compiled: bool) -> Speed:
    """What is measured there: on a CPU, whose peak nobody knows, no operations, since counting takes torch seconds."""
    return Speed(device, peak_flops(device, precision), counts_flops=device.type == "cuda" and not compiled)


class _Operations(FlopCounterMode):
    """Counts no activations that are computed again: work with gradients switched on, in a backward pass."""

    def _count_flops(self, func_packet: Any, out: Any, args: Any, kwargs: Any) -> Any:
        if self.mod_tracker.is_bw and torch.is_grad_enabled():
            return out
        return super()._count_flops(func_packet, out, args, kwargs)


class Speed:
    """Adds up waiting and tokens of this process's steps, and knows the operations of a token.

    These are counted in the first micro-batch of a command, of this process, forward and backward, but for what
    checkpointing computes once more: the work of the model, not of the machine. With `torch.compile`
    they are not seen, and nothing is said of them.
    """

    def __init__(self, device: torch.device, peak: float | None, *, counts_flops: bool) -> None:
        self.device, self.peak = device, peak
        self._counts = counts_flops
        self.flops_per_token: float | None = None
        self.restart()

    def restart(self) -> None:
        """Forget what was added up."""
        self.waited, self.tokens = 0.0, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The time inside is time without data."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.waited += time.perf_counter() - began

    @contextmanager
    def forward_and_backward(self, tokens: int) -> Iterator[None]:
        """One micro-batch of so many tokens."""
        self.tokens += tokens
        if not self._counts or not tokens:
            yield
            return
        self._counts = False
        with _Operations(display=False) as counter:
            yield
        self.flops_per_token = counter.get_total_flops() / tokens

    def numbers(self, seconds: float) -> dict[str, float]:
        """Over all processes, for the last `seconds`; every process must call. Waiting is the mean of their shares."""
        mine = torch.tensor([self.waited / seconds, self.tokens], device=self.device, dtype=torch.float32)
        waited, tokens = dist.sum_over_ranks(mine).tolist()
        world = dist.world_size()
        found = {"data_wait": min(waited / world, 1.0)}
        if tokens:
            found["tokens_per_second"] = tokens / seconds
        if tokens and self.flops_per_token:
            flops = self.flops_per_token * tokens / seconds
            found["tflops_per_second"] = flops / 1e12
            if self.peak is not None:
                found["mfu"] = flops / world / self.peak
        found["memory_gib"] = memory_peak(self.device)
        return found
