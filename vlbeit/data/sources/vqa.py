"""Questions of your own: a CSV, JSON lines or Parquet table, a data set of the hub, or what `prepare vqa` wrote."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from vlbeit import hub
from vlbeit.data.index import cached_table
from vlbeit.data.picture_names import PictureNames
from vlbeit.data.prepared import ORIGIN, prepared_records
from vlbeit.data.records import KINDS, ChosenRecords, FieldColumn, TableRecords
from vlbeit.data.row_files import Table, open_table, stored_table
from vlbeit.data.sources.base import DataSource
from vlbeit.data.sources.question_files import EachPictureOnce
from vlbeit.data.tables import saved_table
from vlbeit.data.vqa_rows import MISSING, VQARows, parse_columns
from vlbeit.data.vqa_splits import HELD_OUT, Rule, Survey, Undivided, canonical, described, table_files
from vlbeit.errors import DataError
from vlbeit.types import Record, Records

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

_LAYOUT = (
    "vqa reads one table, or a folder with train.csv and val.csv (or .tsv .jsonl .json .parquet), with the columns "
    "image, question and answers"
)
_OPTION = "data.columns=[{}]"
_NONE = ""  # the split of rows that are no use
_FIELDS = (*KINDS["vqa"], "split", "fault", "shard", "image_at")  # of the index; shard: the table that has the picture


class _Read(NamedTuple):
    """What is read: the tables of all splits, their files, and of each table what has its pictures."""

    tables: list[Table]
    files: list[Path]
    pictures: list[Dataset | None]  # None: they are files


class OwnQuestions(DataSource):
    """Questions of your own: a table (CSV, JSON lines, Parquet), a folder of tables, hub:NAME, or a prepared folder.

    Columns image, question and answers, or others by `data.columns=[question:its_name]`. Where the data names no split
    to evaluate on, `data.held_out` of its pictures (a tenth) are held out, chosen by `data.split_seed` and their names.
    """

    kinds: ClassVar[tuple[str, ...]] = ("vqa", "images")
    takes_images: ClassVar[bool] = True

    def check(self) -> None:
        """As every source; a name of the hub is looked up when it is read."""
        parse_columns(self.config.columns, _OPTION)
        if not self._hub:
            super().check()

    def records(self, kind: str, split: str) -> Records:
        split = canonical(split)
        prepared = None if self._hub else prepared_records(self.root, "vqa", split, self.config.cache)
        questions = self._questions(split) if prepared is None else prepared
        return questions if kind == "vqa" else EachPictureOnce(questions)

    @property
    def _hub(self) -> str:
        """The name behind `hub:`; "" for files."""
        return self.config.root.removeprefix(hub.PREFIX) if self.config.root.startswith(hub.PREFIX) else ""

    def _questions(self, split: str) -> Records:
        """The records of a split. All splits are read together, since no picture may be in two of them."""
        config = self.config
        train, val = canonical(config.train_split), canonical(config.val_split)
        rule = Rule(config.held_out or HELD_OUT, config.split_seed, train, val)
        read = self._hub_tables() if self._hub else self._file_tables(rule)
        names = self._parsed(read).columns("image")
        if not self._hub:
            read = self._with_pictures(read, names)
        index = self._index(read, rule)
        splits = index.column("split")[:]
        self._judge(index, splits)
        rows = [row for row, own in enumerate(splits) if own == split]
        if not rows:
            self._refuse(split, sorted({*splits} - {_NONE}))
        pictures = [None if table is None else (table, name) for table, name in zip(read.pictures, names, strict=True)]
        return SplitRecords(index, rows, pictures)

    def _parsed(self, read: _Read) -> VQARows:
        columns = parse_columns(self.config.columns, _OPTION)
        return VQARows(read.tables, columns, self.config.images, _OPTION)

    def _file_tables(self, rule: Rule) -> _Read:
        """The file that is the root, or those of a folder."""
        files = {"": [self.root]} if self.root.is_file() else table_files(self.root, (rule.train, rule.val))
        named = [(split, path) for split, paths in files.items() for path in paths]
        return _Read(
            [open_table(path, split) for split, path in named], [path for _, path in named], [None] * len(named)
        )

    def _hub_tables(self) -> _Read:
        """The splits of a data set of the hub."""
        found = hub.load_tables(self._hub)
        folder = Path(self._hub).expanduser()
        place = folder if folder.is_dir() else Path.cwd()
        tables = [stored_table(f"{self.config.root} {name}", table, place, name) for name, table in found.items()]
        return _Read(tables, [], [*found.values()])

    def _with_pictures(self, read: _Read, names: Sequence[str]) -> _Read:
        """The same, with Parquet files that have pictures in them copied to where any row is read at once."""
        tables, pictures = [*read.tables], [*read.pictures]
        for number, (path, name) in enumerate(zip(read.files, names, strict=True)):
            if _holds_pictures(path, name):
                old = tables[number]
                stored = saved_table(path, old.split, [path], self.config.cache)
                tables[number] = stored_table(old.name, stored, old.folder, old.split)
                pictures[number] = stored
        return read._replace(tables=tables, pictures=pictures)

    def _index(self, read: _Read, rule: Rule) -> TableRecords:
        """All rows, also those that are no use, from the cache where nothing has changed since they were read.

        A row whose picture was missing then, and is there now, is a change.
        """
        config = self.config
        folder = Path(config.images).expanduser()  # the table's own may gain a file with every run
        sources = [*read.files, *([folder] if config.images and folder.is_dir() else [])]
        prints = [None if table is None else table._fingerprint for table in read.pictures]
        facts: list[Any] = [config.columns, config.images, [*rule], prints, config.root, str(read.tables[0].folder)]
        while True:
            name = f"vqa-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]}"
            index = cached_table(config.cache, name, sources, _FIELDS, partial(self._rows, self._parsed(read), rule))
            if not (restored := _restored(index)):
                return index
            facts.append(restored)

    def _rows(self, questions: VQARows, rule: Rule) -> Iterator[Record]:
        """Every row of the tables with its split; one that is no use with the split "" and what is wrong with it."""
        try:
            survey = Survey(questions, rule)
        except Undivided as error:
            raise DataError(f"data.root={self.config.root}: {error.said('data.{}=')}") from error
        if survey.note:
            log.warning("data.root=%s: %s", self.config.root, survey.note)
        for placed in survey.place(questions):
            question = placed.question
            image = question.image if isinstance(question.image, str) else ""
            if placed.record is None:
                yield {"id": question.place, "image": image, "split": _NONE, "fault": placed.fault}
            else:
                table, row = question.at
                kept = {"image": image, "split": placed.split, "fault": "", "shard": table, "image_at": row}
                yield placed.record | kept

    def _refuse(self, split: str, splits: Sequence[str]) -> None:
        has = f"data.root={self.config.root} has no split {split!r}; it has {', '.join(splits) or 'no good row'}"
        if splits == ["test"]:
            raise DataError(f"{has}: none of its questions has an answer")
        raise DataError(f"{has}: set data.train_split=, data.val_split=; {_LAYOUT}")

    def _judge(self, index: TableRecords, splits: Sequence[str]) -> None:
        """Name the rows that are no use and are left out; beyond a share they are an error."""
        bad: dict[str, list[str]] = defaultdict(list)
        for row in (row for row, own in enumerate(splits) if own == _NONE):
            record = index[row]
            what, _, detail = record["fault"].partition(": ")
            bad[what].append(f"{record['id']}{detail and f': {detail}'}")
        count, rows = sum(map(len, bad.values())), len(splits)
        if not count:
            return
        what = f"data.root={self.config.root}: {count:,} of {rows:,} rows are no use: {described(bad)}"
        if count > self.config.max_bad_fraction * rows:
            raise DataError(
                f"{what}; that is more than data.max_bad_fraction={self.config.max_bad_fraction}: correct the table, "
                f"or `vlbeit prepare vqa --from {self.config.root}` leaves such rows out and lists them all"
            )
        log.warning("%s; they are left out", what)


class SplitRecords:
    """The questions of one split out of the index of all; pictures inside a table are read when a record is."""

    def __init__(
        self, index: TableRecords, rows: Sequence[int], pictures: Sequence[tuple[Dataset, str] | None]
    ) -> None:
        """`pictures`: of each table the one with its encoded pictures, and their column; None where they are files."""
        self._questions = ChosenRecords(index, rows)
        self._pictures = [
            None if given is None else given[0].select_columns([given[1]]).with_format("arrow") for given in pictures
        ]
        self._prints = [None if given is None else given[0]._fingerprint for given in pictures]

    def __len__(self) -> int:
        return len(self._questions)

    def __getitem__(self, index: int) -> Record:
        found = self._questions[index]
        record = {name: found[name] for name in KINDS["vqa"]}
        stored = self._pictures[found["shard"]]
        if not record["image"] and stored is not None:
            value = stored[found["image_at"]][stored.column_names[0]][0].as_py()
            record["image"] = value["bytes"] if isinstance(value, dict) else value
        return record

    def column(self, name: str) -> Sequence[Any]:
        if name == ORIGIN:
            columns = (self._questions.column(part)[:] for part in ("image", "shard", "image_at"))
            return [image or f"{self._prints[shard]} {at}" for image, shard, at in zip(*columns, strict=True)]
        inside = name == "image" and any(stored is not None for stored in self._pictures)
        return FieldColumn(self, name) if inside else self._questions.column(name)


def _restored(index: TableRecords) -> list[str]:
    """The pictures that were missing when the index was written, and are there now."""
    pictures = PictureNames(Path())
    rows = [row for row, fault in enumerate(index.column("fault")[:]) if fault.startswith(MISSING)]
    return sorted({path for path in (index[row]["image"] for row in rows) if pictures.find(path)[1]})


def _holds_pictures(path: Path, column: str) -> bool:
    """Whether a column of a Parquet file has pictures rather than their names."""
    if path.suffix.lower() != ".parquet":
        return False
    kind = pq.read_schema(path).field(column).type
    return pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


SOURCE = OwnQuestions
