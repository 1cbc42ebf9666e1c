"""The verb `evaluate`: a run on its data, or an answer file. It parses words and prints, as `vlbeit.cli`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlbeit import dist, table
from vlbeit.arguments import Others, Words
from vlbeit.errors import UsageError

if TYPE_CHECKING:
    from vlbeit.inference import Evaluation


def evaluate(
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="run folder or checkpoint")] = None,
    words: Words = None,
    others: Others = None,
    predictions: Annotated[Path | None, typer.Option(help="instead of a run: answers to score")] = None,
    annotations: Annotated[Path | None, typer.Option(help="their official annotation file")] = None,
    questions: Annotated[Path | None, typer.Option(help="the question file: for the blind baseline")] = None,
    out: Annotated[Path, typer.Option(help="where the score of --predictions goes")] = Path("result.json"),
    only_answered: Annotated[bool, typer.Option("--only-answered", help="Leave out what has no answer.")] = False,
) -> None:
    """Evaluate a run: prints its numbers, by class or type too where it has such, and writes evaluation.json.

    With --predictions: the official VQA score of an answer file that any program wrote, or of lmms-eval's samples.
    """
    if predictions is not None:
        _score_file(run, words or [], predictions, annotations, questions, out, only_answered)
        return
    if run is None:
        raise UsageError("name a run: vlbeit evaluate runs/vl-vqa; or --predictions FILE --annotations FILE")
    from vlbeit import inference
    from vlbeit.models.known import KNOWN

    found = inference.evaluate(run, words or [], others or [])
    if dist.is_main():
        subset = any(word.startswith("task.subset=") for word in words or [])  # what is published is of all classes
        _show(found, KNOWN[run].metrics if run in KNOWN and not subset else {})


def _show(found: Evaluation, published: Mapping[str, float]) -> None:
    columns = {"metric": list(found.numbers), "value": [f"{value:.6g}" for value in found.numbers.values()]}
    if found.intervals:
        spans = {name: table.between(interval) for name, interval in found.intervals.items()}
        columns[f"95 % over {found.over}"] = [spans.get(name, "") for name in found.numbers]
    if published:
        columns["published"] = [str(published.get(name, "")) for name in found.numbers]
    table.show(list(columns), zip(*columns.values(), strict=True))
    if found.samples:
        print(f"over {found.samples} samples")
    for rows in found.tables:
        print()
        names = list(rows[0])
        table.show(names, [[table.cell(row.get(name)) or "-" for name in names] for row in rows])
    written = list(map(str, found.written))
    written[0] += " (replaced)" if found.replaced else ""
    print(f"wrote {', '.join(written)}\nnext: {found.following}")


def _score_file(
    run: str | None,
    words: list[str],
    predictions: Path,
    annotations: Path | None,
    questions: Path | None,
    out: Path,
    only_answered: bool,
) -> None:
    if run is not None or words:
        raise UsageError(f"{run or words[0]}: --predictions scores a file, without a run; leave it out")
    if annotations is None:
        raise UsageError("--predictions needs --annotations: the official file, v2_mscoco_val2014_annotations.json")
    from vlbeit import scoring

    found = scoring.score_file(predictions, annotations, questions, out, only_answered=only_answered)
    print(*found.notes, sep="\n")
    flat = [(name, value) for name, value in found.result.items() if isinstance(value, int | float)]
    table.show(("metric", "value"), [(name, f"{value:.6g}") for name, value in flat])
    print(f"wrote {found.written}: also by answer type, question type and question")
    print("next: vlbeit submit check FILE --questions FILE, before answers to a test split go to the leaderboard")
