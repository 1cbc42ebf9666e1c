"""The command line: one verb each. Answers `--help` and `tasks` without importing torch or Hydra.

The verbs parse words and print; what they do lies in `launch` and below, imported when a verb runs.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import vlbeit
from vlbeit import dist, evaluating, inspecting, predicting, registry, slurm, submitting, table
from vlbeit.arguments import FREE, Run, Words
from vlbeit.errors import Interrupted, UserError

app = typer.Typer(
    name="vlbeit",
    help="From pictures to a VQA answer file: BEiT image towers, VLMo vision-language models, tasks on top of both.",
    epilog="Settings are written key=value: `vlbeit train stage=mim data=imagefolder data.root=DIR optim.lr=1e-3`.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(inspecting.app, name="inspect")
app.add_typer(submitting.app, name="submit")
_OF_THE_PLACE = (  # what a disk, its permissions and names may refuse: no fault of ours
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR, errno.EISDIR,
    errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.EMFILE, errno.ENOMEM,
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; the exit status is 0, 1 (data), 2 (usage) or 130 (interrupted)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    slurm.take_ranks(os.environ)
    try:
        result = app(arguments or ["--help"], prog_name="vlbeit", standalone_mode=False)
        dist.leave()
        return result if isinstance(result, int) else 0
    except Interrupted as error:  # all processes stop after the same step
        dist.leave()
        if not error.quiet:
            print(error, file=sys.stderr)
        return error.exit_code
    except UserError as error:
        return error.exit_code if error.quiet else _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        return _fail(error.format_message(), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `vlbeit tasks | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in _OF_THE_PLACE:
            raise
        return _fail(f"{error.filename or 'file'}: {error.strerror}; nothing that was there before is lost", 1)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(vlbeit.__version__)


@app.command(context_settings=FREE, add_help_option=False)
def train(
    words: Words = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved config and stop.")] = False,
    multirun: Annotated[bool, typer.Option("--multirun", help="key=a,b runs every combination.")] = False,
    profile: Annotated[
        int, typer.Option("--profile", metavar="N", help="Trace N steps by torch's profiler.", min=0)
    ] = 0,
    help_: Annotated[bool, typer.Option("--help", help="Print every key with its default and meaning.")] = False,
) -> None:
    """Train a stage (stage=mim) or a task on its tower (stage=vl task=vqa)."""
    from vlbeit import compose

    words = words or []
    if help_:
        print("vlbeit train [--dry-run] [--multirun] [--profile N] KEY=VALUE...\n")
        table.show(("key", "default", "meaning"), compose.describe_keys(words))
        return
    runs = _swept(words, profile, dry_run) if multirun else [compose.compose(words)]
    for config, notes, command, typed in runs:
        if os.environ.get("RANK", "0") == "0":
            print(*notes, sep="\n", end="\n" if notes else "", flush=True)
        if dry_run:
            print(compose.to_yaml(config), end="")
            continue
        from vlbeit import launch

        launch.train(config, command, typed, profile, alone=not multirun)
    if multirun and runs and not dry_run:
        from vlbeit.multirun import show_trained

        show_trained([config for config, *_ in runs])


def _swept(words: list[str], profile: int, dry_run: bool) -> list[Any]:
    """Every combination; those that go into a queue are sent there, and none is left to be trained here."""
    from vlbeit import compose, multirun

    launcher, rest = multirun.split(words)
    runs = compose.compose_many(rest)
    if dry_run or launcher.name == "basic":
        return runs
    print(*multirun.submit(runs, launcher, profile), sep="\n")
    return []


@app.command(context_settings=FREE)
def plan(
    words: Words = None,
    devices: Annotated[int, typer.Option(help="accelerators, all processes together")] = 1,
    memory: Annotated[float, typer.Option(help="GiB of each")] = 80.0,
    shard: Annotated[str, typer.Option(help="ddp | fsdp: how weights lie on them")] = "ddp",
    peak: Annotated[
        float | None, typer.Option(help="TFLOP/s of each; default: an A100's in the run's precision")
    ] = None,
    utilisation: Annotated[float, typer.Option(help="share of the peak that is reached")] = 0.4,
    samples: Annotated[
        int | None, typer.Option(help="records of the training split; of packed texts the rows", show_default=False)
    ] = None,
    labels: Annotated[int | None, typer.Option(help="classes or answers of the head", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Print what `vlbeit train` with these words would cost: steps, FLOPs, memory of a device, time.

    Needs no data; where it lies at hand its records are counted, once: --samples spares that.
    """
    from vlbeit.planning import planner

    found = planner.plan(
        words or [], planner.Machine(devices, memory, shard, peak, utilisation), planner.Assumed(samples, labels)
    )
    if as_json:
        print(json.dumps(found.to_json(), indent=1))
        return
    from vlbeit.planning.report import rows

    table.show((found.title, ""), rows(found))
    print(*(f"note: {note}" for note in found.notes), sep="\n", end="\n" if found.notes else "")
    start = f"accelerate launch --num_processes {devices} -m vlbeit" if devices > 1 else "vlbeit"
    print(f"next: {start} train {shlex.join(words or [])}")


app.command(context_settings=FREE)(evaluating.evaluate)
app.command()(predicting.predict)


@app.command()
def export(
    run: Run,
    out: Annotated[Path, typer.Argument(metavar="FILE", help="such as model.onnx", show_default=False)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Write a run as an ONNX graph: image features, class logits, or answer logits of image and question."""
    from vlbeit import exporting

    found = exporting.export(run, out, overwrite=overwrite)
    table.show(("", "name", "type", "shape"), found.signature)
    print(f"checked in onnxruntime against torch at {found.checked}: largest difference {found.difference:.2g}")
    print(f"metadata: {', '.join(found.metadata)}")
    print(f"wrote {', '.join(map(str, found.files))}\nnext: {found.usage}")


@app.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="run, checkpoint, or foreign file", show_default=False)],
    out: Annotated[Path, typer.Argument(metavar="DST", help="folder to write", show_default=False)],
    to: Annotated[str, typer.Option(help="vlbeit | timm | transformers | unilm")] = "vlbeit",
    num_heads: Annotated[int | None, typer.Option(help="where a file does not tell", min=1, show_default=False)] = None,
    image_size: Annotated[
        str | None,
        typer.Option(metavar="N|HxW", help="pixels, where a file does not tell: 224, or 224x96", show_default=False),
    ] = None,
    text_positions: Annotated[
        int | None, typer.Option(help="longest text of a VLMo table, if not 196", min=1, show_default=False)
    ] = None,
    early_layers: Annotated[
        int | None, typer.Option(help="blocks below BEiT v2's patch aggregation", min=1, show_default=False)
    ] = None,
    normalize: Annotated[
        str | None, typer.Option(help="half | imagenet: how its pictures are normalised", show_default=False)
    ] = None,
    allow: Annotated[list[str] | None, typer.Option(help="name that may be in excess; a * fits all")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write where something lies already.")] = False,
) -> None:
    """Bring a checkpoint from or to other programs: official BEiT and VLMo files, timm, transformers."""
    from vlbeit import converting
    from vlbeit.models.convert.layout import Hints

    size = None if image_size is None else converting.read_size(image_size)
    given = Hints(num_heads, size, text_positions, early_layers, normalize)
    hints = None if given == Hints() else given
    done = converting.run(source, out, to=to, hints=hints, allow=allow or [], overwrite=overwrite)
    print(*done.lines, f"wrote {', '.join(map(str, done.written))}", f"next: {done.next}", sep="\n")


@app.command(context_settings={**FREE, "allow_extra_args": True}, add_help_option=False)
def prepare(context: typer.Context, name: Annotated[str, typer.Argument()] = "") -> Any:
    """Make or index data: `vlbeit prepare scenes --out data/scenes`; without a name, list what there is."""
    if name in ("", "--help"):
        print("vlbeit prepare NAME [OPTIONS]; `vlbeit prepare NAME --help` tells the options of one\n")
        table.show(("NAME", ""), registry.names("prepare").items())
        return 0
    from vlbeit import preparing

    return preparing.run(name, context.args)


@app.command()
def demo() -> Any:
    """Run the whole chain on the built-in data and print what it reached."""
    from vlbeit import demo as chain_demo

    return chain_demo.run()


@app.command()
def tasks() -> None:
    """List stages, tasks and data sources, those of plug-ins included."""
    for group, title in (("stage", "stages"), ("task", "tasks"), ("data", "data sources")):
        table.show((f"{group}=", ""), registry.names(group).items(), title=title)
        print()
    print("next: vlbeit train stage=mim --help")


@app.command()
def models(as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False) -> None:
    """List the model presets and the published weights that can be loaded by name."""
    from dataclasses import asdict

    from vlbeit.models import fetch
    from vlbeit.models.known import KNOWN
    from vlbeit.models.presets import PRESETS

    weights = [(published, fetch.here(published)) for published in KNOWN.values()]
    if as_json:
        presets = [asdict(preset) for preset in PRESETS.values()]
        published = [{**each._asdict(), "here": None if path is None else str(path)} for each, path in weights]
        print(json.dumps({"presets": presets, "published": published}, indent=1))
        return
    columns = ("patch_size", "embed_dim", "depth", "num_heads", "fused_layers", "layer_scale", "positions")
    rows = [(name, *(getattr(preset, column) for column in columns)) for name, preset in PRESETS.items()]
    table.show(("model=", *columns), rows, title="presets")
    print()
    lines = [fetch.describe(each, path) for each, path in weights]
    table.show(("name", "what", "size", "licence", "from", "here"), lines, title="published weights")
    print("\nnext: vlbeit train stage=mim model=base data=imagefolder data.root=DIR")


@app.command()
def compare(
    run_a: Annotated[str, typer.Argument(metavar="RUN_A", help="evaluated run, or its evaluation-X.json")],
    run_b: Annotated[str, typer.Argument(metavar="RUN_B", help="another one on the same data")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Compare two evaluated runs of one task sample by sample: how far apart they are, and how sure that is."""
    from vlbeit import comparing

    found = comparing.compare(Path(run_a), Path(run_b))
    if as_json:
        print(json.dumps(comparing.as_json(found), indent=1, ensure_ascii=False))
        return
    columns, rows = comparing.as_table(found)
    print(found.heading)
    table.show(columns, rows)
    print(*found.notes, found.verdict, f"next: {found.next}", sep="\n")


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument()] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """List the runs of a folder: task, tower, data, what each reached, what it cost.

    The cost, time included, is that of the training steps: without start-up, evaluation and saving.
    """
    from vlbeit import runs as listing

    found = listing.list_runs(folder)
    if as_json:
        print(json.dumps([run._asdict() for run in found], indent=1, ensure_ascii=False))
        return
    table.show(listing.COLUMNS, [listing.cells(run) for run in found])
    print(f"next: {listing.following(found)}")


@app.command()
def checks(as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False) -> int:
    """Look at what works here: versions, devices, threads, disk, tokens, proxies."""
    from vlbeit.checks import run_checks

    found = run_checks()
    if as_json:
        print(json.dumps([check._asdict() for check in found], indent=1))
    else:
        table.show(("", "check", "found", "remedy"), [(c.status, c.name, c.found, c.remedy) for c in found])
        print("next: vlbeit demo runs the whole chain on the built-in data")
    return int(any(check.status == "fail" for check in found))


def _fail(message: str, code: int) -> int:
    print(f"error: {' '.join(message.splitlines())}", file=sys.stderr)
    return code
