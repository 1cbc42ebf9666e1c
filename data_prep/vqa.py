"""Questions of your own for data=vqa: a checked folder, split by picture, out of a table or a data set of the hub."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow.parquet as pq

from vlbeit import hub
from vlbeit.config import share_or_number
from vlbeit.data.answers import MIN_COUNT, build_vocabulary, counted_answers, coverage, fitting_min_count
from vlbeit.data.following import VLMO, next_command
from vlbeit.data.row_files import Table, open_table, stored_table
from vlbeit.data.vqa_rows import Question, VQARows, parse_columns
from vlbeit.data.vqa_splits import HELD_OUT, Placed, Rule, Survey, Undivided, described, split_of, table_files
from vlbeit.errors import DataError, UsageError

from .pictures import Check, examine_picture
from .preparation import Options, Out, Plan, ShardMB, Split, Threads, fingerprint, given, run
from .progress import Report, counted
from .shards import Fault, Finding, Item, Layout, Position

_TOO_MANY = 0.5  # share of rows that are no use: beyond it the table is not read as it was meant
_OPTION = "--columns {}"
_MARKS = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"GIF8": ".gif", b"RIFF": ".webp", b"BM": ".bmp"}


def prepare(
    out: Out,
    *,
    from_: Annotated[list[str], "table, tables train.csv,val.csv, folder of them, or hub:OWNER/NAME"],
    images: Annotated[str, "folder that paths of pictures start from; else the table's own"] = "",
    columns: Annotated[list[str] | None, "MEANING:COLUMN,..., where columns have other names"] = None,
    held_out: Annotated[float, "pictures, or a share below 1, for val, where the data names none"] = HELD_OUT,
    seed: Annotated[int, "which pictures are held out"] = 0,
    format: Annotated[
        Literal["auto", "index", "folder"],
        "index leaves pictures where they are, folder writes each as a file; auto: folder for those inside a table",
    ] = "auto",
    check: Check = "header",
    threads: Threads = 0,
    shard_mb: ShardMB = 256,
    report: Report | None = None,
) -> str:
    """Prepare questions of your own, with or without answers, for data=vqa.

    A table is .csv, .tsv, .jsonl, .json or .parquet. Its columns are image (a path below --images, or the picture
    itself), question and answers; other names are given by --columns question:its_name,answers:its_name. No picture
    comes into two splits. Rows that are no use are left out and listed in bad.jsonl. The same command after an
    interruption goes on where it stopped.
    """
    say = report or (lambda line: None)
    if not held_out or not share_or_number(held_out):
        raise UsageError(f"--held-out {held_out:g}: give a share of the pictures below 1, or a number of them")
    if images and not Path(images).expanduser().is_dir():
        raise DataError(f"--images {images} is no folder")
    sources = given(from_)
    rows = VQARows(_tables(sources), parse_columns(columns or [], _OPTION), images, _OPTION)
    sizes = _Sizes()
    try:
        survey = Survey(sizes.of(counted(rows, "reading: {} rows", say)), Rule(held_out, seed))
    except Undivided as error:
        raise DataError(f"--from {','.join(sources)}: {error.said('--{}').replace('held_out', 'held-out')}") from error
    _refuse(survey, sources)
    if survey.note:
        say(survey.note)
    arguments = {
        "from": [print_ for source in sources for print_ in _prints(source)], "rows": survey.rows, "images": images,
        "columns": columns or [], "held_out": held_out, "seed": seed, "check": check, "shard_mb": shard_mb,
    }  # fmt: skip
    plan = Plan(
        layout=Layout("vqa", _format(format, sizes.inside), arguments),
        classes=[],
        splits=[
            Split(split, sizes.bytes(survey.pictures(split)), _items(rows, survey, split)) for split in survey.splits
        ],
        examine=_Examination(check),
        archives=[],
    )
    facts = run(out, plan, Options(threads, shard_mb), report)
    return _ending(out, facts, say)


class _Sizes:
    """Bytes of every picture of the questions that pass, each once, and whether the table itself holds some."""

    def __init__(self) -> None:
        self.inside = False
        self._sizes: dict[int, int] = {}

    def of(self, questions: Iterable[Question]) -> Iterator[Question]:
        """The same questions."""
        for question in questions:
            image, key = question.image, question.image_key
            if not question.fault and key not in self._sizes:
                self.inside |= isinstance(image, bytes)
                self._sizes[key] = len(image) if isinstance(image, bytes) else Path(image).stat().st_size
            yield question

    def bytes(self, pictures: Iterable[int]) -> int:
        """Of these pictures."""
        return sum(self._sizes[key] for key in pictures)


class _Examination:
    """As of any picture; one that several questions ask about is looked at once, and what is wrong is said of each."""

    def __init__(self, check: Check) -> None:
        self._check, self._found = check, dict[str, Finding]()

    def __call__(self, item: Item) -> Finding:
        if item.faults:
            return Finding()
        picture = item.targets["image"]
        if picture not in self._found:
            self._found[picture] = examine_picture(item, self._check)
        found = self._found[picture]
        return found._replace(faults=tuple(Fault(_placed(what, item.origin), out) for what, out in found.faults))


# ---- what is read


def _tables(sources: Sequence[str]) -> list[Table]:
    """The tables of --from. Several files are told apart by their names, train.csv and val.csv."""
    if any(source.startswith(hub.PREFIX) for source in sources):
        if len(sources) > 1:
            raise UsageError(f"--from {','.join(sources)}: give one {hub.PREFIX}NAME, or files")
        folder = Path(sources[0].removeprefix(hub.PREFIX)).expanduser()
        place = folder if folder.is_dir() else Path.cwd()
        found = hub.load_tables(sources[0].removeprefix(hub.PREFIX))
        return [stored_table(f"{sources[0]} {split}", table, place, split) for split, table in found.items()]
    paths = [Path(source).expanduser() for source in sources]
    for path in paths:
        if not path.exists():
            raise DataError(
                f"--from {path} does not exist; give a table, a folder of tables, or {hub.PREFIX}OWNER/NAME"
            )
    if len(paths) == 1:
        files = table_files(paths[0]) if paths[0].is_dir() else {"": paths}
        return [open_table(path, split) for split, group in files.items() for path in group]
    named = [(split_of(path.stem), path) for path in paths]
    if lacking := [path.name for split, path in named if path.is_dir() or not split]:
        raise UsageError(f"--from: {', '.join(lacking)}: of several tables each is named after its split, as train.csv")
    return [open_table(path, split) for split, path in named]


def _prints(source: str) -> list[list[Any]]:
    """By what a restarted preparation knows its source again."""
    if source.startswith(hub.PREFIX):
        return [[source]]
    path = Path(source).expanduser()
    files = [file for group in table_files(path).values() for file in group] if path.is_dir() else [path]
    return [fingerprint(file) for file in files]


def _format(wanted: str, inside: bool) -> str:
    if wanted == "index" and inside:
        raise UsageError("--format index needs pictures that are files; for those inside a table: --format folder")
    return ("folder" if inside else "index") if wanted == "auto" else wanted


def _refuse(survey: Survey, sources: Sequence[str]) -> None:
    """DataError where most rows are no use, before anything is written: then it is not the rows that are wrong."""
    bad = sum(map(len, survey.bad.values()))
    if bad > _TOO_MANY * survey.rows:
        raise DataError(
            f"--from {','.join(sources)}: {bad:,} of {survey.rows:,} rows are no use: {described(survey.bad)}; do "
            f"--images and --columns fit?"
        )


# ---- what is written


def _items(rows: VQARows, survey: Survey, split: str) -> Callable[[Position], Iterator[Item]]:
    """The rows of a split behind a position; those that are no use are with the first split."""

    def items(after: Position) -> Iterator[Item]:
        for placed in survey.place(rows):
            if placed.split == split and (placed.number,) > after:
                yield _item(placed)

    return items


def _item(placed: Placed) -> Item:
    question = placed.question
    if placed.record is None:
        what = _placed(placed.fault, question.place)
        return Item((placed.number,), {"id": placed.id}, faults=(Fault(what, True),))
    image = question.image
    suffix = _suffix(image) if isinstance(image, bytes) else Path(image).suffix.lower()
    record = placed.record | {"image": image if isinstance(image, bytes) else Path(image)}
    target = f"images/{question.image_key:016x}{suffix}"
    return Item((placed.number,), record, {"image": target}, origin=f"{question.place}: {question.image_name}")


def _placed(what: str, place: str) -> str:
    """A fault with the place behind its colon: what stands before it is counted."""
    kind, _, detail = what.partition(": ")
    return f"{kind}: {detail} ({place})" if detail else f"{kind}: {place}"


def _suffix(data: bytes) -> str:
    """The usual suffix of an encoded picture; "" for a rare format."""
    return next((suffix for mark, suffix in _MARKS.items() if data.startswith(mark)), "")


# ---- what is said at the end


def _ending(out: Path, facts: Mapping[str, Any], say: Report) -> str:
    """Say which vocabulary the answers give; returns the command to try next."""
    shards = {split: [out / shard["file"] for shard in part["shards"]] for split, part in facts["splits"].items()}
    parts = {split: _Answers(paths) for split, paths in shards.items()}
    answered = {split: answers for split, answers in parts.items() if any(answers.column("answers"))}
    root = f"data=vqa data.root={shlex.quote(str(out))}"
    if "train" not in answered:
        split = next(iter(answered), next(iter(parts)))
        if answered:
            return f"vlbeit evaluate RUN {root} data.val_split={split}"
        say("there are no answers: nothing to train on or to score against")
        return f"vlbeit submit RUN --split {split} --out answers.json {root}"
    min_count = _vocabulary(answered, say)
    words = f" task.min_count={min_count}" if min_count != MIN_COUNT else ""
    return next_command(f"stage=vl task=vqa init={VLMO} data=vqa", out, "vqa") + words


class _Answers:
    """The answers of a split, out of its shards."""

    def __init__(self, shards: Sequence[Path]) -> None:
        names = ["multiple_choice_answer", "answers"]
        tables = [pq.read_table(shard, columns=names).to_pydict() for shard in shards]
        self._columns = {name: [value for table in tables for value in table[name]] for name in names}

    def column(self, name: str) -> Sequence[Any]:
        return self._columns[name]


def _vocabulary(answered: Mapping[str, _Answers], say: Report) -> int:
    """Say what the default of task.min_count and the one to propose keep; returns the latter."""
    majority = counted_answers(answered["train"])
    known, fitting = len(build_vocabulary(majority, 1)), fitting_min_count(answered["train"])
    for min_count in dict.fromkeys((MIN_COUNT, fitting)):
        answers = build_vocabulary(majority, min_count)
        found = {split: coverage(columns, answers) for split, columns in answered.items()}
        shares = ", ".join(f"{100 * each.raw / each.questions:.1f} % of {split}" for split, each in found.items())
        say(f"answers: task.min_count={min_count} keeps {len(answers):,} of {known:,}; they cover {shares}")
    return fitting
