"""What a run is watched by: the sinks that its plan asks for."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from accelerate import Accelerator

from vlbeit import dist
from vlbeit.engine.environment import describe_environment
from vlbeit.engine.folder import RunFolder, write_errors
from vlbeit.engine.plan import FitPlan
from vlbeit.engine.profile import Profile
from vlbeit.engine.sinks import JsonLines, Sink, Terminal, Trackers
from vlbeit.files import write_json


def open_sinks(
    accelerator: Accelerator, plan: FitPlan, start: int, folder: RunFolder | None, at_end: ExitStack
) -> list[Sink]:
    """File, terminal, trackers and profiler on the main process, for what follows step `start`; none elsewhere.

    They are closed with `at_end`. What keeps one from being opened is raised on all processes.
    """
    opened: list[Sink] = []
    dist.on_main(lambda: opened.extend(_opened(accelerator, plan, start, folder)))
    for sink in opened:
        at_end.callback(sink.close)
    return opened


def _opened(accelerator: Accelerator, plan: FitPlan, start: int, folder: RunFolder | None) -> list[Sink]:
    sinks: list[Sink] = [Terminal(start, plan.steps)]
    if folder is not None:
        with write_errors(folder.environment_file):
            micro_batch_size = plan.settings.get("micro_batch_size")
            described = describe_environment(accelerator.device, dist.world_size(), micro_batch_size)
            write_json(folder.environment_file, described, indent=2)
        sinks.append(JsonLines(folder.metrics_file))
    path = folder.path if folder else Path(".")
    if accelerator.log_with:
        sinks.append(Trackers(accelerator, "vlbeit", path, start, plan.settings))
    if plan.profile:
        sinks.append(Profile(path / "profile", start, plan.profile))
    return sinks
