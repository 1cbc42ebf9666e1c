"""The command that goes on with a run, made of what the run keeps: the words of its config.yaml."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from vlbeit import compose
from vlbeit.config import RunConfig
from vlbeit.engine.folder import RunFolder
from vlbeit.errors import DataError

_SETTLED = ("epochs", "micro_batch_size", "run", "resume", "overwrite")  # by the run, or by what is typed


def check_exported(path: str | Path) -> None:
    """DataError, naming the command, where a run was begun that has no weights yet for anybody."""
    folder = RunFolder(path)
    had_none = not folder.is_exported() and not folder.evaluation_file.exists()  # else they were lost since
    if folder.config_file.exists() and had_none:
        raise DataError(f"{path} has no weights yet: first go on with its training, `{command(path)}`")


def command(path: str | Path) -> str:
    """What to type to go on with the run at `path`. DataError where its config.yaml is missing or damaged."""
    stored = compose.from_yaml(RunFolder(path).config_file)
    groups = [f"stage={stored.tower}", *([f"task={stored.task.name}"] if stored.task else [])]
    groups += [f"model={stored.model.name}", f"data={stored.data.name}"]
    return shlex.join(["vlbeit", "train", *groups, *_words(groups, stored), f"run={path}"])


def _words(groups: list[str], stored: RunConfig) -> list[str]:
    """What the config has that the groups alone do not bring."""
    plain = compose.compose(groups).config
    return [f"{key}={typed(value)}" for key, _, value in compose.differing_keys(plain, stored, ignore=_SETTLED)]


def typed(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, list):
        return f"[{','.join(map(typed, value))}]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
