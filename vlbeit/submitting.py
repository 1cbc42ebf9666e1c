"""The verb `submit`: answering a test, checking the file, sending it. It parses words and prints, as `vlbeit.cli`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sized
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from vlbeit import dist, table
from vlbeit.arguments import FREE, Others, Run, Words
from vlbeit.data.answer_check import SENT
from vlbeit.errors import UsageError
from vlbeit.leaderboard import verbs

if TYPE_CHECKING:
    from vlbeit.data.answer_check import Report
    from vlbeit.submission import Submitted


class _RunFirst(TyperGroup):
    """A group whose first word may be a run: `vlbeit submit RUN` is `vlbeit submit answer RUN`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["answer", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    help="Answer the questions of a test (`vlbeit submit RUN`), check the answer file, send it to the leaderboard.",
    rich_markup_mode=None,
    cls=_RunFirst,
)
Answers = Annotated[Path, typer.Argument(metavar="FILE", help="answer file, of any program", show_default=False)]


@app.callback(invoke_without_command=True)
def _what_to_do(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command(context_settings=FREE)
def answer(
    run: Run,
    words: Words = None,
    split: Annotated[str | None, typer.Option(help="of the run's data, or of data.root=DIR: test2015")] = None,
    questions: Annotated[Path | None, typer.Option(help="instead: official question file", show_default=False)] = None,
    images: Annotated[Path | None, typer.Option(help="folder of its images", show_default=False)] = None,
    others: Others = None,
    out: Annotated[
        Path | None, typer.Option(help="copy of the answer file; without: RUN/submissions/ID/answers.json alone")
    ] = None,
) -> None:
    """Answer every question and write the answer file; what was broken off goes on. `answer` may be left out."""
    if (split is None) == (questions is None) or (questions is None) != (images is None):
        raise UsageError("name --split test2015 of the run's data, or --questions FILE and --images DIR instead")
    from vlbeit import submission

    found = submission.submit(
        run, words or [], split=split, questions=questions, images=images, out=out, others=others or []
    )
    if dist.is_main():
        _print_submitted(found)


@app.command()
def check(
    file: Answers,
    questions: Annotated[Path, typer.Option(help="official question file that it answers", show_default=False)],
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 for warnings too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> int:
    """Find what a server rejects an answer file for, and what looks like a slip."""
    from vlbeit.data.answer_check import check_file
    from vlbeit.data.answer_file import read_questions

    report = check_file(file, read_questions(questions))
    if as_json:
        print(json.dumps(_as_json(report), ensure_ascii=False, indent=1))
    else:
        _print_report(report)
    return int(bool(report.errors or (strict and report.warnings)))


def _print_submitted(found: Submitted) -> None:
    submission = found.submission
    for line in found.notes:
        print(f"note: {line}")
    if found.was_finished:
        print(f"{submission.folder} was finished before, nothing is asked again: {submission.answers_file}")
    else:
        what = f"answers.json ({submission.facts['count']} answers, checked against the questions), submission.json"
        print(f"wrote {submission.folder}: {what}")
    if found.file != submission.answers_file:
        print(f"wrote {found.file}")
    asked = submission.facts["questions"]
    file = shlex.quote(str(found.file))
    if asked.get("subset") == SENT and asked["count"] == asked["of"]:
        print(f"next: vlbeit submit upload {file} --phase test-dev --method NAME")
    elif "file" in asked:
        print(f"next: vlbeit submit check {file} --questions {shlex.quote(asked['file'])}")
    else:
        print(f"next: vlbeit evaluate {shlex.quote(found.run)} data.val_split={asked['split']}")


def _as_json(report: Report) -> dict[str, Any]:
    return {
        "file": str(report.file),
        "sha256": report.sha256,
        "answers": report.answers,
        "questions": {
            "file": str(report.questions.path),
            "count": len(report.questions.ids),
            "subset": report.questions.subset,
        },
        "accepted": not report.errors,
        "phases": list(report.phases),
        "findings": [asdict(finding) for finding in report.findings],
        "next": _following(report),
    }


def _print_report(report: Report) -> None:
    asked = report.questions
    print(f"{report.file}: {report.answers} answers; {asked.path}: {len(asked.ids)} questions {asked.subset}".rstrip())
    rows = [(each.severity, each.code, each.shown(), each.message) for each in report.findings]
    if rows:
        table.show(("", "what", "count (first)", "meaning"), rows)
        for finding in report.findings:
            print(f"{finding.code}: {finding.remedy}")
    warnings = _counted("warning", report.warnings)
    if report.errors:
        print(f"a server rejects this file: {_counted('error', report.errors)}, {warnings}")
    else:
        fits = f"; it fits the phases {', '.join(report.phases)}" if report.phases else "; no phase of VQA asks for it"
        print(f"no errors, {warnings}{fits}")
    print(f"next: {_following(report)}")


def _counted(what: str, found: Sized) -> str:
    return f"{len(found)} {what}{'s' * (len(found) != 1)}"


def _following(report: Report) -> str:
    """The command to try next."""
    file, asked = shlex.quote(str(report.file)), shlex.quote(str(report.questions.path))
    if report.questions.subset.startswith("test") and any(each.code == "wrong_split" for each in report.errors):
        return f"vlbeit submit RUN --split {SENT}"
    if report.errors:
        return f"mend the file, then vlbeit submit check {file} --questions {asked}"
    if report.phases:
        return f"vlbeit submit upload {file} --phase test-dev --method NAME"
    beside = report.questions.path.with_name(f"v2_mscoco_{report.questions.subset}_annotations.json")
    annotations = shlex.quote(str(beside)) if beside.exists() else "FILE"
    return f"vlbeit evaluate --predictions {file} --annotations {annotations} --questions {asked}"


verbs.add_to(app)
