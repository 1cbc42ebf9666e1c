"""Answering a test: every question once at any number of processes, going on where it was broken off."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator

from vlbeit import asked, dist, files, ledger
from vlbeit.answer_parts import PartWriter, read_parts
from vlbeit.asked import Asked
from vlbeit.data.records import ChosenRecords, described
from vlbeit.dist import on_main
from vlbeit.engine.device import batch_dtype, make_accelerator, to_device
from vlbeit.engine.evaluate import evaluation_mode
from vlbeit.engine.folder import TEMPORARY, locked, write_errors
from vlbeit.engine.progress import counting
from vlbeit.errors import DataError, Interrupted, UsageError, some
from vlbeit.inference import Trained, check_out, folder_of, task_of
from vlbeit.launch import eval_loader, say
from vlbeit.ledger import Submission
from vlbeit.types import AnswerFile


class Submitted(NamedTuple):
    """What `submit` has made."""

    submission: Submission
    run: str
    file: Path
    was_finished: bool  # by an earlier command: nothing was asked
    notes: list[str]


class _Left(NamedTuple):
    """What an earlier command has left to do."""

    rows: list[int]  # of the records
    unreadable: int  # questions so far whose picture could not be read
    notes: list[str]  # to be told


def submit(
    path: str,
    words: Iterable[str] = (),
    *,
    split: str | None = None,
    questions: Path | None = None,
    images: Path | None = None,
    out: Path | None = None,
    others: Sequence[str] = (),
) -> Submitted:
    """Answer a split of the run's data, or the questions of a file, and write the leaderboard's answer file, checked.

    Everything is kept in `submissions/ID/` of the run folder, where ID hangs on weights, questions and keys; `out` is
    a copy. `split` is given, or else `questions` and `images`. The answers of `others`, further runs, are averaged with
    this one's. What an earlier command has answered, at whatever number of processes it was killed, is not asked again.
    Raises UserError; what was answered by then stays.
    """
    words = list(words)
    if out is not None:
        check_out(out, *([questions] if questions else []))
    run = Trained(path, words)
    run.join(path, others)
    if not hasattr(task_of(run, path), "submission"):
        raise UsageError(f"{path}: task={run.recipe.config.task.name} has no leaderboard file")
    accelerator = make_accelerator(run.config.device, run.config.precision)  # makes the process group
    if split is not None:
        asks = asked.of_split(run, words, split)
    else:
        assert questions is not None and images is not None
        asks = asked.of_file(run, questions, images)
    sheet: AnswerFile = run.recipe.submission(asks.records, run.meta)  # type: ignore[attr-defined]
    identity = asked.identity(run, asks)
    submission = ledger.open_submission(folder_of(run, path), identity)
    was_finished = on_main(lambda: submission.is_finished and submission.answers_file.exists())
    with ExitStack() as stack:
        on_main(lambda: _hold(stack, submission))
        left = on_main(lambda: _begin(submission, identity, asks, {"run": path, "words": words, **run.recipe.noted()}))
        if left.rows:
            _answer(run, asks, left, sheet, submission, accelerator)
        submission.facts = on_main(lambda: _finish(submission, sheet, asks, out))
    notes = [*left.notes, *_doubts(submission)]
    return Submitted(submission, path, out or submission.answers_file, was_finished, notes)


def _hold(stack: ExitStack, submission: Submission) -> None:
    """Keep other commands from answering into the same parts."""
    stack.enter_context(locked(submission.folder / ".lock", "answers these questions; wait for it"))


def _begin(submission: Submission, identity: dict[str, Any], asks: Asked, typed: dict[str, Any]) -> _Left:
    """What is left to be asked; on the main process, before anyone writes."""
    if submission.is_finished and submission.answers_file.exists():
        if files.sha256(submission.answers_file) != submission.sha256:
            raise DataError(
                f"{submission.answers_file} was changed since it was written: restore it, or move {submission.folder} "
                f"away to have the questions answered anew"
            )
        return _Left([], 0, [])
    with write_errors(submission.folder):
        submission.write(
            identity=ledger.identity_hash(identity),
            sha256=None,
            **typed,
            weights=identity["weights"],
            questions={**asks.facts, "rows": identity["questions"]},
            config=identity["config"],
        )
        for leftover in submission.folder.glob(f"{TEMPORARY}*"):  # of a kill
            leftover.unlink()
    ids = asks.records.column("id")[:]
    kept = read_parts(submission.parts)
    rows = [row for row, sample_id in enumerate(ids) if sample_id not in kept.answers]
    before = f", {len(ids) - len(rows)} of them are answered already" if len(rows) < len(ids) else ""
    say(f"answering {len(ids)} questions into {submission.folder}{before}")
    siblings = ledger.submissions_of(submission.folder.parent.parent)
    unfinished = [each for each in siblings if not each.is_finished and each.id != submission.id]
    return _Left(rows, len(kept.unreadable), [_difference(each, identity) for each in unfinished])


def _difference(other: Submission, identity: dict[str, Any]) -> str:
    """In what another submission, which nobody has finished, differs from this one."""
    facts = other.facts
    there = {"weights": facts.get("weights"), "questions": facts.get("questions", {}).get("rows")}
    differing = [name for name, value in there.items() if value != identity[name]]
    return f"{other.folder} is not finished; it is of other {' and '.join(differing) or 'keys'}, and left as it is"


def _answer(
    run: Trained, asks: Asked, left: _Left, sheet: AnswerFile, submission: Submission, accelerator: Accelerator
) -> None:
    """Ask what is left, this process its share, and keep the answers of every batch; then wait for the others."""
    data, count = asks.config.data, len(left.rows)
    bearable = data.max_bad_fraction * len(asks.records) - left.unreadable
    config = replace(asks.config, data=replace(data, max_bad_fraction=min(1.0, max(0.0, bearable / count))))
    loader = eval_loader(config, run.recipe.data(ChosenRecords(asks.records, left.rows), run.meta, train=False))
    run.objective.to(accelerator.device)
    total = len(asks.records)
    try:
        with (
            PartWriter(submission.parts, dist.rank()) as part,
            evaluation_mode(run.objective),
            accelerator.autocast(),
            counting("answered", total, done=total - count) as add,
        ):
            for batch in loader:
                on_device = to_device(batch, accelerator.device, batch_dtype(run.objective))
                answers = sheet.answer(run.objective, on_device)
                with write_errors(submission.parts):
                    part.add(answers, batch["bad"])
                add(len(answers))
    except KeyboardInterrupt:
        raise Interrupted("stopped; what was answered is kept: the same command goes on from here") from None
    dist.barrier()


def _finish(submission: Submission, sheet: AnswerFile, asks: Asked, out: Path | None) -> dict[str, Any]:
    """Make of all parts the answer file; on the main process, when all are through. Returns the submission's facts."""
    if not submission.is_finished:
        kept = read_parts(submission.parts)
        ids = asks.records.column("id")[:]
        if lost := [sample_id for sample_id in ids if sample_id not in kept.answers]:
            raise DataError(
                f"{submission.parts} lacks the answers to {some(lost)} questions: do all processes see that folder? "
                f"The same command asks them again"
            )
        with write_errors(submission.folder):
            count = sheet.write(submission.answers_file, {sample_id: kept.answers[sample_id] for sample_id in ids})
            submission.write(
                sha256=files.sha256(submission.answers_file),
                count=count,
                unreadable=_unreadable(asks, ids, kept.unreadable),
                finished=datetime.now(UTC).isoformat(timespec="seconds"),
            )
    shutil.rmtree(submission.parts, ignore_errors=True)
    if out is not None and not (out.exists() and out.samefile(submission.answers_file)):
        files.write_by(out, lambda temporary: shutil.copyfile(submission.answers_file, temporary))
    return submission.facts


def _unreadable(asks: Asked, ids: Sequence[str], unreadable: set[str]) -> dict[str, Any]:
    """The questions that were answered on a grey picture, and their pictures."""
    rows = [row for row, sample_id in enumerate(ids) if sample_id in unreadable]
    found = [{"id": ids[row], "picture": described(asks.records[row]["image"])} for row in rows]
    return {"questions": len(found), "pictures": len({each["picture"] for each in found}), "which": found}


def _doubts(submission: Submission) -> list[str]:
    """What the answer file may be worth less for than it looks."""
    facts, notes = submission.facts, []
    if (asks := facts["questions"])["count"] < asks.get("of", 0):
        notes.append(f"data.limit leaves {asks['count']} of {asks['of']} questions: a server takes all or none")
    if unreadable := facts["unreadable"]["which"]:
        notes.append(
            f"pictures that cannot be read: {some(list(dict.fromkeys(each['picture'] for each in unreadable)))}; "
            f"{len(unreadable)} questions were answered on a grey one (submission.json names them): mend the pictures "
            f"and move {submission.folder} away to have all answered anew"
        )
    return notes
