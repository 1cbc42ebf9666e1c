"""Images with captions, from JSON lines, CSV, or `datasets` tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from vlbeit.data.captions import CaptionedRecords
from vlbeit.data.index import cached_table
from vlbeit.data.prepared import prepared_records
from vlbeit.data.records import KINDS, looked_at
from vlbeit.data.row_files import open_table
from vlbeit.data.sources.base import DataSource, missing_files, split_files
from vlbeit.data.storable import storable
from vlbeit.data.tables import TextTable, is_saved_table, saved_table
from vlbeit.data.tar_samples import kept_texts
from vlbeit.errors import DataError, some
from vlbeit.types import Record, Records

_LAYOUT = (
    'pairs reads train.jsonl and val.jsonl with lines {"image": "path", "caption": "text" or ["text", ...]}, '
    "or a .csv, .tsv or datasets table with the columns image and caption"
)
_SUFFIXES = ((".jsonl",), (".parquet", ".arrow"), (".csv",), (".tsv",))  # the first of these that a split has


class Pairs(DataSource):
    """Images with captions: JSON lines or CSV with image and caption (paths relative to the file), or a table.

    The table is one of `datasets`; data.images= names the folder that paths are relative to where it is another. A row
    without a caption is a broken sample (`vlbeit.data.captions`). Of a root that `vlbeit prepare` made, what it wrote
    is read.
    """

    kinds: ClassVar[tuple[str, ...]] = ("pairs", "images", "text")
    takes_images: ClassVar[bool] = True

    def records(self, kind: str, split: str) -> Records:
        if (prepared := prepared_records(self.root, kind, split, self.config.cache)) is not None:
            return prepared
        files = [] if is_saved_table(self.root) else split_files(self.root, split, _SUFFIXES, _LAYOUT)
        images = self._images()
        if files and files[0].suffix in (".jsonl", ".csv", ".tsv"):
            sources = [*files, *([images] if images else [])]
            name = f"pairs-{kind}-in" if images else f"pairs-{kind}"
            found: Records = cached_table(
                self.config.cache, name, sources, KINDS[kind], lambda: _rows(files, kind, images)
            )
        else:
            table = saved_table(self.root, split, files, self.config.cache)
            folder = images or (self.root if self.root.is_dir() else self.root.parent)
            found = TextTable(table, kind, folder, "caption", least=1)
            if kind != "text":
                _check_some(found, self.root, folder)
        place = str(files[0] if len(files) == 1 else self.root)
        return found if kind == "images" else CaptionedRecords(found, place)

    def _images(self) -> Path | None:
        """The folder that paths are relative to; None for that of the table. DataError where it is none."""
        if not self.config.images:
            return None
        folder = Path(self.config.images).expanduser().absolute()
        if not folder.is_dir():
            raise DataError(f"data.images={self.config.images} is no folder; name the one that the pictures lie in")
        return folder


def _rows(files: Sequence[Path], kind: str, images: Path | None) -> Iterator[Record]:
    """Records of one kind; images come once each, in the order of their first line."""
    seen: dict[Path, None] = {}
    for file in files:
        for number, name, captions in _lines(file, kind):
            path = (images or file.parent) / name
            if kind != "images":
                for position, text in enumerate(captions or [""]):
                    record = {"id": f"{name}#{number}.{position}", "text": text}
                    yield record if kind == "text" else {**record, "image": str(path), "picture": str(path)}
            elif path not in seen:
                yield {"id": name, "image": str(path)}
            seen[path] = None
    if kind != "text" and (missing := missing_files(seen)):
        raise _missing(", ".join(map(str, files)), missing, images or files[0].parent)


def _lines(file: Path, kind: str) -> Iterator[tuple[str, str, list[str]]]:
    """Number, image name and captions of every row; of the kind `images` there may be no captions at all."""
    table = open_table(file)
    needed = [name for name in ("image", "caption") if kind != "images" or name != "caption"]
    if lacking := [name for name in needed if name not in table.columns]:
        raise DataError(
            f"{file} has no column {' and '.join(lacking)}; it has {', '.join(table.columns)}: rename them; {_LAYOUT}"
        )
    for row in table.read(needed):
        if fault := row.fault or _fault(row.values):
            raise DataError(f"{file}, {row.place}: {fault}; {_LAYOUT}")
        yield row.place.split()[-1], row.values["image"], kept_texts(row.values.get("caption"))


def _fault(values: dict[str, Any]) -> str:
    """What is wrong with a row; "" for one that can be read, with or without captions."""
    image, caption = values["image"], values.get("caption")
    texts = caption if isinstance(caption, list) else [caption]
    if not isinstance(image, str) or not image:
        return "image must be the path of a picture"
    if not all(text is None or isinstance(text, str) for text in texts):
        return "caption must be a text or a list of texts"
    try:
        storable(image)
    except ValueError as error:
        return f"image: {error}"
    return ""


def _check_some(table: Records, root: Path, folder: Path) -> None:
    """Raise `DataError` where none of the pictures that are looked at lies where the table says."""
    named = [table[row]["image"] for row in looked_at(len(table))]
    paths = [Path(value) for value in named if isinstance(value, str)]
    if paths and len(paths) == len(named) and len(missing := missing_files(paths)) == len(paths):
        raise _missing(str(root), missing, folder)


def _missing(names: str, missing: Sequence[Path], folder: Path) -> DataError:
    return DataError(
        f"{names}: images that do not exist: {some(missing)}; add them, or remove their rows, or set data.images= to "
        f"the folder that their paths are relative to (now {folder})"
    )


SOURCE = Pairs
