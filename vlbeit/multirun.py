"""`vlbeit train --multirun`: every combination of swept values, here one after the other, or as jobs through submitit.

`hydra/launcher=submitit_slurm` and `submitit_local` with their keys `hydra.launcher.*` are those of Hydra's submitit
plug-in (`pip install "vlbeit[slurm]"`), so that a line written for another program of Hydra's works here. A job is
`vlbeit train` in its run folder: asked to leave, it saves, is queued again, and goes on from there.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vlbeit import chain, compose, dist, suggest, table, words
from vlbeit import runs as listing
from vlbeit.compose import Composed
from vlbeit.config import RunConfig
from vlbeit.errors import DataError, Interrupted, UsageError, UserError

LAUNCHER, SECTION = "hydra/launcher", "hydra.launcher."
LAUNCHERS = ("basic", "submitit_local", "submitit_slurm")
FOLDER = "runs/.submitit/%j"  # logs and the pickled job; %j: its number
OFTEN = 100  # our jobs go on where they stopped, so running out of time is no failure: the plug-in's default is 0
_OF_TRAINING = (*compose.MAY_DIFFER, "data.train_split", "data.open_shards", "data.shuffle_buffer")


class Launcher(NamedTuple):
    """Where the runs of a sweep go, and how they are queued."""

    name: str
    settings: dict[str, Any]


@dataclass
class Job:
    """One run of `vlbeit train`, as submitit pickles it; called on every task."""

    words: list[str]
    folder: str  # what relative paths mean
    profile: int = 0

    def __call__(self) -> str:
        """Train; the run folder. Asked to leave by the scheduler it does not return: the job is queued again."""
        import submitit

        os.chdir(self.folder)
        task = submitit.JobEnvironment()
        if task.num_tasks > 1:
            submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        from vlbeit import launch

        config, notes, command, typed = compose.compose(self.words)
        if task.global_rank == 0:
            print(*notes, sep="\n", end="\n" if notes else "", flush=True)
        try:
            launch.train(config, command, typed, self.profile)
        except UserError as error:
            if not error.quiet:
                print(f"{'' if isinstance(error, Interrupted) else 'error: '}{error}", file=sys.stderr, flush=True)
            if isinstance(error, Interrupted):
                dist.leave()
                if error.signal is not None and error.signal == task._usr_sig():
                    signal.raise_signal(error.signal)  # submitit listens again: the first task queues the job anew
            raise
        dist.leave()
        return config.run

    def checkpoint(self, *_: Any) -> Any:
        """What submitit queues again: the same words, since the run folder knows where it stands."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def split(arguments: Sequence[str]) -> tuple[Launcher, list[str]]:
    """The launcher with its settings, and the other words. UsageError for one that there is not."""
    own = [word for word in arguments if word.startswith((f"{LAUNCHER}=", SECTION))]
    names = [word.partition("=")[2] for word in own if word.startswith(LAUNCHER)]
    rest = [word for word in arguments if word not in own]
    name = names[-1] if names else "basic"
    if name not in LAUNCHERS:
        raise UsageError(f"{LAUNCHER}={name} is not one of {', '.join(LAUNCHERS)}")
    parsed = words.parse([word for word in own if word.startswith(SECTION)])
    if parsed and name == "basic":
        raise UsageError(f"{own[0]}: settings of a launcher need {LAUNCHER}=submitit_slurm or submitit_local")
    if name == "basic":
        return Launcher(name, {}), rest
    return Launcher(name, _settings(name, parsed)), rest


def submit(runs: Sequence[Composed], launcher: Launcher, profile: int = 0) -> list[str]:
    """Queue a job for every run; lines that say which, and where their logs are. Local jobs are waited for.

    UsageError where there is no such queue here, DataError where a local job failed.
    """
    executor = _executor(launcher)
    jobs = [Job([*(w for w in run.typed if not w.startswith("run=")), f"run={run.config.run}"], os.getcwd(), profile)
            for run in runs]  # fmt: skip
    with executor.batch():  # in Slurm one array
        queued = [executor.submit(job) for job in jobs]
    places = [
        f"{run.config.run}: job {job.job_id}, log {job.paths.stderr}" for run, job in zip(runs, queued, strict=True)
    ]
    if launcher.name == "submitit_slurm":
        return [*places, f"submitted {len(runs)} jobs\nnext: squeue --me; vlbeit runs {_parent(runs)}"]
    print(*places, sep="\n", flush=True)
    failed = [run.config.run for run, job in zip(runs, queued, strict=True) if job.exception() is not None]
    if failed:
        raise DataError(
            f"{len(failed)} of {len(runs)} jobs failed: {', '.join(failed)}; their logs, named above, say why"
        )
    show_trained([run.config for run in runs])
    return []


def show_trained(configs: Sequence[RunConfig]) -> None:
    """The runs of a sweep with what each reached, the best marked where all are measured alike; on one process.

    The best is by the evaluations of training, of one seed and one split: it tells little where runs lie close.
    """
    if not dist.is_main():
        return
    lines = [listing.read_run(config.run) for config in configs]
    values = [line.value for line in lines if line.value is not None]
    changing = _changing_the_measure(configs)
    best = None
    if not changing and len(values) == len(lines) > 1:
        best = (min if chain.recipe_of(configs[0]).metric.startswith("-") else max)(values)
    marked = [best is not None and line.value == best for line in lines]
    table.show(
        ("", *listing.COLUMNS),
        [("best" * mark, *listing.cells(line)) for mark, line in zip(marked, lines, strict=True)],
    )
    if changing:
        print(f"note: none is marked best: what the runs are measured by differs with {', '.join(changing)}")
    winner = configs[marked.index(True) if best is not None else -1]
    print(f"trained {len(lines)} runs\nnext: {suggest.after_training(winner)}")


def _changing_the_measure(configs: Sequence[RunConfig]) -> list[str]:
    """The swept keys that change what the number of a run measures, sorted.

    For a task those of the data it is evaluated on; for a stage, whose number is its own loss, also those of the loss,
    of the patches and words that it is taken over, and of the batch that contrast and matching look across.
    """
    own: tuple[str, ...] = ("data.", "task.name")
    if any(config.task is None for config in configs):
        own += ("stage.", "text.", "model.patch_size", "global_batch_size")
    differing = {key for other in configs[1:] for key, *_ in compose.differing_keys(configs[0], other, _OF_TRAINING)}
    return sorted(key for key in differing if key.startswith(own))


def _parent(runs: Sequence[Composed]) -> str:
    return str(Path(runs[0].config.run).parent)


def _settings(name: str, given: Sequence[words.Word]) -> dict[str, Any]:
    """The plug-in's settings with those that were given; UsageError for unknown keys and wrong types."""
    try:
        from hydra_plugins.hydra_submitit_launcher import config as known
    except ImportError as error:
        raise UsageError(f'{LAUNCHER}={name} needs submitit: pip install "vlbeit[slurm]"') from error
    schema = known.SlurmQueueConf if name == "submitit_slurm" else known.LocalQueueConf
    tree = OmegaConf.structured(schema(submitit_folder=FOLDER, name="vlbeit"))
    OmegaConf.set_struct(tree, True)
    if "max_num_timeout" in tree:
        tree.max_num_timeout = OFTEN
    keys = [key for key in map(str, tree) if not key.startswith("_")]
    for word in given:
        key = word.key.removeprefix(SECTION)
        if key not in keys:
            raise words.unknown_key(
                word.key, [SECTION + known_key for known_key in keys], "see Hydra's submitit plug-in"
            )
        try:
            OmegaConf.update(tree, key, word.value, merge=False)
        except OmegaConfBaseException as error:
            raise UsageError(f"{word.key}={word.text}: {str(error).splitlines()[0]}") from error
    found = OmegaConf.to_container(tree)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items() if key in keys and value is not None}


def _executor(launcher: Launcher) -> Any:
    import submitit
    from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf

    queue = launcher.name.removeprefix("submitit_")
    shared = OmegaConf.structured(BaseQueueConf)
    settings = dict(launcher.settings)
    own = {f"{queue}_max_num_timeout": settings.pop("max_num_timeout")} if "max_num_timeout" in settings else {}
    try:
        executor = submitit.AutoExecutor(folder=settings.pop("submitit_folder"), cluster=queue, **own)
        executor.update_parameters(**{k if k in shared else f"{queue}_{k}": v for k, v in settings.items()})
    except (RuntimeError, ValueError, TypeError, NameError) as error:
        raise UsageError(f"{LAUNCHER}={launcher.name}: {' '.join(str(error).split())}") from error
    return executor
