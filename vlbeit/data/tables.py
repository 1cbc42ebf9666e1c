"""Tables that users bring: whatever `datasets` saved, and .parquet or .arrow files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlbeit.data.index import cache_folder
from vlbeit.data.records import FieldColumn
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
    """Records over a user's `datasets` table with an image column (path or bytes) and a column of text or texts."""

    def __init__(self, table: Dataset, kind: str, folder: Path, text: str) -> None:
        needed = {"images": ("image",), "text": (text,), "pairs": ("image", text)}[kind]
        if lacking := [name for name in needed if name not in table.column_names]:
            raise DataError(
                f"{folder} has no column {' and '.join(lacking)}; it has {', '.join(table.column_names)}: rename them"
            )
        self._table = table.select_columns(list(needed))
        self._kind, self._folder, self._text = kind, folder, text
        counts = np.ones(len(table), dtype=np.int64) if kind == "images" else _counts(table, text)
        self._rows = np.repeat(np.arange(len(table)), counts)  # record -> row
        self._first = np.cumsum(counts) - counts  # row -> its first record

    @property
    def identity(self) -> str:
        """As of `TableRecords`."""
        return f"{self._kind} {self._text} {self._table._fingerprint}"

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
            text = values[self._text]
            record["text"] = text if isinstance(text, str) else text[position]
        if self._kind == "pairs":
            record["picture"] = f"{row}"
        return record

    def column(self, name: str) -> Sequence[Any]:
        if name == "text" and self._kind == "pairs":  # the images are not touched
            return TextTable(self._table, "text", self._folder, self._text).column("text")
        return FieldColumn(self, name)

    def _image(self, value: Any) -> str | bytes:
        if isinstance(value, dict):  # an Image feature of `datasets`, left encoded
            value = value["bytes"] or value["path"]
        if isinstance(value, str):
            folder = self._folder if self._folder.is_dir() else self._folder.parent
            return str(folder / value)
        return value


def _counts(table: Dataset, text: str) -> np.ndarray:
    """Number of texts of every row."""
    column = table.select_columns([text]).with_format("arrow")[:].column(text)
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return np.asarray(pc.fill_null(pc.list_value_length(column), 0), dtype=np.int64)
    return np.asarray(pc.is_valid(column), dtype=np.int64)
