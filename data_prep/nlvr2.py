"""NLVR2 (github.com/lil-lab/nlvr) for data=nlvr2: statements about two photographs, checked and indexed or packed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from vlbeit.data.following import VLMO, next_command
from vlbeit.data.nlvr2_files import ALIASES, LAYOUT, PUBLISHED, Example, find_table, pictures_of, read_examples
from vlbeit.errors import DataError, UsageError

from .pictures import Check, examine_picture
from .preparation import Format, Options, Out, Plan, ShardMB, Split, Threads, chosen, fingerprint, run
from .progress import Report, counted
from .shards import Fault, Finding, Item, Layout, Position

_SIDES = ("image_0", "image_1")
_TOO_MANY = 0.5  # share of statements without their pictures: beyond it the folder is the wrong one


class _Part(NamedTuple):
    """A split: its file, and what is in it."""

    name: str
    table: Path
    examples: int
    sentences: int
    missing: int  # examples without one of their pictures
    bytes: int  # of the pictures, each once

    def described(self) -> str:
        """A line for people, the published numbers beside those found."""
        found = f"{self.name}: {self.examples:,} statements about pairs, {self.sentences:,} different sentences"
        if self.name not in PUBLISHED:
            return found
        examples, sentences = PUBLISHED[self.name]
        official = (self.examples, self.sentences) == (examples, sentences)
        return f"{found}, " + ("as published" if official else f"published are {examples:,} and {sentences:,}")


def prepare(
    out: Out,
    *,
    from_: Annotated[Path, "folder with train.json, dev.json, test1.json: nlvr2/data of the repository"],
    images: Annotated[Path | None, "folder with train/, dev/, test1/; else the same as --from"] = None,
    splits: Annotated[str, "which, with commas"] = "train,dev,test1",
    format: Format = "auto",
    check: Check = "header",
    threads: Threads = 0,
    shard_mb: ShardMB = 256,
    report: Report | None = None,
) -> str:
    """Prepare NLVR2 for data=nlvr2: every statement with its two pictures.

    Pictures come from the authors on request, and from their addresses a few percent are gone: statements that lack a
    picture, or whose picture cannot be read, are left out and named in bad.jsonl; scores on what is left do not compare
    with published ones. Splits whose file is not there are named and left out, but for train. The same command after
    an interruption goes on where it stopped.
    """
    say = report or (lambda line: None)
    for given in (from_, *([images] if images else [])):
        if not given.expanduser().is_dir():
            raise DataError(f"{given} is no folder; {LAYOUT}")
    root, pictures = (Path(path).expanduser().absolute() for path in (from_, images or from_))
    parts = _parts(root, pictures, splits, say)
    arguments = {
        "from": [fingerprint(part.table) for part in parts], "images": str(pictures), "check": check,
        "shard_mb": shard_mb, "missing": [part.missing for part in parts],
    }  # fmt: skip
    plan = Plan(
        layout=Layout("nlvr2", chosen(format, True), arguments),
        classes=["False", "True"],
        splits=[Split(part.name, part.bytes, _items(part.table, pictures)) for part in parts],
        examine=lambda item: _examine(item, check),
        archives=[],
    )
    facts = run(out, plan, Options(threads, shard_mb), report)
    _remark(facts, say)
    if "train" not in facts["splits"]:
        return f"vlbeit evaluate RUN data=nlvr2 data.root={out} data.val_split={parts[0].name}"
    return next_command(f"stage=vl task=nlvr2 init={VLMO} data=nlvr2", out, "nlvr2")


def _parts(root: Path, pictures: Path, splits: str, say: Report) -> list[_Part]:
    names = [ALIASES.get(name, name) for name in splits.split(",") if name]
    if not names:
        raise UsageError("--splits is empty: give train,dev,test1 or some of them")
    found = []
    for name in dict.fromkeys(names):
        try:
            table = find_table(root, name)
        except DataError:
            if name == names[0]:
                raise
            say(f"{name}: left out, there is no {name}.json")
            continue
        found.append(_part(name, table, pictures, say))
        say(found[-1].described())
    return found


def _part(name: str, table: Path, pictures: Path, say: Report) -> _Part:
    sentences, sizes, examples, missing = set(), dict[Path, int](), 0, 0
    looked = counted(pictures_of(read_examples(table), pictures), f"reading {name}: {{}} statements", say)
    for example, paths, absent in looked:
        examples += 1
        sentences.add(example.sentence)
        missing += bool(absent)
        for path in paths if not absent else ():
            if path not in sizes:
                sizes[path] = path.stat().st_size
    if not examples:
        raise DataError(f"{table} has no statement; get the file again")
    if missing > _TOO_MANY * examples:
        raise DataError(
            f"{pictures}: {missing:,} of the {examples:,} statements of {table.name} lack a picture; set --images to "
            f"the folder with train/, dev/, test1/"
        )
    return _Part(name, table, examples, len(sentences), missing, sum(sizes.values()))


def _items(table: Path, pictures: Path) -> Callable[[Position], Iterator[Item]]:
    """The statements of a file behind a position."""

    def items(after: Position) -> Iterator[Item]:
        for number, (example, paths, absent) in enumerate(pictures_of(read_examples(table), pictures)):
            if (number,) > after:
                yield _item(number, example, paths, absent)

    return items


def _item(number: int, example: Example, paths: tuple[Path, Path], absent: Sequence[Path]) -> Item:
    if absent:
        what = f"picture is missing: {', '.join(path.name for path in absent)}"
        return Item((number,), {"id": example.identifier}, faults=(Fault(what, True),), origin=example.place)
    record = {
        "id": example.identifier, "image_0": paths[0], "image_1": paths[1], "text": example.text,
        "label": example.label, "sentence": example.sentence,
    }  # fmt: skip
    return Item((number,), record, dict(zip(_SIDES, example.pictures, strict=True)), origin=example.place)


def _examine(item: Item, check: Check) -> Finding:
    """Both pictures; what is wrong is said with the name of the one that it is of.

    That many are no PNG although they are called so is how NLVR2 is published: it is not said.
    """
    if item.faults:
        return Finding()
    size, faults = None, []
    for side in _SIDES:
        path = item.record[side]
        found = examine_picture(Item(item.position, {"id": item.record["id"], "image": path}), check)
        size = size or found.size
        faults += [Fault(_named(what, path.name), out) for what, out in found.faults]
    return Finding(size, tuple(faults))


def _named(what: str, name: str) -> str:
    """A fault with the picture's name behind its colon: what stands before it is counted."""
    kind, _, detail = what.partition(": ")
    return f"{kind}: {name}" + (f" ({detail})" if detail else "")


def _remark(facts: Mapping[str, Any], say: Report) -> None:
    """Say of every split of published size what is not in it: its scores are then of another set."""
    for name, split in facts["splits"].items():
        if split["left_out"] and name in PUBLISHED:
            say(f"{name}: {split['left_out']:,} statements are left out: scores do not compare with published ones")
