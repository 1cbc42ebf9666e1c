"""The recipes of configs/recipe: which there are, and the groups that they bring."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from vlbeit import registry
from vlbeit.errors import UsageError

BRINGS = ("stage", "task", "data", "model")  # a recipe names a group's choice by `GROUP: {name: NAME}`


def shipped(group: str) -> dict[str, Path]:
    """The YAML files of a group of configs/, by name."""
    spec = find_spec("vlbeit.configs")
    assert spec is not None and spec.submodule_search_locations is not None
    found = [path for root in spec.submodule_search_locations for path in Path(root, group).glob("*.yaml")]
    return {path.stem: path for path in sorted(found)}


def recipes() -> list[str]:
    """Names of configs/recipe."""
    return list(shipped("recipe"))


def groups_of(recipe: str) -> dict[str, str]:
    """The groups that a recipe names: `{"task": "classification", "data": "imagefolder", "model": "base"}`.

    Raises `UsageError` for a recipe that there is not, or that cannot be read.
    """
    if recipe == "none":
        return {}
    files = shipped("recipe")
    if recipe not in files:
        raise UsageError(f"unknown recipe {recipe!r}: {registry.nearest(recipe, ['none', *files])}")
    try:
        values = OmegaConf.to_container(OmegaConf.load(files[recipe]))
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise UsageError(f"{files[recipe]} cannot be read: {str(error).strip().splitlines()[0]}") from error
    sections = {group: values.get(group) for group in BRINGS} if isinstance(values, dict) else {}
    return {group: str(keys["name"]) for group, keys in sections.items() if isinstance(keys, dict) and "name" in keys}


def check_purpose(recipe: str, brought: Mapping[str, str], typed: Mapping[str, str]) -> None:
    """Raise `UsageError` where a recipe is for another task, or another stage, than the typed one."""
    for group in ("stage", "task"):
        other = typed.get(group, brought.get(group))
        if group in brought and other != brought[group]:
            raise UsageError(
                f"recipe={recipe} is for {group}={brought[group]}, not {group}={other}: {_fitting(group, str(other))}"
            )
    if "task" in typed and "stage" in brought and "task" not in brought:
        raise UsageError(
            f"recipe={recipe} is for stage={brought['stage']} itself, not for task={typed['task']} on it: "
            f"{_fitting('task', typed['task'])}"
        )


def notes(recipe: str, brought: Mapping[str, str], typed: Mapping[str, str]) -> list[str]:
    """What the recipe chose, and what of it was replaced by typed words."""
    new = [f"{group}={name}" for group, name in brought.items() if group not in typed]
    lines = [f"recipe={recipe} brings {_listed(new)}"] if new else []
    for group in ("data", "model"):
        if group in brought and typed.get(group, brought[group]) != brought[group]:
            lines.append(_replaced(recipe, group, brought[group], typed[group]))
    return lines


def _replaced(recipe: str, group: str, own: str, typed: str) -> str:
    line = f"{group}={typed} replaces {group}={own} of recipe={recipe}"
    if group == "data":
        return line
    other = recipe.replace(f"_{own}_", f"_{typed}_")
    better = f"; those of recipe={other} are for it" if other != recipe and other in recipes() else ""
    return f"{line}: its numbers (optim.*, model.drop_path) are for model={own}{better}"


def _fitting(group: str, name: str) -> str:
    """The recipes that there are for a task or a stage."""
    fitting = [each for each in recipes() if groups_of(each).get(group) == name]
    dots = ", ..." if len(fitting) > 8 else ""
    return f"for {group}={name} there is {', '.join(fitting[:8]) or 'none'}{dots}"


def _listed(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
