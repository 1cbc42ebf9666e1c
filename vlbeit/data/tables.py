"""Tables that users bring: whatever `datasets` saved, and .parquet or .arrow files."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlbeit.data.index import cache_folder
from vlbeit.data.records import FieldColumn
from vlbeit.data.tar_samples import kept_texts
from vlbeit.data.vqa_splits import called
from vlbeit.errors import DataError
from vlbeit.types import Record

if TYPE_CHECKING:
    from datasets import Dataset


def saved_table(root: Path, split: str, files: Sequence[Path], cache: str | Path) -> Dataset:
    """A `datasets` table that the user brings: a `save_to_disk` folder, or its .parquet and .arrow files of one split.

    Images are left encoded. Raises `DataError` for a folder or file that is no table or has not the split.
    """
    from datasets import Dataset, DatasetDict, Image, concatenate_datasets, disable_progress_bars, load_from_disk
    from datasets.utils.logging import CRITICAL, set_verbosity

    disable_progress_bars()
    set_verbosity(CRITICAL)  # what it would log is raised as well
    try:
        if files:
            parquet = [str(file) for file in files if file.suffix == ".parquet"]
            parts = [Dataset.from_parquet(parquet, cache_dir=str(cache_folder(cache)))] if parquet else []
            parts += [Dataset.from_file(str(file)) for file in files if file.suffix == ".arrow"]
            table = concatenate_datasets(parts) if len(parts) > 1 else parts[0]
        else:
            table = load_from_disk(str(root))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{root} cannot be read as a datasets table: {str(error).splitlines()[0]}") from error
    if isinstance(table, DatasetDict):
        split = next((name for name in called(split) if name in table), split)
        if split not in table:
            raise DataError(
                f"{root} has no split {split!r}; it has {', '.join(table)}: set data.train_split, data.val_split"
            )
        table = table[split]
    for name, feature in table.features.items():
        if isinstance(feature, Image):
            table = table.cast_column(name, Image(decode=False))
    return table


def is_saved_table(folder: Path) -> bool:
    """Whether `datasets` saved a table or a dictionary of tables in this folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file()


class TextTable:
    """Records over a user's `datasets` table with an image column (path or bytes) and a column of text or texts.

    Texts that say nothing are left out. A row of which none is left has `least` records, 0 or 1, whose text is "".
    """

    def __init__(self, table: Dataset, kind: str, folder: Path, text: str, least: int = 0) -> None:
        """`folder`: what paths of pictures are relative to."""
        needed = {"images": ("image",), "text": (text,), "pairs": ("image", text)}[kind]
        if lacking := [name for name in needed if name not in table.column_names]:
            raise DataError(
                f"{folder} has no column {' and '.join(lacking)}; it has {', '.join(table.column_names)}: rename them"
            )
        self._table = table.select_columns(list(needed))
        self._kind, self._folder, self._text = kind, folder, text
        counts = np.ones(len(table), dtype=np.int64) if kind == "images" else np.maximum(_counts(table, text), least)
        self._rows = np.repeat(np.arange(len(table)), counts)  # record -> row
        self._first = np.cumsum(counts) - counts  # row -> its first record

    @property
    def identity(self) -> str:
        """As of `TableRecords`."""
        return f"{self._kind} {self._text} kept {len(self)} {self._table._fingerprint}"

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        row = int(self._rows[index])
        values = self._table[row]
        position = int(index) - int(self._first[row])
        record: Record = {"id": f"{row}" if self._kind == "images" else f"{row}.{position}"}
        if self._kind != "text":
            record["image"] = self._image(values["image"])
        if self._kind != "images":
            texts = kept_texts(values[self._text])
            record["text"] = texts[position] if position < len(texts) else ""
        if self._kind == "pairs":
            record["picture"] = f"{row}"
        return record

    def column(self, name: str) -> Sequence[Any]:
        if name == "text" and self._kind == "pairs":  # the images are not touched
            alone = copy(self)
            alone._table, alone._kind = self._table.select_columns([self._text]), "text"
            return FieldColumn(alone, name)
        return FieldColumn(self, name)

    def _image(self, value: Any) -> str | bytes:
        if isinstance(value, dict):  # an Image feature of `datasets`, left encoded
            value = value["bytes"] or value["path"]
        return str(self._folder / value) if isinstance(value, str) else value


def _counts(table: Dataset, text: str) -> np.ndarray:
    """Number of texts of every row that say something."""
    column = table.select_columns([text]).with_format("arrow")[:].column(text)
    counts = [_counts_of(chunk) for chunk in column.chunks]
    return np.concatenate(counts) if counts else np.zeros(0, np.int64)


def _counts_of(values: pa.Array) -> np.ndarray:
    """Of each value, a text or a list of texts, how many texts say something; none of what is no text."""
    rows, texts = np.arange(len(values)), values
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        rows, texts = np.asarray(pc.list_parent_indices(values)), pc.list_flatten(values)
    if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
        return np.zeros(len(values), np.int64)
    said = pc.fill_null(pc.not_equal(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0), False)
    return np.bincount(rows[said.to_numpy(zero_copy_only=False)], minlength=len(values))
