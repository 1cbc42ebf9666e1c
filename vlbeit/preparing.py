"""`vlbeit prepare NAME`: any function `prepare` of `vlbeit.data_prep` as a command, its arguments as options."""

from __future__ import annotations

import functools
import inspect
import re
import shlex
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from vlbeit import registry
from vlbeit.errors import UsageError

_WITH_WEIGHTS = re.compile(r" init=(\S+)")


def run(name: str, arguments: list[str]) -> Any:
    """Parse the options of one preparation and run it; `--help` prints them.

    An argument `report` gets a function that prints a line; an argument `out` without a default gets `data/NAME`; an
    underscore at the end is left out (`from_` is --from); one of a named tuple's type stands for its fields. The text
    of an `Annotated[type, text]` describes its option. What the function returns is printed as the next command.
    """
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    command = _command(name, registry.get("prepare", name))
    app.command()(command)
    try:
        return app(arguments, prog_name=f"vlbeit prepare {name}", standalone_mode=False)
    except typer.TyperException:
        if pairs := _pairs(arguments, list(command.__annotations__)):
            dashed = " ".join(f"{_flag(key)} {shlex.quote(value)}" for key, value in pairs)
            written = " ".join(f"{key}={value}" for key, value in pairs)
            raise UsageError(f"options of prepare are written {dashed}, not {written}") from None
        raise


def _command(name: str, function: Callable[..., str | None]) -> Callable[..., None]:
    """The function with the signature that typer reads."""
    hints = typing.get_type_hints(function, include_extras=True)
    groups = {argument: hint for argument, hint in hints.items() if hasattr(hint, "_fields")}
    parameters: list[inspect.Parameter] = []
    for item in inspect.signature(function).parameters.values():
        if item.name in groups:
            parameters += _options(groups[item.name], item.default)
        elif item.name != "report":
            usual = Path("data") / name if item.name == "out" and item.default is item.empty else item.default
            parameters.append(_parameter(item.name, hints[item.name], usual))

    @functools.wraps(function)
    def command(**options: Any) -> None:
        for argument, kind in groups.items():
            options[argument] = kind(**{field: options.pop(field) for field in kind._fields})
        _check_apart(options.get("from_"), options.get("out"))
        following = function(**options, report=functools.partial(print, flush=True))
        if following:
            if weights := _WITH_WEIGHTS.search(following):
                print(
                    f"init={weights[1]} is fetched once; init=RUN starts from a run or file of yours, init=none "
                    f"model=tiny from scratch and small, without a network"
                )
            print(f"next: {following}")
        elif name in registry.names("data"):
            print(f"next: vlbeit train stage=tokenizer{_words(name, options.get('out'))}")

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {item.name: item.annotation for item in parameters}
    return command


def _check_apart(sources: Any, out: Path | None) -> None:
    """Raise UsageError where --out and a folder or shard of --from lie in each other, links followed.

    A list or table may lie where its result goes.
    """
    if not sources or out is None:
        return
    written = out.expanduser().resolve()
    values = [str(value) for value in (sources if isinstance(sources, list) else [sources])]
    for source in (part for value in values for part in {value, *value.split(",")} if part):
        place = Path(source.partition("=")[2] or source).expanduser()
        if not place.is_dir() and place.suffix != ".tar":
            continue
        read = place.resolve()
        if written == read or read in written.parents or written in read.parents:
            raise UsageError(
                f"--out {out} and --from {source} are one folder, or one lies in the other: choose another --out"
            )


def _options(kind: Any, default: Any) -> list[inspect.Parameter]:
    """An option for each field of a named tuple; their defaults are those of the argument, else those of the type."""
    hints = typing.get_type_hints(kind, include_extras=True)
    usual = kind._field_defaults if default is inspect.Parameter.empty else default._asdict()
    return [_parameter(field, hints[field], usual.get(field, inspect.Parameter.empty)) for field in kind._fields]


def _parameter(name: str, hint: Any, usual: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=usual, annotation=_option(name, hint))


def _pairs(words: list[str], names: list[str]) -> list[tuple[str, str]]:
    """The words that give an option as `vlbeit train` takes a key, from=my.csv: name and value."""
    known = {name.rstrip("_") for name in names}
    found = [word.partition("=") for word in words]
    return [(key, value) for key, _, value in found if key.replace("-", "_") in known and value]


def _flag(name: str) -> str:
    return f"--{name.rstrip('_').replace('_', '-')}"


def _option(name: str, hint: Any) -> Any:
    """The type with the option that typer makes of it: its own name where `from` is a word of Python, its text."""
    own = (_flag(name),) if name.endswith("_") else ()
    text = next(iter(getattr(hint, "__metadata__", ())), None)
    kind = hint if text is None else typing.get_args(hint)[0]
    return Annotated[kind, typer.Option(*own, help=text)]


def _words(name: str, out: Path | None) -> str:
    """What selects the prepared data on the command line, where it is not the default."""
    source = "" if name == "scenes" else f" data={name}"
    return source if out is None or out == Path("data") / name else f"{source} data.root={out}"
