"""A plan as the rows of a table."""

from __future__ import annotations

from vlbeit.planning.memory import RESERVE
from vlbeit.planning.planner import GIB, USUAL, Plan

_PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer's moments",
    "average": "averaged weights",
    "buckets": "buckets of DDP",
    "gathered": "blocks gathered by FSDP",
}


def rows(plan: Plan) -> list[tuple[str, str]]:
    """What, how much."""
    machine = plan.machine
    return [
        ("devices", f"{machine.devices} of {machine.gib:g} GiB, {_peak(plan)}: --devices, --memory, --peak"),
        ("steps", _number(plan.steps)),
        ("epochs", f"unknown: give --samples, the {plan.epoch_of}" if plan.epochs is None else f"{plan.epochs:.4g}"),
        ("samples", _number(plan.samples)),
        *([("tokens", _tokens(plan))] if plan.tokens_per_sample else []),
        ("parameters", f"{plan.parameters:,}, {plan.trained:,} of them trained"),
        ("operations a sample", f"{plan.forward / 1e9:,.2f} GFLOP forward, {plan.backward / 1e9:,.2f} backward"),
        ("operations in all", "unknown" if plan.total is None else f"{plan.total:.3g} FLOP"),
        ("micro-batch", _micro(plan)),
        *_memory(plan),
        ("time", f"{_time(plan.seconds)} at {machine.utilisation:.0%} of the peak: --utilisation"),
    ]


def _peak(plan: Plan) -> str:
    usual = f" ({USUAL} in {plan.precision})" if plan.machine.peak is None else ""
    return f"{plan.peak:g} TFLOP/s{usual}"


def _tokens(plan: Plan) -> str:
    return f"{_number(plan.tokens)} ({plan.tokens_per_sample:,} a sample at most: patches and words)"


def _memory(plan: Plan) -> list[tuple[str, str]]:
    parts = plan.memory._asdict()
    lines = [(f"  {name}", _gib(parts[part])) for part, name in _PARTS.items() if parts[part]]
    activations = f"{_gib(plan.memory.activations)}, {_gib(round(plan.activations_per_sample))} a sample"
    total = f"{_gib(plan.memory.total)} of {plan.machine.gib:g} GiB, {RESERVE:.0%} of which stay free"
    return [("memory of a device", total), *lines, ("  activations", activations)]


def _micro(plan: Plan) -> str:
    if plan.micro_batch is None:
        return f"not even the smallest fits into {plan.machine.gib:g} GiB: the memory below is for 1 sample"
    many = plan.machine.devices
    return f"{plan.micro_batch} on each of {many} device{'s' * (many > 1)}, {plan.accumulation} of them a step"


def _number(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    for unit, size, least in (("days", 86400, 2), ("hours", 3600, 1), ("minutes", 60, 1)):
        if seconds >= least * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
