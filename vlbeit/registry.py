"""Finds a stage, task, data source or data preparation by name. Registering is not importing.

`names` reads source files as text (no torch, no Hydra, no code of a plug-in is run); `get` imports the one module asked
for. In the package a module registers its class by `RECIPE = TheClass` (stages, tasks) or `SOURCE = TheClass` (data
sources), a preparation is a function `prepare`. Another distribution registers by an entry point
`NAME = "module:TheClass"` of the groups `vlbeit.stages`, `vlbeit.tasks`, `vlbeit.data`.
"""

from __future__ import annotations

import ast
import difflib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from vlbeit.errors import UsageError


class _Group(NamedTuple):
    package: str  # where the package's own modules lie
    symbol: str  # the module-level name that is registered
    plugins: str | None  # entry-point group
    noun: str


_GROUPS = {
    "stage": _Group("vlbeit.stages", "RECIPE", "vlbeit.stages", "stage"),
    "task": _Group("vlbeit.tasks", "RECIPE", "vlbeit.tasks", "task"),
    "data": _Group("vlbeit.data.sources", "SOURCE", "vlbeit.data", "data source"),
    "prepare": _Group("vlbeit.data_prep", "prepare", None, "preparation"),
}


_INSTEAD: dict[str, Any] = {}


class _Found(NamedTuple):
    module: str
    symbol: str
    origin: str  # for messages
    path: Path | None = None  # of a module of the package
    entry: EntryPoint | None = None  # of a plug-in


def names(group: str) -> dict[str, str]:
    """Every registered name of a group ("stage", "task", "data", "prepare") with the first line of its docstring.

    A plug-in that cannot be loaded shows `broken: reason`, a name taken twice `broken: registered twice: ...`.
    """
    return {name: _summary(found) for name, found in sorted(_find(group).items())}


def get(group: str, name: str) -> Any:
    """Import and return the class (of "prepare": the function) registered under `name`.

    Raises `UsageError` for an unknown name (with the nearest ones), a name taken twice, a plug-in that does not load.
    """
    if group in _INSTEAD:
        return _INSTEAD[group]
    found = _find(group)
    noun = _GROUPS[group].noun
    if name not in found:
        raise UsageError(f"unknown {noun} {name!r}: {nearest(name, found)}")
    if len(found[name]) > 1:
        raise UsageError(f"{group}={name}: {_twice(found[name])}; uninstall one of them")
    module, symbol, origin, _, entry = found[name][0]
    if entry is None:
        value = getattr(import_module(module), symbol)
    else:
        try:
            value = entry.load()
        except Exception as error:  # whatever a plug-in raises is its own fault, and is said in one line
            raise UsageError(f"{group}={name}: {origin} does not load: {type(error).__name__}: {error}") from error
    return value


@contextmanager
def instead(group: str, value: Any) -> Iterator[None]:
    """Within it `get` gives `value` for every name of the group: data that need not be there, say."""
    _INSTEAD[group] = value
    try:
        yield
    finally:
        del _INSTEAD[group]


_MOST_NAMED = 30  # choices in a message


def nearest(name: str, choices: Iterable[str]) -> str:
    """`did you mean A?` where a choice is near, and the list of all of them; of very many those that resemble it."""
    choices = sorted(choices)
    close = difflib.get_close_matches(name, choices, n=2)
    guess = f"did you mean {' or '.join(close)}? " if close else ""
    listed = choices if len(choices) <= _MOST_NAMED else difflib.get_close_matches(name, choices, n=8, cutoff=0.3)
    more = f"{', and' if listed else ''} {len(choices) - len(listed)} more" * (len(listed) < len(choices))
    return f"{guess}there is {', '.join(listed)}{more}" if choices else f"{guess}there is none"


def _find(group: str) -> dict[str, list[_Found]]:
    """Everything registered, by name; more than one entry under a name is a conflict."""
    return _found_on(tuple(sys.path), group)


@cache
def _found_on(search_path: tuple[str, ...], group: str) -> dict[str, list[_Found]]:
    """Read once for a search path, which is the cache's key: a command asks a dozen times."""
    if group not in _GROUPS:
        raise ValueError(f"registry group {group!r} is not one of {', '.join(_GROUPS)}")
    own = _GROUPS[group]
    found: dict[str, list[_Found]] = {}
    for name, path in _modules(own.package).items():
        if own.symbol in _top_level(ast.parse(path.read_text(encoding="utf-8"))):
            found[name] = [_Found(f"{own.package}.{name}", own.symbol, f"{own.package}.{name}", path)]
    seen = set()  # a distribution that lies on the path twice is still one
    for entry in entry_points(group=own.plugins) if own.plugins else ():
        distribution = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown distribution"
        if (entry.name, entry.value, distribution) not in seen:
            seen.add((entry.name, entry.value, distribution))
            module_name, _, symbol = entry.value.partition(":")
            origin = f"{entry.value} of the plug-in {distribution}"
            found.setdefault(entry.name, []).append(_Found(module_name.strip(), symbol.strip(), origin, entry=entry))
    return found


def _modules(package: str) -> dict[str, Path]:
    """Name -> file of the modules and sub-packages of one of our packages, found without importing them."""
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations is not None, package
    modules = {}
    for folder in map(Path, spec.submodule_search_locations):
        modules.update({path.stem: path for path in folder.glob("*.py") if path.name != "__init__.py"})
        modules.update({path.parent.name: path for path in folder.glob("*/__init__.py")})
    return modules


def _top_level(tree: ast.Module) -> dict[str, ast.AST]:
    """Names that a module defines at its top level, with the assigned value or the definition."""
    defined: dict[str, ast.AST] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            defined.update({target.id: node.value for target in node.targets if isinstance(target, ast.Name)})
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            defined[node.target.id] = node.value
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            defined[node.name] = node
    return defined


def _summary(found: list[_Found]) -> str:
    """First docstring line of what is registered, else of its module."""
    if len(found) > 1:
        return f"broken: {_twice(found)}"
    module, symbol, _, path, entry = found[0]
    try:
        tree = ast.parse((path or _source(module)).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError, LookupError) as error:
        return f"broken: {error}"
    if entry is not None and (missing := _missing_imports(tree)):
        return f"broken: {module} imports {', '.join(missing)}, which is not installed"
    defined = _top_level(tree)
    node = defined.get(symbol)
    if isinstance(node, ast.Name):  # RECIPE = TheClass
        node = defined.get(node.id)
    text = ast.get_docstring(node) if isinstance(node, ast.ClassDef | ast.FunctionDef) else None
    return (text or ast.get_docstring(tree) or "").partition("\n")[0]


def _source(module: str) -> Path:
    """File of a plug-in's module. The import system is asked for the top package only: a longer name would run code."""
    top, *rest = module.split(".")
    spec = find_spec(top)
    if spec is None:
        raise LookupError(f"{top} is not installed")
    if not rest:
        if spec.origin is None:
            raise LookupError(f"{module} is not a module")
        return Path(spec.origin)
    for folder in map(Path, spec.submodule_search_locations or ()):
        for path in (folder.joinpath(*rest).with_suffix(".py"), folder.joinpath(*rest, "__init__.py")):
            if path.is_file():
                return path
    raise LookupError(f"{top} has no module {'.'.join(rest)}")


def _missing_imports(tree: ast.Module) -> list[str]:
    """Top-level packages that a file imports first thing and that are not installed."""
    tops: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            tops.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            tops.add(node.module.partition(".")[0])
    return sorted(top for top in tops if find_spec(top) is None)


def _twice(found: list[_Found]) -> str:
    return f"registered twice: by {' and by '.join(item.origin for item in found)}"
