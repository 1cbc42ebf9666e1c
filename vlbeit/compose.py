"""From the words of the command line to one `RunConfig`, and from a run's config.yaml back to it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import (
    BooleanNode,
    DictConfig,
    FloatNode,
    IntegerNode,
    ListConfig,
    Node,
    OmegaConf,
    StringNode,
)
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from vlbeit import registry, words
from vlbeit.config import DataConfig, RunConfig, Settings
from vlbeit.errors import DataError, UsageError
from vlbeit.models.presets import PRESETS
from vlbeit.recipes import BRINGS, check_purpose, groups_of, notes, recipes, shipped
from vlbeit.task import Stage, Task

GROUPS = ("stage", "task", "model", "data", "recipe")
_NAMES = {f"{group}.name" for group in GROUPS}  # set by the group itself
MAY_DIFFER = (
    "epochs", "steps", "micro_batch_size", "device", "run", "resume", "overwrite", "data.workers", "data.cache",
    "data.cache_gb", "data.max_bad_fraction", "engine.save_every", "engine.log_every", "engine.checkpoint",
    "engine.async_save", "engine.timeout", "engine.max_skipped", "engine.trackers", "task.controls",
)  # fmt: skip
_TYPE_NAMES: dict[type[Node], str] = {
    FloatNode: "a number",
    IntegerNode: "a whole number",
    BooleanNode: "true or false",
    StringNode: "a text",
    ListConfig: "a list",
}


class Composed(NamedTuple):
    """A resolved config, what was chosen for the user, to be printed, the command to go on, and the words typed."""

    config: RunConfig
    notes: list[str]
    command: str
    typed: list[str]


class KeyInfo(NamedTuple):
    """One line of `vlbeit train --help`."""

    key: str
    default: str
    meaning: str


class _Choice(NamedTuple):
    """The chosen groups and the dataclasses that they bring."""

    names: dict[str, str]
    schema: RunConfig
    notes: list[str]


def compose(arguments: Iterable[str], *, suffix: str = "") -> Composed:
    """Compose a config from `key=value` words; `suffix` is added to the default run folder.

    Raises `UsageError` for unknown names and keys, wrong types and values that contradict each other.
    """
    arguments = list(arguments)
    parsed = words.parse(arguments)
    choice = _choose(parsed)
    tree = _tree(choice)
    keys = {word.key for word in parsed}
    if "epochs" in keys and "steps" not in keys:
        OmegaConf.update(tree, "steps", None)  # those of the recipe: what is typed wins
    for word in parsed:
        if word.key not in GROUPS:
            _assign(tree, word, choice.names)
    config = _to_config(tree)
    if not config.run:
        config.run = f"runs/{config.title}{suffix}"
    return Composed(config, choice.notes, _command(arguments, config), arguments)


def compose_many(arguments: Sequence[str]) -> list[Composed]:
    """Every combination of swept values (`optim.lr=1e-3,3e-4`), for `--multirun`."""
    composed = [compose(each, suffix=suffix) for each, suffix in words.expand(arguments)]
    if len({item.config.run for item in composed}) < len(composed):
        raise UsageError("run= names one folder for several runs: leave it out, or sweep it too")
    return composed


def override(config: RunConfig, arguments: Iterable[str]) -> RunConfig:
    """A config with some keys changed, as `vlbeit evaluate RUN data.root=DIR` does; `data=NAME` changes the source."""
    parsed = words.parse(arguments)
    if config.data.name != "mix" and not any(word.key == "data" for word in parsed):
        parsed = [words.Word("data", "mix", "mix")] * any(word.key == "data.mix" for word in parsed) + parsed
    for word in parsed:
        if word.key == "data":
            source = _data_source(word.text)
            config = replace(config, data=replace(config.data, name=source, root=_root(source), mix=[]))
        elif word.key in GROUPS:
            raise UsageError(f"{word.key}={word.text}: the {word.key} of a finished run cannot be changed")
    tree = OmegaConf.structured(config)
    OmegaConf.set_struct(tree, True)
    for word in parsed:
        if word.key not in GROUPS:
            _assign(tree, word, {"stage": config.tower, "task": config.task.name} if config.task else {})
    return _to_config(tree)


def describe_keys(arguments: Iterable[str] = ()) -> list[KeyInfo]:
    """Every key with its default under the given words and its meaning."""
    arguments = list(arguments)
    config = RunConfig()
    if any(word.startswith(("stage=", "task=", "recipe=")) for word in arguments):
        config = compose(arguments).config
    rows = {row.key: row for row in _describe("", config)}
    first = [
        rows.pop("stage"),
        rows.pop("task"),
        KeyInfo("model", config.model.name, f"preset: {' | '.join(PRESETS)}"),
        KeyInfo("data", config.data.name, f"data source: {' | '.join(registry.names('data'))}"),
        KeyInfo("recipe", "", f"published settings: {' | '.join(['none', *recipes()])}"),
    ]
    return first + [row for row in rows.values() if row.key not in _NAMES]


def to_yaml(config: RunConfig) -> str:
    """The resolved config as YAML text."""
    return OmegaConf.to_yaml(OmegaConf.structured(config), resolve=True)


def from_yaml(path: str | Path) -> RunConfig:
    """Read what `to_yaml` wrote; the registry finds the settings of its stage or task.

    Raises `DataError` for a file that is missing, damaged or has unknown keys.
    """
    try:
        stored = OmegaConf.load(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; is it a run folder's config.yaml?") from error
    except (OmegaConfBaseException, ValueError, YAMLError) as error:
        raise DataError(f"{path}: {_first_line(error)}") from error
    return from_values(OmegaConf.to_container(stored), str(path))


def from_values(values: Any, origin: str) -> RunConfig:
    """A config from its plain values, as a checkpoint's config.json carries them; `DataError` names the `origin`."""
    stage, task = group_names(values, origin)
    try:
        settings = _settings(stage, task)
        for group, known in settings.items():
            if isinstance(values.get(group), dict):
                values = {**values, group: known.upgraded(dict(values[group]))}
        schema = OmegaConf.structured(RunConfig(**settings))
        return _to_config(OmegaConf.merge(schema, OmegaConf.create(values)))
    except (OmegaConfBaseException, ValueError, UsageError) as error:
        raise DataError(f"{origin}: {_first_line(error)}") from error


def group_names(values: Any, origin: str) -> tuple[str, str | None]:
    """Names of the stage and the task of a config's plain values; `DataError` names the `origin`."""
    if not isinstance(values, dict):
        raise DataError(f"{origin} does not hold a config")
    groups = [values.get(group) or {} for group in ("stage", "task")]
    stage, task = (group.get("name") if isinstance(group, dict) else None for group in groups)
    if not isinstance(stage, str) or not (task is None or isinstance(task, str)):
        raise DataError(f"{origin} does not name a stage")
    return stage, task


def differing_keys(stored: RunConfig, new: RunConfig, ignore: Sequence[str] = MAY_DIFFER) -> list[tuple[str, Any, Any]]:
    """(key, stored value, new value) wherever two configs differ, beyond the keys that may."""
    old, now = (dict(_flatten("", OmegaConf.to_container(OmegaConf.structured(c)))) for c in (stored, new))
    keys = [*old, *(key for key in now if key not in old)]
    return [(k, old.get(k), now.get(k)) for k in keys if k not in ignore and old.get(k) != now.get(k)]


def _command(arguments: Sequence[str], config: RunConfig) -> str:
    """What to type to go on: the same words, but for those that would start anew."""
    kept = [word for word in arguments if not word.startswith(("overwrite=", "run="))]
    run = [] if config.run == f"runs/{config.title}" else [f"run={config.run}"]
    return shlex.join(["vlbeit", "train", *kept, *run])


def _choose(parsed: Sequence[words.Word]) -> _Choice:
    """Settle the groups: what was typed, then what the recipe names, the task lists, the built-in data brings."""
    typed = _typed_groups(parsed)
    asked = typed.get("recipe", "none")
    own = groups_of(asked)
    check_purpose(asked, own, typed)
    chosen = {**own, **typed}
    if not chosen.keys() & {"stage", "task"}:
        known = {group: ", ".join(registry.names(group)) for group in ("stage", "task")}
        raise UsageError(
            f"nothing to train: give stage= ({known['stage']}) or task= ({known['task']}), also beside resume="
        )
    settings = _settings(chosen.get("stage"), chosen.get("task"))
    title = chosen.get("task") or chosen["stage"]
    source = _data_source(chosen.get("data", "scenes"))
    said = notes(asked, own, typed)
    brought = {"model": "base", "recipe": "none"}
    if source == "scenes":
        brought = {"model": "tiny", "recipe": f"scenes_{title}" if f"scenes_{title}" in recipes() else "none"}
        news = [f"{key}={value}" for key, value in brought.items() if key not in chosen and value != "none"]
        said += [f"data=scenes brings {' and '.join(news)}"] if news else []
    if "task" in chosen and "stage" not in chosen:
        said.append(f"task={title} takes stage={settings['stage'].name}")
    names = {**brought, **chosen, "data": source, "stage": settings["stage"].name}
    if names["model"] not in PRESETS:
        raise UsageError(f"unknown model {names['model']!r}: {registry.nearest(names['model'], list(PRESETS))}")
    data = DataConfig(name=source, root=_root(source))
    return _Choice(names, RunConfig(**settings, model=replace(PRESETS[names["model"]]), data=data), said)


def _typed_groups(parsed: Sequence[words.Word]) -> dict[str, str]:
    """The groups on the command line, each once."""
    typed = {word.key: word.text for word in parsed if word.key in GROUPS}
    if "data" not in typed and any(word.key == "data.mix" and word.value for word in parsed):
        typed["data"] = "mix"
    for group in typed:
        if sum(word.key == group for word in parsed) > 1:
            raise UsageError(f"{group}= is given more than once")
    return typed


def _settings(stage: str | None, task: str | None) -> dict[str, Any]:
    """`stage` and `task` of a `RunConfig`; beside a task, `stage` only names the tower and has no settings."""
    if task is None:
        assert stage is not None
        return {"stage": _recipe_class("stage", stage, Stage).Config(name=stage)}
    recipe = _recipe_class("task", task, Task)
    stage = stage or recipe.stages[0]
    if stage not in recipe.stages:
        if stage not in registry.names("stage"):
            registry.get("stage", stage)  # raises, naming the nearest
        raise UsageError(f"task={task} does not take stage={stage}: it takes {', '.join(recipe.stages)}")
    return {"stage": Settings(name=stage), "task": recipe.Config(name=task)}


def _recipe_class(group: str, name: str, base: type) -> Any:
    """The class of a stage or task, with the contract that config needs checked."""
    found = registry.get(group, name)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UsageError(f"{group}={name}: {found!r} is not a vlbeit.task.{base.__name__}")
    settings: Any = getattr(found, "Config", None)
    if not (isinstance(settings, type) and is_dataclass(settings) and issubclass(settings, Settings)):
        raise UsageError(
            f"{group}={name}: {found.__name__}.Config is not a dataclass derived from vlbeit.config.Settings"
        )
    return found


def _data_source(name: str) -> str:
    """The name if it is registered; nothing is imported."""
    known = registry.names("data")
    if name not in known:
        raise UsageError(f"unknown data source {name!r}: {registry.nearest(name, known)}")
    return name


def _root(source: str) -> str:
    """Where the data of a source lie if nothing else is said; a mix is of folders below `data`."""
    return "data" if source == "mix" else f"data/{source}"


def _tree(choice: _Choice) -> DictConfig:
    """Hydra's composition: the dataclasses as schema, then the YAML files of the groups."""
    ConfigStore.instance().store(name="schema", node=choice.schema)
    # Beside a task, the recipe of pre-training its tower has no say. To Hydra a group without any file is no group.
    names = {group: name for group, name in choice.names.items() if group != "stage" or "task" not in choice.names}
    names = {group: name for group, name in names.items() if name in shipped(group)}
    try:
        with hydra.initialize_config_module("vlbeit.configs", version_base="1.3"):
            tree = hydra.compose("train", overrides=[f"{group}={name}" for group, name in names.items()])
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(f"configs do not compose: {_first_line(error)}") from error
    for group in BRINGS:  # what a recipe names may have been replaced by what was typed
        if group in choice.names:
            OmegaConf.update(tree, f"{group}.name", choice.names[group])
    return tree


def _assign(tree: DictConfig, word: words.Word, names: Mapping[str, str]) -> None:
    """Set one key of the config tree, or say in one line why not."""
    key, value, text = word
    section, _, _ = key.partition(".")
    if key in _NAMES:
        raise UsageError(f"{key}={text}: write {section}={text}")
    if section == "stage" and "task" in names:
        raise UsageError(
            f"{key}: beside task={names['task']}, stage={names['stage']} only names the tower that is fine-tuned; "
            f"settings of the task begin with task."
        )
    groups = [f"{group}={names[group]}" for group in ("stage", "task") if group in names]
    hint = f"`{' '.join(['vlbeit train', *groups])} --help` lists all keys"
    leaves = dict(_leaves("", tree))
    if key not in leaves:
        inside = [leaf for leaf in leaves if leaf.startswith(f"{key}.")]
        if inside:
            raise UsageError(f"{key}={text}: {key} is a section; set its keys, such as {inside[0]}=VALUE")
        raise words.unknown_key(key, [leaf for leaf in leaves if leaf not in GROUPS], hint)
    node = leaves[key]
    if isinstance(node, StringNode) and value is not None and not isinstance(value, str):
        value = text  # `run=007` is a name, not a number
    numbers = value if isinstance(value, list) else [value]
    if any(isinstance(number, float) and not isfinite(number) for number in numbers):
        raise UsageError(f"{key}={text} is not a finite number")
    try:
        OmegaConf.update(tree, key, value, merge=False)
    except OmegaConfBaseException as error:
        kind = next((name for cls, name in _TYPE_NAMES.items() if isinstance(node, cls)), "a fitting value")
        kind += " or null" if node._is_optional() else ""
        sweep = "; several values need --multirun" if "," in text and not isinstance(node, ListConfig) else ""
        plain = isinstance(node, ListConfig) and not set(text) & set("{}[]") and text != "null"
        remedy = f": write {key}=[{text}]" if plain else ""
        raise UsageError(f"{key}={text} is not {kind}{sweep}{remedy}") from error


def _to_config(tree: Any) -> RunConfig:
    """Dataclasses again, which checks choices and ranges."""
    try:
        config = OmegaConf.to_object(tree)
    except OmegaConfBaseException as error:
        raise UsageError(_first_line(error)) from error
    assert isinstance(config, RunConfig)
    return config


def _leaves(prefix: str, node: Node | None) -> Iterator[tuple[str, Any]]:
    """Dotted keys of a config tree with their nodes; a list is a leaf."""
    if isinstance(node, DictConfig) and not node._is_none():
        for name in map(str, node):
            yield from _leaves(f"{prefix}.{name}" if prefix else name, node._get_node(name))
    else:
        yield prefix, node


def _flatten(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _flatten(f"{prefix}.{name}" if prefix else str(name), item)
    else:
        yield prefix, value


def _describe(prefix: str, config: Any) -> Iterator[KeyInfo]:
    for item in fields(config):
        key, value = f"{prefix}{item.name}", getattr(config, item.name)
        if not is_dataclass(value):
            yield KeyInfo(key, _shown(value), item.metadata.get("help", ""))
            continue
        if "help" in item.metadata:  # stage and task are groups and sections
            yield KeyInfo(key, getattr(value, "name", ""), item.metadata["help"])
        yield from _describe(f"{key}.", value)


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)


def _first_line(error: BaseException) -> str:
    """What an exception says, in one line, with the reason under it where Hydra wraps one."""
    key = getattr(error, "full_key", None)
    lines = [f"{key}: " * bool(key) + str(error).strip().partition("\n")[0]]
    if error.__cause__ is not None:
        lines.append(str(error.__cause__).strip().partition("\n")[0])
    return ": ".join(dict.fromkeys(line for line in lines if line))
