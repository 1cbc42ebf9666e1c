"""Any data source of vlbeit as parts: read by its own reader, so that what that refuses is one finding."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from vlbeit import registry
from vlbeit.config import DataConfig
from vlbeit.data.answers import majority_answer
from vlbeit.data.sources.base import DataSource
from vlbeit.errors import DataError, UsageError
from vlbeit.types import Records

from .findings import Finding, found
from .official import SOURCES
from .parts import Annotation, Part, Place, Question
from .progress import Say

_KEY = re.compile(r"data\.columns=\[(.*?)\]")  # which this command has as an option
_WITH_PICTURES = ("labelled", "images", "masks", "boxes", "pairs")  # kinds, by what tells most of a split


def read_parts(config: DataConfig, splits: Sequence[str], say: Say) -> list[Part]:
    """The splits of a data source. Raises UsageError where its records have no pictures."""
    source: DataSource = registry.get("data", config.name)(config)
    try:
        source.check()
        return _parts(source, splits, say)
    except UsageError as error:
        raise UsageError(_KEY.sub(r"--columns \1", str(error))) from error


def _parts(source: DataSource, splits: Sequence[str], say: Say) -> list[Part]:
    kind = next((kind for kind in ("vqa", *_WITH_PICTURES) if kind in source.kinds), None)
    if kind is None:
        raise UsageError(
            f"data={source.config.name} has {', '.join(source.kinds)} records; what is inspected are pictures and the "
            f"questions about them"
        )
    parts = [_part(source, kind, split, say) for split in splits]
    _say_once(parts)
    return parts


def _say_once(parts: Sequence[Part]) -> None:
    """Where several splits are refused in the same words, the first of them has one finding about all."""
    refused: dict[str, list[Part]] = {}
    for part in parts:
        for message in (each.message for each in part.findings if each.code == "refused"):
            refused.setdefault(message, []).append(part)
        part.findings = [each for each in part.findings if each.code != "refused"]
    for message, those in refused.items():
        names = [part.name for part in those]
        those[0].findings += found("refused", ", ".join(names), names, message)


def _part(source: DataSource, kind: str, split: str, say: Say) -> Part:
    refusal: list[Finding] = []
    try:
        records = source.records(kind, split)
    except DataError as error:
        refusal = found("refused", split, [split], str(error))
        try:  # sources that survive some bad rows may survive all of them: the others are checked
            with _without_warnings():
                records = type(source)(replace(source.config, max_bad_fraction=1)).records(kind, split)
        except DataError:
            return Part(split, [], None, {}, refusal, whole=False)
    say(f"{split}: {len(records):,} records")
    part = _asked(split, records) if kind == "vqa" else _shown(split, records)
    part.findings += refusal
    if source.config.name in SOURCES:  # ten answers to a question, one number to a picture whatever its split
        part.ten = part.numbered = True
    if not len(records):
        part.findings += found("empty-split", split, [split], f"the split {split} has no record")
    return part


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Keeps the readers' warnings back where a finding says the same."""
    log = logging.getLogger("vlbeit.data")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _shown(split: str, records: Records) -> Part:
    names = list(records.column("id"))
    return Part(split, [], None, _places(names, records), numbered=False)


def _asked(split: str, records: Records) -> Part:
    columns = (records.column(name) for name in ("question_id", "image_id", "question"))
    questions = [Question(*row) for row in zip(*columns, strict=True)]
    names = ("question_id", "image_id", "question_type", "answer_type", "answers", "multiple_choice_answer")
    rows = zip(*(records.column(name) for name in names), strict=True)
    notes = [
        Annotation(number, image, question_type, answer_type, tuple(answers), True, main or majority_answer(answers))
        for number, image, question_type, answer_type, answers, main in rows
    ]
    hidden = not any(row.answers for row in notes)
    places = _places([question.image_id for question in questions], records)
    return Part(split, questions, None if hidden else notes, places, ten=False, numbered=False)


def _places(names: Sequence[int | str], records: Records) -> Mapping[int | str, Place]:
    """Where the picture of each name lies: the path, or how its bytes are read when they are wanted."""
    rows: dict[int | str, int] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, row)
    if not rows or isinstance(records[0]["image"], bytes):
        return {name: partial(_bytes, records, row) for name, row in rows.items()}
    paths = list(records.column("image"))
    return {name: str(Path(paths[row])) for name, row in rows.items()}


def _bytes(records: Records, row: int) -> bytes:
    return records[row]["image"]
