"""Arguments that more than one verb takes, as typer reads them."""

from __future__ import annotations

from typing import Annotated

import typer

FREE = {"ignore_unknown_options": True}  # `--lr 1e-3` reaches the words, which name the right key
Words = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...", show_default=False)]
Run = Annotated[str, typer.Argument(metavar="RUN", help="run folder or checkpoint", show_default=False)]
Others = Annotated[
    list[str] | None,
    typer.Option("--with", metavar="RUN", help="another run: answers are those of both together", show_default=False),
]
