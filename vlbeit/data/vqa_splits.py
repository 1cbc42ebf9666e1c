"""Which question of a user's own table belongs to which split: no picture is in two of them.

Two readings of the table: the first counts, the second gives the records. Held in between are some numbers a picture
and a question, never a row.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vlbeit.data.row_files import SUFFIXES
from vlbeit.data.vqa_rows import Question
from vlbeit.errors import DataError
from vlbeit.types import Record

HELD = "val"  # what pictures that we hold out become
HELD_OUT = 0.1  # of the pictures, where nothing else is said
SYNONYMS = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "testing": "test"}
_MOST = 20  # splits that a column may name: more are another kind of column
_DIGITS = 18  # of an id that is a number


class Rule(NamedTuple):
    """How pictures are held out of the training split, as the split `val`, where the table has none to evaluate on."""

    held_out: float  # pictures: a number, or a share below 1; 0: none
    seed: int = 0
    train: str = "train"
    val: str = HELD  # the split that is to be evaluated


class Placed(NamedTuple):
    """One row of the table with its split."""

    number: int  # of the row, from 1
    split: str
    id: str
    record: Record | None  # a whole `vqa` record but for `image`; None where something is wrong
    question: Question
    fault: str  # what is wrong; ""


def canonical(split: str) -> str:
    """`train`, `val` or `test` for their other usual names, and a name that a file can have for any other."""
    plain = re.sub(r"[^\w.-]+", "_", split.strip().casefold())
    return SYNONYMS.get(plain, plain)


def called(split: str) -> list[str]:
    """The names under which a split is looked for, its own first: val, validation, valid, dev."""
    return [split, *(name for name, usual in SYNONYMS.items() if usual == split)]


class Undivided(DataError):
    """A table that can be read, but not divided by the rule that was given."""

    def __init__(self, message: str, *settings: str) -> None:
        """`settings`: those of `held_out` and `columns` that may help."""
        super().__init__(message)
        self._settings = settings

    def said(self, option: str) -> str:
        """The message with the settings as a user types them, such as `data.{}=`."""
        typed = ", ".join(map(option.format, self._settings))
        return f"{self} ({typed})" if typed else str(self)


class Survey:
    """What a first reading found: the splits, which picture is in which, and the rows that are no use."""

    def __init__(self, questions: Iterable[Question], rule: Rule) -> None:
        """Raises `Undivided` where there is no row, or no picture that could be held out."""
        self.rows = 0
        self.bad: dict[str, list[str]] = defaultdict(list)  # what -> "detail (place)" of each row that is no use
        self._semicolons = 0
        self._semicolon_at = ""  # place of the first
        self._rule = rule
        self._numbers: dict[int, int] = {}  # picture -> its number, from 1
        self._named: dict[int, str] = {}  # picture -> the split that rows name for it, the one to be kept clean
        self._chance: dict[int, int] = {}  # picture -> what decides whether it is held out
        self._answered: set[str] = set()  # named splits in which a question has answers
        self._ids_are_numbers = self._images_are_numbers = True
        for question in questions:
            self._take(question)
        if not self.rows:
            raise Undivided("the table has no row below its heading")
        self._splits = self._divide()

    @property
    def note(self) -> str:
        """What is no fault but looks like a slip; "" where nothing does."""
        if not self._semicolons:
            return ""
        what = f"{self._semicolons:,} answers contain ';' (first {self._semicolon_at})"
        return f"{what}: it is left out like other marks; did you mean '|', which parts several answers?"

    @property
    def splits(self) -> list[str]:
        """Names of the splits that have a picture, train first."""
        return sorted({*self._splits.values()}, key=_order)

    def pictures(self, split: str) -> list[int]:
        """The pictures of a split, by `Question.image_key`."""
        return [key for key, own in self._splits.items() if own == split]

    def place(self, questions: Iterable[Question]) -> Iterator[Placed]:
        """The rows again, in their order, each with its split; bad ones go with the first split."""
        seen: dict[str, set[int]] = defaultdict(set)
        first = self.splits[0] if self.splits else self._rule.train
        for number, question in enumerate(questions, 1):
            key = question.image_key
            split, named = self._splits.get(key, first), canonical(question.split)
            fault = question.fault
            if not fault and (named or "train") != (self._named[key] or "train"):
                fault = f"picture is in {self._named[key]} too: {question.image_name}"
            if not fault and not question.record["answers"] and named in self._answered:
                fault = "answers are empty"
            question_id = int(question.id) if self._ids_are_numbers and question.id else number
            own_id = str(question_id) if self._ids_are_numbers else question.id or str(number)
            if not fault and (ticket := _ticket(own_id)) in seen[split]:
                fault = f"question_id is used twice: {own_id}"
            elif not fault:
                seen[split].add(ticket)
            record = None if fault else self._record(question, own_id, question_id)
            yield Placed(number, split, own_id, record, question, fault)

    def _record(self, question: Question, own_id: str, question_id: int) -> Record:
        image_id = int(question.image_id) if self._images_are_numbers else self._numbers[question.image_key]
        return {"id": own_id, "question_id": question_id, "image_id": image_id, **question.record}

    def _take(self, question: Question) -> None:
        self.rows += 1
        if question.fault:
            what, _, detail = question.fault.partition(": ")
            self.bad[what].append(f"{question.place}: {detail}" if detail else question.place)
            return
        if question.semicolon:
            self._semicolons += 1
            self._semicolon_at = self._semicolon_at or question.place
        key, named = question.image_key, canonical(question.split)
        self._numbers.setdefault(key, len(self._numbers) + 1)
        self._chance.setdefault(key, _chance(self._rule.seed, question.image_name))
        self._named[key] = max(self._named.get(key, named), named, key=_order)
        if question.record["answers"]:
            self._answered.add(named)
        self._ids_are_numbers &= _is_number(question.id) or not question.id
        self._images_are_numbers &= _is_number(question.image_id)

    def _divide(self) -> Mapping[int, str]:
        """Picture -> split. Pictures are held out of the training split where there is nothing to evaluate on."""
        rule, named = self._rule, {*self._named.values()}
        if len(named) > _MOST:
            what = f"{len(named)} different splits, such as {min(named)!r}: another column names the split"
            raise Undivided(what, "columns")
        if named <= {""} and not self._answered:
            return dict.fromkeys(self._named, "test")  # no answers at all: there is nothing to train on
        train = next((name for name in (rule.train, "") if name in named), None)
        splits = {key: split or "train" for key, split in self._named.items()}
        if train is None or {HELD, rule.val} & named or rule.val == rule.train or not rule.held_out:
            return splits
        pool = [key for key, split in self._named.items() if split == train]
        return splits | dict.fromkeys(self._held_out(pool), HELD)

    def _held_out(self, pool: Sequence[int]) -> list[int]:
        """Those of the pictures that come first in an order which seed and names alone decide."""
        share = self._rule.held_out
        count = max(1, round(share * len(pool)) if share < 1 else int(share))
        if count >= len(pool):
            raise Undivided(
                f"{len(pool)} pictures are too few to hold out {count} for {HELD!r}: hold out fewer, or name "
                f"the splits in a column",
                "held_out",
                "columns",
            )
        return sorted(pool, key=lambda key: (self._chance[key], self._numbers[key]))[:count]


def table_files(folder: Path, also: Sequence[str] = ()) -> dict[str, list[Path]]:
    """Split -> the tables in a folder that are named after it; one table alone, whatever its name, is the split "".

    `train.csv` goes before `my_train.csv`, `train_0.csv`, `train-00000-of-00002.parquet`. `also`: further splits.
    Raises `DataError` where the files do not tell.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    found: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        if split := split_of(path.stem, also):
            found[split].append(path)
    if not found and len(files) == 1:
        return {"": files}
    for split, paths in found.items():
        exact = [path for path in paths if canonical(path.stem) == split]
        found[split] = exact or paths
        if len(found[split]) > 1 and (exact or len({path.suffix for path in paths}) > 1):
            names = " and ".join(path.name for path in found[split][:2])
            raise DataError(f"{folder} has more than one table for the split {split!r}: {names}; keep one of them")
    if not found:
        names = ", ".join(path.name for path in files[:8]) or f"no file ending in {', '.join(SUFFIXES)}"
        raise DataError(f"{folder} has no table that is named after a split, such as train.csv; it has {names}")
    return dict(found)


def split_of(stem: str, also: Sequence[str] = ()) -> str:
    """The split that a file is named after; "" where it is after none."""
    known = ("train", "val", "test", *also)
    words = [stem, *re.split(r"[\W_]+", stem)]
    return next((split for split in map(canonical, words) if split in known), "")


def described(bad: Mapping[str, Sequence[str]]) -> str:
    """`picture is missing: 3 (my.csv, line 2: a.jpg; ...)`, the commonest first, for messages."""
    parts = []
    for what, places in sorted(bad.items(), key=lambda item: -len(item[1])):
        dots = "; ..." if len(places) > 3 else ""
        parts.append(f"{what}: {len(places):,} ({'; '.join(places[:3])}{dots})")
    return ", ".join(parts)


def _order(split: str) -> tuple[int, str]:
    """Training comes first, and what scores are measured on last: a picture of both belongs there."""
    return ({"": 0, "train": 1, "val": 3, "test": 4}.get(split, 2), split)


def _chance(seed: int, name: str) -> int:
    return _hash(f"{seed}/{name}")


def _ticket(own_id: str) -> int:
    """An id as eight bytes, however long it is."""
    return _hash(own_id)


def _hash(written: str) -> int:
    data = written.encode(errors="surrogateescape")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def _is_number(written: str) -> bool:
    return written.isascii() and written.isdigit() and len(written) <= _DIGITS
