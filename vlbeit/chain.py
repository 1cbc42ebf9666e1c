"""What must be there before a run: the built-in data, and the runs that it starts from.

On the built-in data whatever is missing is made; on any other data it is an error that names the command.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vlbeit import compose, registry
from vlbeit.config import RunConfig
from vlbeit.engine.folder import RunFolder
from vlbeit.errors import UsageError
from vlbeit.task import Recipe, Stage

BUILT_IN = "scenes"


def recipe_of(config: RunConfig) -> Recipe:
    """The stage or task of a config, from the registry."""
    if config.task is not None:
        return registry.get("task", config.task.name)(config)
    return registry.get("stage", config.tower)(config)


def init_of(config: RunConfig) -> str | None:
    """Where the weights come from: a path, or None for scratch (`init=none`, or nothing comes before)."""
    if config.init == "none":
        return None
    if config.init != "auto":
        return config.init
    if config.task is not None:
        return f"runs/{config.tower}"
    stage = registry.get("stage", config.tower)
    assert issubclass(stage, Stage)
    return None if stage.previous is None else f"runs/{stage.previous}"


def missing_runs(config: RunConfig) -> list[RunConfig]:
    """Configs of the runs that must be trained first, in order.

    Raises UsageError, naming the command, where one is missing on the user's own data, or a named `init` is not there.
    """
    wanted = dict(recipe_of(config).needed_runs())
    init = init_of(config)
    if init is not None and config.init == "auto":
        wanted[init] = Path(init).name
    elif init is not None and not _has_checkpoint(init):
        raise UsageError(
            f"init={init}: no run or checkpoint there; `vlbeit runs` lists the runs, init=none starts anew"
        )
    missing = []
    for path, stage in wanted.items():
        if _is_ready(path):
            continue
        if config.data.name != BUILT_IN:
            raise UsageError(_remedy(config, path, stage))
        missing.append(_config_before(config, path, stage))
    return missing


def ensure_data(config: RunConfig) -> None:
    """Make the built-in data where it is missing."""
    if config.data.name == BUILT_IN and not (Path(config.data.root) / "scenes.json").exists():
        print(f"{config.data.root} is missing: preparing the built-in data", flush=True)
        registry.get("prepare", BUILT_IN)(Path(config.data.root), report=lambda line: print(line, flush=True))


def planned_steps(folder: RunFolder) -> int | None:
    """Steps that a run was to make, as its config.yaml says."""
    return (folder.stored_config() or {}).get("steps")


def _has_checkpoint(path: str) -> bool:
    return any((Path(path) / part / "config.json").is_file() for part in ("checkpoint", "."))


def _is_ready(path: str) -> bool:
    """A checkpoint is there, and no training of it was cut short."""
    folder = RunFolder(path)
    steps = planned_steps(folder)
    return _has_checkpoint(path) and (steps is None or folder.is_finished(steps))


def _config_before(config: RunConfig, path: str, stage: str) -> RunConfig:
    """The run that makes `path`: its own recipe on the same data, model, device and seed."""
    words = [f"stage={stage}", f"data={config.data.name}", f"model={config.model.name}"]
    before = compose.compose(words).config
    text = replace(before.text, positions=config.text.positions, tokenizer=config.text.tokenizer)
    return replace(
        before,
        run=path,
        model=replace(config.model, drop_path=before.model.drop_path),
        data=replace(config.data, train_split=before.data.train_split, val_split=before.data.val_split),
        text=text,
        seed=config.seed,
        device=config.device,
        precision=config.precision,
    )


def _remedy(config: RunConfig, path: str, stage: str) -> str:
    data = config.data
    command = f"vlbeit train stage={stage} model={config.model.name} data={data.name} data.root={data.root}"
    unfinished = " is unfinished" if RunFolder(path).exists() else " is missing"
    scratch = "; or init=none to start from scratch" if stage != "tokenizer" else ", or name one with stage.tokenizer="
    return f"{path}{unfinished}, and this run starts from it: first `{command}`{scratch}"
