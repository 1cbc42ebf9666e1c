"""The splits of VQA v2 that a folder holds, what was published about each, and one of them written as an index."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from vlbeit.data.visual_genome import GenomeFiles, genome_files, genome_rows
from vlbeit.data.vqa_v2_files import SUBTYPES, QuestionFiles, official_files, question_rows, refuse
from vlbeit.data.vqa_v2_splits import GENOME
from vlbeit.errors import DataError
from vlbeit.files import sha256, write_by
from vlbeit.types import Record

from .progress import Report, counted
from .shards import Layout, schema

_CHUNK = 10_000  # rows written at a time
_SCHEMA = schema(Layout("vqa", "index", {}))


class Counts(NamedTuple):
    """Of one split: questions, images that they ask about, answers of humans."""

    questions: int
    images: int
    answers: int

    def __str__(self) -> str:
        answers = f", {self.answers:,} answers" if self.answers else ""
        return f"{self.questions:,} questions about {self.images:,} images{answers}"


PUBLISHED = {
    "train": Counts(443_757, 82_783, 4_437_570), "val": Counts(214_354, 40_504, 2_143_540),
    "test": Counts(447_793, 81_434, 0), "test-dev": Counts(107_394, 36_807, 0),
}  # fmt: skip
"""visualqa.org, and for test-dev the data card of HuggingFaceM4/VQAv2. The answers of the tests are hidden."""

_PAIRS = {"train": 200_394, "val": 95_144}  # questions that two images answer differently


class Part(NamedTuple):
    """A split whose files are there."""

    name: str
    files: QuestionFiles | GenomeFiles
    tables: tuple[Path, ...]  # the JSON files that it is made of
    pairs: Path | None = None  # of complementary questions, where they are there

    @property
    def index_name(self) -> str:
        """Name of the file that holds its records in the prepared folder."""
        return f"{self.name}-00000.parquet"

    def rows(self) -> Iterator[Record]:
        """Its records. Raises `DataError` for whatever does not fit."""
        return genome_rows(self.files) if isinstance(self.files, GenomeFiles) else question_rows(self.files)

    def write(self, out: Path, report: Report) -> dict[str, Any]:
        """Check it and write its index into the folder; returns its line of the journal.

        Raises `DataError` for ids that come twice or dangle, and for pairs of unknown questions.
        """
        images: set[int] = set()
        questions: set[int] = set()
        answers = 0

        def write(path: Path) -> None:
            nonlocal answers
            rows = counted(self.rows(), f"reading {self.name}: {{}} questions", report)
            with pq.ParquetWriter(path, _SCHEMA) as writer:
                while chunk := list(islice(rows, _CHUNK)):
                    images.update(row["image_id"] for row in chunk)
                    questions.update(row["question_id"] for row in chunk)
                    answers += sum(len(row["answers"]) for row in chunk)
                    writer.write_table(pa.Table.from_pylist(chunk, schema=_SCHEMA))

        path = write_by(out / self.index_name, write)
        if not questions:
            raise DataError(f"{self.tables[0]} has no question; get the file again")
        facts = {"pairs": _pairs(self.pairs, questions)} if self.pairs else {}
        return {
            "split": self.name, "file": path.name, "size": path.stat().st_size, "rows": len(questions),
            "images": len(images), "answers": answers, **facts,
            "sha256": {table.name: sha256(table) for table in self.tables},
        }  # fmt: skip


def parts_of(root: Path, report: Report) -> list[Part]:
    """The splits whose files are all there; of the others a line says what they lack.

    Raises `DataError` without the files of train.
    """
    found = []
    for name in (*SUBTYPES, GENOME):
        files = genome_files(root) if name == GENOME else official_files(root, name)
        missing = files.missing()
        if missing and name == "train":
            raise DataError(f"{missing[0]} does not exist: give --root the folder of the official files of VQA v2")
        if missing:
            what = "Visual Genome, an extra source" if name == GENOME else name
            report(f"{what}: left out, there is no {', '.join(path.name for path in missing)}")
        else:
            found.append(_part(root, name, files))
    return found


def _part(root: Path, name: str, files: QuestionFiles | GenomeFiles) -> Part:
    if isinstance(files, GenomeFiles):
        return Part(name, files, (files.questions, *([files.images] if files.images else [])))
    pairs = root / f"v2_mscoco_{SUBTYPES[name]}_complementary_pairs.json"
    tables = (files.questions, *([files.annotations] if files.annotations else []))
    return Part(name, files, tables, pairs if name in _PAIRS and pairs.exists() else None)


def is_published(line: dict[str, Any]) -> bool:
    """Whether a split has the published numbers."""
    return Counts(line["rows"], line["images"], line["answers"]) == PUBLISHED.get(line["split"])


def described(line: dict[str, Any]) -> str:
    """A line for people about a split, its numbers beside the published ones."""
    name, found = line["split"], Counts(line["rows"], line["images"], line["answers"])
    if name == GENOME:
        return f"{name}: {found.questions:,} questions about {found.images:,} images of Visual Genome"
    told = "as published" if is_published(line) else f"published are {PUBLISHED[name]}: not the official split"
    if line.get("pairs") not in (None, _PAIRS.get(name)):
        told += f"; {line['pairs']:,} complementary pairs, published are {_PAIRS[name]:,}"
    return f"{name}: {found}, {told}"


def _pairs(path: Path, questions: set[int]) -> int:
    """How many pairs the file has. Raises `DataError` unless all are of questions of the split."""
    try:
        pairs = [(int(one), int(other)) for one, other in json.loads(path.read_text(encoding="utf-8"))]
    except (TypeError, ValueError) as error:
        raise DataError(f"{path} is no list of pairs of question ids ({error}); get the file again") from error
    unknown = sorted({number for pair in pairs for number in pair} - questions)
    refuse(unknown, f"{path}: unknown question ids", "take all files from the same release")
    return len(pairs)
