"""The whole report: every check over the data, and whether training is safe."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vlbeit.config import DataConfig
from vlbeit.errors import some

from . import tables
from .answers import check_answers
from .downloads import check_download
from .findings import Finding, found, ordered
from .ids import check_ids, check_ids_between
from .layout import layout
from .leakage import TOLERATED, check_copies, check_image_ids
from .official import read_part
from .parts import Part
from .pictures import MISSING, Picture, look_at, name_of
from .progress import Say, quiet
from .questions import check_questions
from .roles import Roles, roles
from .sources import read_parts
from .texts import Surveyed, check_texts, check_texts_between, survey

_LOW = 70.0  # percent: a ceiling below is worth a word; that of VQA v2 is above 90
_ODD_SIDE, _ODD_ASPECT = 16, 10.0  # pixels, longer side over shorter


class Wanted(NamedTuple):
    """What is asked of a report."""

    data: DataConfig  # root, splits; name "" where it is to be found out
    min_count: int = 9  # as task.min_count
    max_length: int = 40  # as text.max_length
    thorough: bool = False
    strict: bool = False


class Report(NamedTuple):
    """What was found."""

    wanted: Wanted  # with the name of the data source
    findings: list[Finding]
    tables: dict[str, Any]
    seconds: float

    @property
    def unsafe(self) -> list[Finding]:
        """The findings that speak against training."""
        severities = ("error", "warning") if self.wanted.strict else ("error",)
        return [finding for finding in self.findings if finding.severity in severities]

    def to_json(self) -> dict[str, Any]:
        """The one object of `--json`; its keys are stable."""
        return {
            "path": self.wanted.data.root,
            "data": self.wanted.data.name,
            "safe": not self.unsafe,
            "strict": self.wanted.strict,
            "thorough": self.wanted.thorough,
            "unsafe_because": list(dict.fromkeys(finding.code for finding in self.unsafe)),
            "findings": [finding.to_json() for finding in self.findings],
            "tables": self.tables,
            "seconds": round(self.seconds, 1),
        }


def inspect(wanted: Wanted, say: Say = quiet) -> Report:
    """Read everything at the path and check it.

    Raises UsageError where no layout is known there, DataError where there is nothing at all.
    """
    started = time.monotonic()
    place = layout(wanted.data)
    wanted = wanted._replace(data=place.config)
    if place.official:
        parts = [read_part(files, say) for files in place.official]
    else:
        parts = read_parts(place.config, place.splits, say)
    pictures = look_at(parts, say, thorough=wanted.thorough)
    surveyed = survey(parts, say)
    chosen = roles(parts, wanted.data)
    found_tables = _tables(parts, pictures, chosen, wanted.min_count, say)
    for each in surveyed:
        found_tables["splits"][each.split] |= each.table()
    few = _few_broken(parts, pictures, surveyed)
    checked = [*_checked(parts, pictures, wanted, few, say), *_of_texts(surveyed, wanted, few)]
    download = check_download(Path(wanted.data.root).expanduser())
    findings = ordered([*checked, *download, *chosen.findings, *_of_learning(found_tables, wanted)])
    return Report(wanted, findings, found_tables, time.monotonic() - started)


def _few_broken(parts: Sequence[Part], pictures: Sequence[Picture], surveyed: Sequence[Surveyed]) -> dict[str, bool]:
    """Of each split whether training, which replaces broken samples by others, survives its pictures and captions."""
    shares = {each.split: float(each.absent.mean()) for each in surveyed}
    broken = Counter(picture.split for picture in pictures if picture.fault not in ("", MISSING))
    return {
        part.name: broken[part.name] / max(1, len(part.asked())) + shares.get(part.name, 0.0) <= TOLERATED
        for part in parts
    }


def _checked(
    parts: Sequence[Part], pictures: Sequence[Picture], wanted: Wanted, few: Mapping[str, bool], say: Say
) -> Iterator[Finding]:
    for part in parts:
        say(f"{part.name}: checking " + ("ids, questions, answers" if part.questions else "pictures and texts"))
        yield from part.findings
        yield from check_ids(part, [other for other in parts if other is not part])
        own = [picture for picture in pictures if picture.split == part.name]
        yield from _check_pictures(part, own, few[part.name])
        yield from check_questions(part, wanted.max_length)
        yield from check_answers(part)
    say("comparing the splits")
    yield from check_ids_between(parts)
    yield from check_image_ids(parts)
    yield from check_copies(parts, pictures)


def _of_texts(surveyed: Sequence[Surveyed], wanted: Wanted, few: Mapping[str, bool]) -> Iterator[Finding]:
    for each in surveyed:
        yield from check_texts(each, wanted.max_length, few=few[each.split])
    yield from check_texts_between(surveyed)


def _check_pictures(part: Part, pictures: Sequence[Picture], few: bool) -> Iterator[Finding]:
    gone = [str(picture.place) for picture in pictures if picture.fault == MISSING]
    yield from found("missing-image", part.name, gone, f"files that are not there: {some(gone)}")
    broken = [picture for picture in pictures if picture.fault not in ("", MISSING)]
    shown = [f"{name_of(picture)}: {picture.fault}" for picture in broken]
    text = f"pictures that cannot be read: {some(shown)}"
    ids = [picture.image_id for picture in broken]
    yield from found("broken-image", part.name, ids, text, mild=few)
    odd = [picture for picture in pictures if picture.size is not None and _is_odd(*picture.size)]
    shown = ["{} has {}x{}".format(name_of(picture), *picture.size) for picture in odd if picture.size]
    text = f"pictures of unusual size: {some(shown)}"
    yield from found("odd-image", part.name, [picture.image_id for picture in odd], text)


def _is_odd(width: int, height: int) -> bool:
    return min(width, height) < _ODD_SIDE or max(width, height) > _ODD_ASPECT * min(width, height)


def _tables(
    parts: Sequence[Part], pictures: Sequence[Picture], chosen: Roles, min_count: int, say: Say
) -> dict[str, Any]:
    """`splits` by name; of questions with answers also `vocabulary` and `blind`."""
    say("counting")
    by_split: dict[str, list[Picture]] = {part.name: [] for part in parts}
    for picture in pictures:
        by_split[picture.split].append(picture)
    result: dict[str, Any] = {"splits": {part.name: tables.of_split(part, by_split[part.name]) for part in parts}}
    if chosen.train is not None:
        say("vocabulary, ceiling and blind baseline")
        result |= tables.of_learning(chosen.train, chosen.val, min_count)
    return result


def _of_learning(found_tables: dict[str, Any], wanted: Wanted) -> Iterator[Finding]:
    """What the vocabulary says about whether one can train."""
    vocabulary = found_tables.get("vocabulary")
    if vocabulary is None:
        return
    if not vocabulary["answers"]:
        text = f"no answer stands for task.min_count={wanted.min_count} training questions"
        yield Finding("empty-vocabulary", wanted.data.train_split, 1, [], text)
        return
    for split, facts in vocabulary["splits"].items():
        if facts["ceiling"] < _LOW:
            lost = facts["questions"] - facts["covered"]
            text = f"with {vocabulary['answers']:,} answers no model scores above {facts['ceiling']} on {split}; "
            text += f"{lost:,} of {facts['questions']:,} questions can only score 0"
            yield Finding("low-ceiling", split, lost, [], text)
