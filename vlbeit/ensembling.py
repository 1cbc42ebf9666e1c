"""Several trained runs that answer together: `vlbeit evaluate RUN --with RUN2 --with RUN3`."""

from __future__ import annotations

from collections.abc import Sequence

from vlbeit.errors import UsageError
from vlbeit.inference import Trained
from vlbeit.task import Task


def join(run: Trained, path: str, others: Sequence[str]) -> None:
    """Have the recipe of the run at `path` evaluate and submit together with the runs `others`, each counted once.

    Raises UserError for one that cannot be read, is named twice, or does not fit.
    """
    if not others:
        return
    if not isinstance(run.recipe, Task):
        raise UsageError(f"{path} is a run of stage={run.config.tower}: --with is for runs of a task, such as task=vqa")
    if len({path, *others}) <= len(others):
        raise UsageError(f"--with {' --with '.join(others)}: a run is named twice; each counts once")
    found = {other: Trained(other) for other in others}
    run.recipe.join(run.meta, {name: (other.config, other.meta, other.objective) for name, other in found.items()})
