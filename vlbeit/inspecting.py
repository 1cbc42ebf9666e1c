"""The verb `inspect`: looking into runs and data. It parses words and prints, as `vlbeit.cli`; the rest loads late."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlbeit import table
from vlbeit.errors import UsageError

if TYPE_CHECKING:
    from vlbeit.attention.figure import Inspected
    from vlbeit.attention.measure import Measured
    from vlbeit.health.report import Report

app = typer.Typer(
    help="Look into a run, `vlbeit inspect attention RUN PICTURE`, or into data, `vlbeit inspect data PATH`.",
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _what_to_inspect(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def attention(
    run: Annotated[str, typer.Argument(metavar="RUN", help="run, checkpoint or published name", show_default=False)],
    picture: Annotated[Path | None, typer.Argument(metavar="PICTURE", help="image file", show_default=False)] = None,
    points: Annotated[
        str | None, typer.Option(help="3: so many, spread out; '0.3,0.5;0.7,0.2': as shares x,y; without: 3")
    ] = None,
    layer: Annotated[int, typer.Option(help="block from 0, or from the end: -1 is the last")] = -1,
    heads: Annotated[str | None, typer.Option(help="all, or such as 0,3; without: all")] = None,
    image_size: Annotated[str | None, typer.Option(metavar="N|HxW", help="pixels: more make a finer grid")] = None,
    data: Annotated[str | None, typer.Option(help="instead of a picture: measure on objects of this data")] = None,
    root: Annotated[str | None, typer.Option(help="where the data lies, if not where the run's")] = None,
    split: Annotated[str | None, typer.Option(help="of the data; without: val")] = None,
    limit: Annotated[int | None, typer.Option(help="pictures of the data; all without", min=1)] = None,
    reduce_zero_label: Annotated[
        bool | None, typer.Option(help="whether label 0 of the data's masks is no class; without: it is none")
    ] = None,
    against: Annotated[
        list[str] | None, typer.Option(help="run to compare with, also several times: a supervised one, say")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="file to write; without: attention.png or attention.json in the run")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Draw where a tower looks from points of a picture, or measure with --data how well that covers objects."""
    from vlbeit.attention import figure, measure
    from vlbeit.converting import read_size

    if (picture is None) == (data is None):
        raise UsageError("name a picture to draw maps of, or --data NAME to measure on: one of the two")
    size = None if image_size is None else read_size(image_size)
    if picture is not None:
        _refuse(
            "--data NAME", root=root, split=split, limit=limit, reduce_zero_label=reduce_zero_label, against=against
        )
        file, points, heads = out or measure.folder_of(run) / "attention.png", points or "3", heads or "all"
        drawn = figure.inspect_picture(run, picture, file, points=points, layer=layer, heads=heads, image_size=size)
        _print_maps(drawn, as_json)
    if data is not None:
        _refuse("a picture", points=points, heads=heads)
        place = measure.data_config(run, data, root=root, split=split or "val", limit=limit)
        zero = reduce_zero_label is not False
        found = measure.measure(
            run, place, against=against or [], layer=layer, image_size=size, reduce_zero_label=zero, out=out
        )
        _print_overlaps(found, as_json)


@app.command()
def data(
    path: Annotated[str, typer.Argument(metavar="PATH", help="folder, table, or hub:NAME", show_default=False)],
    name: Annotated[
        str | None, typer.Option("--data", help="its data source: vqa_v2, vqa, imagefolder, ...; without: found out")
    ] = None,
    train_split: Annotated[str, typer.Option(help="split that is trained on")] = "train",
    val_split: Annotated[str, typer.Option(help="split that is evaluated")] = "val",
    columns: Annotated[list[str] | None, typer.Option(help="as data.columns: question:its_name,...")] = None,
    images: Annotated[str, typer.Option(help="as data.images: folder of a table's pictures", show_default=False)] = "",
    min_count: Annotated[int, typer.Option(help="as task.min_count, for vocabulary and ceiling", min=1)] = 9,
    max_length: Annotated[int, typer.Option(help="as text.max_length, for questions too long", min=3)] = 40,
    thorough: Annotated[
        bool, typer.Option("--thorough", help="Decode every picture, and look for near copies between splits.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings too make the exit code 1.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> int:
    """Check data before training: pictures, ids, questions, answers, texts, leakage. Exit code 0: safe; 1: not."""
    from vlbeit.config import DataConfig
    from vlbeit.health import progress
    from vlbeit.health.report import Wanted, inspect

    place = DataConfig(
        name=name or "", root=path, train_split=train_split, val_split=val_split, columns=columns or [], images=images
    )
    found = inspect(Wanted(place, min_count, max_length, thorough, strict), progress.say)
    if as_json:
        print(json.dumps(found.to_json()))  # ASCII: damaged data may hold what UTF-8 cannot
    else:
        _print_health(found)
    return int(bool(found.unsafe))


def _refuse(what: str, **options: Any) -> None:
    """Raise UsageError for an option that goes with `what` and means nothing here."""
    for name, value in options.items():
        if value is not None and value != []:
            word = ("no-" if value is False else "") + name.replace("_", "-")
            raise UsageError(f"--{word} goes with {what}: leave it out")


def _print_maps(drawn: Inspected, as_json: bool) -> None:
    if as_json:
        print(json.dumps(drawn.to_json()))
        return
    rows = [
        (number, f"{p.x:g}, {p.y:g}", "{}, {}".format(*p.cell(drawn.grid))) for number, p in enumerate(drawn.points, 1)
    ]
    table.show(("point", "x, y", "patch (row, column)"), rows)
    heads = ", ".join(map(str, drawn.heads))
    print(f"block {drawn.layer}, heads {heads}, {drawn.grid[0]}x{drawn.grid[1]} patches\nwrote {drawn.file}")
    print("next: --layer, --points '0.3,0.5;0.7,0.2' and --image-size change what is looked at")


def _print_overlaps(found: Measured, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found.to_json()))
        return
    table.show(("weights", "best head", "one head", "the run's lead"), found.rows())
    facts = found.facts
    over = f"{facts['pictures']} pictures with {facts['objects']} objects"
    print(f"Jaccard index, mean over {over} (95 % interval), block {facts['layer']}")
    grid = "{}x{}".format(*facts["grid"])
    print(f"of {grid} patches the best sets reach {facts['ceiling']:.3f}, discs around the point {facts['disc']:.3f}")
    print(f"wrote {found.file}")


def _print_health(found: Report) -> None:
    from vlbeit.health import show

    verdict = show.verdict(found)
    print(verdict[0], end="\n\n")  # and once more below the tables, which may be long
    for title, columns, rows in show.tables(found):
        table.show(columns, rows, title=title)
        print()
    print(*show.findings(found), sep="\n")
    print(*verdict, sep="\n")
