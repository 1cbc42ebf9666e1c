"""Questions of your own: a CSV, JSON lines or Parquet table, a data set of the hub, or what `prepare vqa` wrote."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from vlbeit import hub
from vlbeit.data.index import cached_table
from vlbeit.data.prepared import prepared_records
from vlbeit.data.records import KINDS, FieldColumn, TableRecords
from vlbeit.data.row_files import Table, open_table, stored_table
from vlbeit.data.sources.base import DataSource
from vlbeit.data.sources.question_files import EachPictureOnce
from vlbeit.data.tables import saved_table
from vlbeit.data.vqa_rows import VQARows, parse_columns
from vlbeit.data.vqa_splits import HELD, HELD_OUT, Rule, Survey, Undivided, canonical, described, table_files
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


class _Read(NamedTuple):
    """What is read for one split: tables, the files that they come from, and the table that holds the pictures."""

    tables: list[Table]
    files: list[Path]
    stored: Dataset | None = None


class OwnQuestions(DataSource):
    """Questions of your own: a table (CSV, JSON lines, Parquet), a folder of tables, hub:NAME, or a prepared folder.

    Columns image, question and answers, or others by `data.columns=[question:its_name]`. Where the data names no split
    to evaluate on, `data.held_out` of its pictures (a tenth) are held out, chosen by `data.split_seed` and their names.
    """

    kinds: ClassVar[tuple[str, ...]] = ("vqa", "images")

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
        """The records of a table, from its index where nothing has changed since that was written."""
        config = self.config
        train, val = canonical(config.train_split), canonical(config.val_split)
        rule = Rule(config.held_out or HELD_OUT, config.split_seed, train, val)
        read, rule = self._hub_table(split, rule) if self._hub else self._file_tables(split, rule)
        questions = self._parsed(read)
        column = questions.column("image")
        if read.stored is None and _holds_pictures(read.files, column):
            stored, first = saved_table(self.root, split, read.files, config.cache), read.tables[0]
            read = _Read([stored_table(first.name, stored, first.folder, first.split)], read.files, stored)
            questions = self._parsed(read)
        fields = KINDS["vqa"] if read.stored is None else (*KINDS["vqa"], "image_at")
        folder = Path(config.images).expanduser()  # the table's own may gain a file with every run
        sources = [*read.files, *([folder] if config.images and folder.is_dir() else [])]
        name = f"vqa-{split}-{self._print(rule, read)}"
        rows = partial(self._rows, questions, rule, split, at="image_at" in fields)
        table = cached_table(config.cache, name, sources, fields, rows)
        return table if read.stored is None else StoredPictures(table, read.stored, column)

    def _parsed(self, read: _Read) -> VQARows:
        columns = parse_columns(self.config.columns, _OPTION)
        return VQARows(read.tables, columns, self.config.images, _OPTION)

    def _file_tables(self, split: str, rule: Rule) -> tuple[_Read, Rule]:
        """The files to read for a split, and whether something is held out of them."""
        if self.root.is_file():
            return _Read([open_table(self.root)], [self.root]), rule
        files = table_files(self.root, (rule.train, rule.val))
        if "" in files:
            return _Read([open_table(path) for path in files[""]], files[""]), rule
        own, rule = self._chosen(split, list(files), rule)
        return _Read([open_table(path, own) for path in files[own]], files[own]), rule

    def _hub_table(self, split: str, rule: Rule) -> tuple[_Read, Rule]:
        """The same of a data set of the hub."""
        found = {canonical(name): table for name, table in hub.load_tables(self._hub).items()}
        own, rule = self._chosen(split, list(found), rule)
        folder = Path(self._hub).expanduser()
        table = stored_table(self.config.root, found[own], folder if folder.is_dir() else Path.cwd(), own)
        return _Read([table], [], found[own]), rule

    def _chosen(self, split: str, names: Sequence[str], rule: Rule) -> tuple[str, Rule]:
        """Of splits in tables of their own the one to read: where there is none to evaluate on, the training split."""
        rule = rule._replace(held_out=0) if {HELD, rule.val} & {*names} else rule
        own = split if split in names else rule.train
        if own not in names or (own != split and split != HELD):
            raise DataError(
                f"data.root={self.config.root} has no split {split!r}; it has {', '.join(names)}: set "
                f"data.train_split=, data.val_split=; {_LAYOUT}"
            )
        return own, rule

    def _print(self, rule: Rule, read: _Read) -> str:
        """What the index depends on beside the files."""
        stored = "" if read.stored is None else read.stored._fingerprint
        config = self.config
        folder = str(read.tables[0].folder)
        facts = [config.columns, config.images, config.max_bad_fraction, [*rule], stored, config.root, folder]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]

    def _rows(self, questions: VQARows, rule: Rule, split: str, *, at: bool) -> Iterator[Record]:
        """The records of a split; `at`: with `image_at`, the row of the table that holds the picture.

        Rows that are no use are left out and named; beyond a share they are an error.
        """
        survey = self._survey(questions, rule)
        if split not in survey.splits and survey.splits:
            hidden = ": none of its questions has an answer" if survey.splits == ["test"] and split != "test" else ""
            raise DataError(
                f"data.root={self.config.root} has no split {split!r}; it has {', '.join(survey.splits)}{hidden}"
            )
        bad: dict[str, list[str]] = defaultdict(list)
        for placed in survey.place(questions):
            if placed.record is None:
                what, _, detail = placed.fault.partition(": ")
                bad[what].append(f"{placed.question.place}{detail and f': {detail}'}")
            elif placed.split == split:
                image = placed.question.image
                record = placed.record | {"image": image if isinstance(image, str) else ""}
                yield record | ({"image_at": placed.number - 1} if at else {})
        self._judge(bad, survey.rows)

    def _survey(self, questions: Iterable[Any], rule: Rule) -> Survey:
        try:
            return Survey(questions, rule)
        except Undivided as error:
            raise DataError(f"data.root={self.config.root}: {error} (data.held_out=, data.columns=)") from error

    def _judge(self, bad: dict[str, list[str]], rows: int) -> None:
        count = sum(map(len, bad.values()))
        if not count:
            return
        what = f"data.root={self.config.root}: {count:,} of {rows:,} rows are no use: {described(bad)}"
        if count > self.config.max_bad_fraction * rows:
            raise DataError(
                f"{what}; that is more than data.max_bad_fraction={self.config.max_bad_fraction}: correct the table, "
                f"or `vlbeit prepare vqa --from {self.config.root}` leaves such rows out and lists them all"
            )
        log.warning("%s; they are left out", what)


class StoredPictures:
    """Question records whose pictures are encoded bytes in a `datasets` table; read when a record is."""

    def __init__(self, table: TableRecords, stored: Dataset, column: str) -> None:
        self._table, self._column = table, column
        self._stored = stored.select_columns([column]).with_format("arrow")

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Record:
        record = self._table[index]
        at = record.pop("image_at")
        if not record["image"]:
            value = self._stored[at][self._column][0].as_py()
            record["image"] = value["bytes"] if isinstance(value, dict) else value
        return record

    def column(self, name: str) -> Sequence[Any]:
        return FieldColumn(self, name) if name == "image" else self._table.column(name)


def _holds_pictures(files: Sequence[Path], column: str) -> bool:
    """Whether a column of Parquet files has pictures rather than their names."""
    if not files or files[0].suffix.lower() != ".parquet":
        return False
    kind = pq.read_schema(files[0]).field(column).type
    return pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


SOURCE = OwnQuestions
