"""Any data source of vlbeit as parts: read by its own reader, so that what that refuses is one finding."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock

from vlbeit import registry
from vlbeit.config import DataConfig
from vlbeit.data.answers import majority_answer
from vlbeit.data.records import IncompleteError
from vlbeit.data.sources.base import DataSource
from vlbeit.errors import DataError, MissingColumnError, UsageError
from vlbeit.types import Records

from .findings import Finding, found
from .official import SOURCES
from .parts import Annotation, Part, Place, Question, Texts
from .progress import Say

_KEY = re.compile(r"data\.columns=\[(.*?)\]")  # which this command has as an option
_KINDS = ("vqa", "labelled", "images", "masks", "boxes", "pairs", "nlvr2", "text")  # by what tells most of a split


def read_parts(config: DataConfig, splits: Sequence[str], say: Say) -> list[Part]:
    """The splits of a data source. Raises UsageError where it gives no kind of record that is known here."""
    source: DataSource = registry.get("data", config.name)(config)
    try:
        source.check()
        return _parts(source, splits, say)
    except UsageError as error:
        raise UsageError(_KEY.sub(r"--columns \1", str(error))) from error


def _parts(source: DataSource, splits: Sequence[str], say: Say) -> list[Part]:
    kind = next((kind for kind in _KINDS if kind in source.kinds), None)
    if kind is None:
        raise UsageError(
            f"data={source.config.name} has {', '.join(source.kinds)} records; inspected are {', '.join(_KINDS)}"
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
        kind, records = _read(source, kind, split)
    except DataError as error:
        refusal = found("refused", split, [split], str(error))
        try:  # sources that survive some bad rows may survive all of them: the others are checked
            with _without_warnings():
                records = type(source)(replace(source.config, max_bad_fraction=1)).records(kind, split)
        except DataError:
            return Part(split, [], None, {}, refusal, whole=False)
    say(f"{split}: {len(records):,} records")
    part = _asked(split, records) if kind == "vqa" else _shown(source, kind, split, records)
    part.findings += refusal
    if source.config.name in SOURCES:  # ten answers to a question, one number to a picture whatever its split
        part.ten = part.numbered = True
    if not len(records):
        part.findings += found("empty-split", split, [split], f"the split {split} has no record")
    return part


def _read(source: DataSource, kind: str, split: str) -> tuple[str, Records]:
    """The records and their kind: `text` where pictures are looked for and there are texts alone."""
    texts = kind == "images" and "text" in source.kinds
    try:
        records = source.records(kind, split)
        if len(records) or not texts:
            return kind, records
    except MissingColumnError:
        if not texts:
            raise
    return "text", source.records("text", split)


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


def _shown(source: DataSource, kind: str, split: str, records: Records) -> Part:
    """Pictures, and the texts that stand beside them or for themselves."""
    texts = records if kind in ("text", "nlvr2") else None
    if kind == "images" and "text" in source.kinds:
        with suppress(MissingColumnError):
            texts = source.records("text", split)
    part = Part(split, [], None, _pictures(kind, records), numbered=False)
    if texts is not None:
        part.texts = Texts(texts.column("id"), texts.column("text"), captions=kind != "text")
    return part


def _pictures(kind: str, records: Records) -> Mapping[int | str, Place]:
    if kind == "text":
        return {}
    names = list(records.column("id"))
    if kind != "nlvr2":
        return _places(names, records)
    sides = [_places([f"{name} {side}" for name in names], records, side) for side in ("image_0", "image_1")]
    places = {name: place for side in sides for name, place in side.items()}
    return {place if isinstance(place, str) else name: place for name, place in places.items()}  # a file is shared


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


def _places(names: Sequence[int | str], records: Records, field: str = "image") -> Mapping[int | str, Place]:
    """Where the picture of each name lies: the path, or how its bytes are read when they are wanted."""
    rows: dict[int | str, int] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, row)
    if not rows or _lie_inside(records, field):
        inside = _Inside(records, field)
        return {name: partial(inside.read, row) for name, row in rows.items()}
    paths = list(records.column(field))
    return {name: str(Path(paths[row])) for name, row in rows.items()}


def _lie_inside(records: Records, field: str) -> bool:
    """Whether pictures are bytes within other files, as the first record tells that has one."""
    for row in range(len(records)):
        with suppress(IncompleteError):
            return isinstance(records[row][field], bytes)
    return True


class _Inside:
    """Pictures that lie within other files, for several threads: records are made for one."""

    def __init__(self, records: Records, field: str) -> None:
        self._records, self._field, self._lock = records, field, Lock()

    def read(self, row: int) -> bytes:
        """The encoded bytes of one."""
        with self._lock:
            return self._records[row][self._field]
