"""What must be there before a run: the built-in data, and the runs that it starts from.

On the built-in data whatever is missing is made; on any other data it is an error that names the command.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vlbeit import compose, going_on, registry
from vlbeit.config import RunConfig
from vlbeit.data.records import KINDS
from vlbeit.data.sources import open_source
from vlbeit.engine.folder import RunFolder
from vlbeit.errors import UsageError
from vlbeit.models.checkpoint import locate, read_head
from vlbeit.models.foreign import is_foreign
from vlbeit.task import Recipe, Stage

BUILT_IN = "scenes"
_USUAL = {  # the source to name where many give a kind
    "vqa": ("vqa_v2",), "pairs": ("pairs",), "text": ("text",), "images": ("imagefolder",),
}  # fmt: skip


def recipe_of(config: RunConfig) -> Recipe:
    """The stage or task of a config, from the registry."""
    if config.task is not None:
        return registry.get("task", config.task.name)(config)
    return registry.get("stage", config.tower)(config)


def reads_text(config: RunConfig) -> bool:
    """Whether the records of a run have words in them; of one that has none, the section `text` says nothing."""
    return bool({"text", "question"}.intersection(KINDS[recipe_of(config).kind]))


def init_of(config: RunConfig) -> str | None:
    """Where the weights come from: a path, or None for scratch (`init=none`, or nothing comes before)."""
    if config.init == "none":
        return None
    if config.init != "auto":
        return config.init
    if config.task is not None:
        start = registry.get("task", config.task.name).built_in_start if config.data.name == BUILT_IN else ""
        return f"runs/{start if start.startswith(f'{config.tower}-') else config.tower}"
    stage = registry.get("stage", config.tower)
    assert issubclass(stage, Stage)
    return None if stage.previous is None else f"runs/{stage.previous}"


def state_origin(config: RunConfig) -> RunFolder | None:
    """The run whose saved state this one goes on from: its own, else that of `resume=`; None: it begins."""
    folder = RunFolder(config.run)
    if not config.overwrite and folder.last_step() is not None:
        return folder
    return None if config.resume is None else RunFolder(config.resume)


def missing_runs(config: RunConfig, typed: Sequence[str] = ()) -> list[RunConfig]:
    """Configs of all runs that must be trained first, in order: those that this run starts from, and theirs.

    `typed` are the words of the command line: what they say of the data, the device and the seed holds for all runs.
    A run that goes on from a saved state needs none.
    Raises UsageError, naming the command, where one is missing on the user's own data, or one that is named by the
    user is not there.
    """
    if state_origin(config) is not None:
        return []
    wanted = dict(recipe_of(config).needed_runs())
    init = init_of(config)
    if init is not None and config.init == "auto":
        wanted[init] = Path(init).name
    elif init is not None:
        _check_named(init)
    missing: dict[str, RunConfig] = {}
    for path, stage in wanted.items():
        if _named_is_ready(path, stage):
            _check_stage(path, stage)
            _check_not_a_toy(config, path, stage)
            continue
        if config.data.name != BUILT_IN or path != f"runs/{stage}":  # nobody asks for a run by name to have it made
            raise UsageError(_remedy(config, path, stage))
        before = _config_before(config, path, stage, typed)
        missing |= {each.run: each for each in [*missing_runs(before, typed), before]}
    return list(missing.values())


def data_is_missing(config: RunConfig) -> bool:
    """Whether the run is on the built-in data, and it must be made first."""
    return config.data.name == BUILT_IN and not (Path(config.data.root) / "scenes.json").exists()


def check_built_in(config: RunConfig) -> None:
    """UsageError where the built-in data would be made in a folder that is not its own: a slip, or somebody's data."""
    root, default = Path(config.data.root), Path("data") / BUILT_IN
    taken = root.exists() and (not root.is_dir() or any(root.iterdir()))
    if data_is_missing(config) and (taken or root != default):
        sources = ", ".join(f"data={name}" for name in registry.names("data") if name != BUILT_IN)
        found = "holds no scenes" if taken else "does not exist"
        raise UsageError(
            f"data.root={root} {found}, and data={BUILT_IN} is the default: is it for {sources}? "
            f"`vlbeit prepare {BUILT_IN} --out {'DIR' if taken else root}` makes the scenes there"
        )


def ensure_data(config: RunConfig) -> None:
    """Make the built-in data where it is missing."""
    if data_is_missing(config):
        print(f"{config.data.root} is missing: preparing the built-in data", flush=True)
        registry.get("prepare", BUILT_IN)(Path(config.data.root), report=lambda line: print(line, flush=True))


def _check_named(init: str) -> None:
    """UsageError unless what the user named is there."""
    try:
        found = has_checkpoint(init)
    except UsageError as error:
        raise UsageError(f"init={error}; init=none starts anew") from error
    if not found:
        raise UsageError(
            f"init={init}: no run or checkpoint there; `vlbeit runs` lists the runs, init=none starts anew"
        )


def has_checkpoint(path: str) -> bool:
    """Whether a run, or a checkpoint of ours or of others, lies there that can be loaded; by name it is fetched."""
    place, _ = locate(path)
    return any((place / part / "config.json").is_file() for part in ("checkpoint", ".")) or is_foreign(place)


def _named_is_ready(path: str, stage: str) -> bool:
    """`_is_ready`; a UsageError about what is no name of anything names the key."""
    try:
        return _is_ready(path)
    except UsageError as error:
        raise UsageError(f"{'stage.tokenizer' if stage == 'tokenizer' else 'init'}={error}") from error


def _is_ready(path: str) -> bool:
    """A checkpoint is there, and no training of it was cut short."""
    folder = RunFolder(path)
    steps = folder.planned_steps()
    return has_checkpoint(path) and (steps is None or folder.is_finished(steps))


def _check_stage(path: str, stage: str) -> None:
    """UsageError unless the run at `path` is one of STAGE or STAGE-TASK. A checkpoint from elsewhere may not say."""
    config = read_head(path)["config"]
    made_by, task = compose.group_names(config, f"{path}: the config of its checkpoint") if config else (None, None)
    if made_by is not None and (found := f"{made_by}-{task}" if task else made_by) != stage:
        is_one, is_needed = (" ".join(_group_words(name)) for name in (found, stage))
        raise UsageError(f"{path} is a run of {is_one}; a run of {is_needed} is needed: name another one")


def _check_not_a_toy(config: RunConfig, path: str, stage: str) -> None:
    """UsageError where a run on the user's own data would start from one on drawn shapes without being told to."""
    if path != f"runs/{stage}":
        return
    made_on = ((read_head(path)["config"] or {}).get("data") or {}).get("name")
    if made_on == BUILT_IN != config.data.name:
        key = "stage.tokenizer" if stage == "tokenizer" else "init"
        raise UsageError(
            f"{path} was trained on the built-in data, this run is on data={config.data.name}: train stage={stage} on "
            f"your own data with another run=, and name it with {key}=" + ("" if key != "init" else " (or init=none)")
        )


def _config_before(config: RunConfig, path: str, stage: str, typed: Sequence[str]) -> RunConfig:
    """The run that makes `path`: its own recipe on the same data and model, with the words typed for all runs.

    What the recipe of `config` brings, such as larger pictures, is not for it: `path` must not hang on which run was
    asked for first.
    """
    shared = [word for word in typed if _is_shared(word.partition("=")[0])]
    words = [*_group_words(stage), f"data={config.data.name}", f"model={config.model.name}", *shared]
    before = compose.compose(words).config
    text = before.text
    if reads_text(config) and reads_text(before):
        text = replace(
            text,
            positions=config.text.positions,
            max_length=min(text.max_length, config.text.positions),
            tokenizer=config.text.tokenizer,
        )
    return replace(
        before,
        run=path,
        model=replace(config.model, drop_path=before.model.drop_path),
        data=replace(before.data, root=config.data.root),
        text=text,
    )


def _group_words(name: str) -> list[str]:
    """STAGE or STAGE-TASK as words of a command."""
    return [f"{group}={value}" for group, value in zip(("stage", "task"), name.split("-"), strict=False)]


def _is_shared(key: str) -> bool:
    """Whether a typed key is meant for the runs before too. Those of the model are taken from the config as a whole."""
    if key in ("data.train_split", "data.val_split", "data.resize"):
        return False
    return key.startswith(("data.", "text.")) or key in ("seed", "device", "precision")


def data_words(config: RunConfig, kind: str) -> str:
    """Words for records of a kind: this run's data where they are known to give them, else a source that does."""
    if kind in open_source(config.data).given(recipe_of(config).kind):
        words = [f"data={config.data.name}", f"data.root={shlex.quote(config.data.root)}"]
        words += [shlex.quote(f"data.mix=[{','.join(config.data.mix)}]")] if config.data.mix else []
    else:
        others = [*_USUAL.get(kind, ()), *(name for name in registry.names("data") if name != BUILT_IN)]
        words = [f"data={next(name for name in others if kind in registry.get('data', name).kinds)}", "data.root=DIR"]
    return " ".join(words)


def _remedy(config: RunConfig, path: str, stage: str) -> str:
    words = data_words(config, registry.get("stage", stage).kind)
    command = f"vlbeit train stage={stage} model={config.model.name} {words}"
    command += "" if path == f"runs/{stage}" else f" run={path}"
    found = "is missing, and this run starts from it: first"
    if RunFolder(path).config_file.exists():
        found, command = "is unfinished, and this run starts from it: first go on with it,", going_on.command(path)
    others = "; or init=RUN to start from another, or init=none to start from scratch"
    if stage == "tokenizer":
        others = ", or name one with stage.tokenizer="
    return f"{path} {found} `{command}`{others}"
