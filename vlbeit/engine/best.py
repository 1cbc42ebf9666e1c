"""The weights that users get: when they are written, and what with."""

from __future__ import annotations

from torch import Tensor

from vlbeit.engine.callbacks import Callbacks
from vlbeit.engine.folder import RunFolder, write_errors
from vlbeit.engine.plan import FitPlan
from vlbeit.engine.state import TrainingState
from vlbeit.files import finite, write_json


def is_new_best(plan: FitPlan, state: TrainingState, results: dict[str, float], *, evaluates: bool) -> bool:
    """Whether the weights of now are the ones to export: the best by the metric so far, or without one the last."""
    if not plan.metric or not evaluates:
        return state.step >= plan.steps
    if not results:
        return False
    lower, name = plan.metric.startswith("-"), plan.metric.removeprefix("-")
    if name not in results:
        raise ValueError(f"metric {name} is not among the evaluation's numbers: {', '.join(results)}")
    return state.update_best(results[name], lower=lower)


def export(
    folder: RunFolder,
    callbacks: Callbacks,
    weights: dict[str, Tensor],
    results: dict[str, float],
    metric: str,
    step: int,
) -> None:
    """Write the weights for users, and the numbers that belong to them; on the main process."""
    with write_errors(folder.checkpoint):
        if callbacks.export:
            callbacks.export(weights, folder.checkpoint)
        if results:
            best = {"metric": metric.removeprefix("-")} if metric else {}
            write_json(folder.evaluation_file, finite({**results, **best, "step": step}), indent=2)
