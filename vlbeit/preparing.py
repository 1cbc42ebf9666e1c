"""`vlbeit prepare NAME`: any function `prepare` of `vlbeit.data_prep` as a command, its arguments as options."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from vlbeit import registry


def run(name: str, arguments: list[str]) -> Any:
    """Parse the options of one preparation and run it; `--help` prints them.

    An argument `report` gets a function that prints a line; an argument `out` without a default gets `data/NAME`; an
    underscore at the end is left out (`from_` is --from). What the function returns is printed as the next command.
    """
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(_command(name, registry.get("prepare", name)))
    return app(arguments, prog_name=f"vlbeit prepare {name}", standalone_mode=False)


def _command(name: str, function: Callable[..., str | None]) -> Callable[..., None]:
    """The function with the signature that typer reads."""
    hints = typing.get_type_hints(function)
    parameters = [
        inspect.Parameter(
            item.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=Path("data") / name if item.name == "out" and item.default is item.empty else item.default,
            annotation=Annotated[hints[item.name], typer.Option(*_option(item.name))],
        )
        for item in inspect.signature(function).parameters.values()
        if item.name != "report"
    ]

    @functools.wraps(function)
    def command(**options: Any) -> None:
        following = function(**options, report=functools.partial(print, flush=True))
        if following:
            print(f"next: {following}")
        elif name in registry.names("data"):
            print(f"next: vlbeit train stage=tokenizer{_words(name, options.get('out'))}")

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {item.name: item.annotation for item in parameters}
    return command


def _option(name: str) -> tuple[str, ...]:
    """The option's name where typer would not make it of the argument's: `from` is a word of Python."""
    return (f"--{name.rstrip('_').replace('_', '-')}",) if name.endswith("_") else ()


def _words(name: str, out: Path | None) -> str:
    """What selects the prepared data on the command line, where it is not the default."""
    source = "" if name == "scenes" else f" data={name}"
    return source if out is None or out == Path("data") / name else f"{source} data.root={out}"
