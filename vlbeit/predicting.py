"""The verb `predict`: what a run finds in one image, or in many. It parses words and prints, as `vlbeit.cli`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from vlbeit import table
from vlbeit.arguments import Run
from vlbeit.errors import UsageError


def predict(
    run: Run,
    subject: Annotated[
        str, typer.Argument(metavar="IMAGE", help="image file; with --images a text", show_default=False)
    ],
    question: Annotated[str | None, typer.Argument(help="for tasks that take one", show_default=False)] = None,
    statement: Annotated[
        str | None, typer.Argument(help="about two images, the second in place of the question", show_default=False)
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="retrieval: pictures to search by a text", show_default=False)
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="retrieval: texts to choose from, a line each, or JSON", show_default=False),
    ] = None,
    top: Annotated[int, typer.Option(help="number of answers", min=1)] = 5,
    out: Annotated[
        Path | None, typer.Option(help="picture to write, the result drawn on it: overlay.png", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Print what a task's run finds in one image, or says about two: the most probable answers, or what is where.

    A run of task=retrieval searches: vlbeit predict RUN "a red circle" --images DIR, or RUN picture.jpg --texts FILE.
    One of task=nlvr2 judges: vlbeit predict RUN left.jpg right.jpg "both pictures show a circle".
    """
    if images is not None or texts is not None:
        rows = _search(run, subject, question or statement, images, texts, top, out)
    else:
        from vlbeit.data.records import open_named

        seen, text = ([subject], question) if statement is None else ([subject, question or ""], statement)
        if statement is None and question is None and not Path(subject).exists() and " " in subject:
            raise UsageError(f"{subject!r} is no picture; for a text name the pictures to search: --images DIR")
        for each in seen:
            open_named(Path(each))  # what is wrong with it is said before torch is loaded
        from vlbeit import inference

        rows = inference.predict(run, list(map(Path, seen)), text, top=top, out=out)
    columns = getattr(rows[0], "_fields", ("answer", "probability")) if rows else ()
    if as_json:
        print(json.dumps([dict(zip(columns, row, strict=True)) for row in rows], ensure_ascii=False))
        return
    if rows:
        table.show(columns, [[table.cell(value) for value in row] for row in rows])
    else:
        print("nothing found")
    from vlbeit.runs import is_measured

    lines = [] if out is None else [f"wrote {out}"]
    print(*lines, *([] if is_measured(run) else [f"next: vlbeit evaluate {shlex.quote(run)}"]), sep="\n")


def _search(
    run: str, subject: str, question: str | None, images: Path | None, texts: Path | None, top: int, out: Path | None
) -> Any:
    from vlbeit import searching

    if question is not None or (images is not None and texts is not None):
        raise UsageError(
            'write vlbeit predict RUN "a text" --images DIR, or vlbeit predict RUN picture.jpg --texts FILE'
        )
    if images is not None:
        return searching.search_pictures(run, subject, images, top=top, out=out)
    assert texts is not None
    return searching.search_texts(run, Path(subject), texts, top=top, out=out)
