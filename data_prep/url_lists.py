"""Lists of pictures on the web, an address and a caption a row, in the layouts in which they are published."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vlbeit.data.json_file import JsonFile
from vlbeit.data.row_files import SUFFIXES, Table, open_table
from vlbeit.data.storable import storable
from vlbeit.errors import DataError, UsageError, some

from .preparation import fingerprint

_URLS = ("url", "image_url", "img_url", "image_urls", "image")
_CAPTIONS = ("caption", "text", "captions", "top_caption", "alt_text", "alt")


class Wish(NamedTuple):
    """A row of a list; `fault`: why there is nothing to ask for."""

    url: str
    caption: str
    fault: str = ""


class UrlList(NamedTuple):
    """A list that is read as often as one asks; the number of a row is its place."""

    paths: list[Path]
    rows: Callable[[], Iterator[Wish]]

    def prints(self) -> list[list[Any]]:
        """By what a restarted download knows the list again."""
        return [fingerprint(path) for path in self.paths]


def plain_columns(path: Path, url: int, caption: int) -> UrlList:
    """Lines of columns with tabs between them, no quotes and no heading: Conceptual Captions."""

    def rows() -> Iterator[Wish]:
        try:
            with open(path, encoding="utf-8-sig", newline="\n") as lines:
                for number, line in enumerate(lines):
                    cells = line.rstrip("\r\n").split("\t")
                    if number == 0 and not any("://" in cell for cell in cells):
                        continue  # a heading, as img2dataset asks for
                    if len(cells) <= max(url, caption):
                        yield Wish("", "", "no URL and caption in the line")
                    else:
                        yield _wish(cells[url], cells[caption])
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 ({error.reason}); get it again") from error

    return UrlList([path], rows)


def sbu_json(path: Path) -> UrlList:
    """sbu-captions-all.json: an object with the arrays `image_urls` and `captions`."""

    def rows() -> Iterator[Wish]:
        file = JsonFile(path)
        try:
            for (_, url), (_, caption) in zip(file.items("image_urls"), file.items("captions"), strict=True):
                yield _wish(url, caption)
        except ValueError as error:
            raise DataError(f"{path}: image_urls and captions are not of one length; get it again") from error

    return UrlList([path], rows)


def two_texts(urls: Path, captions: Path) -> UrlList:
    """Two files of lines: SBU_captioned_photo_dataset_urls.txt and ..._captions.txt."""

    def rows() -> Iterator[Wish]:
        try:
            with (
                open(urls, encoding="utf-8-sig") as first,
                open(captions, encoding="utf-8-sig", newline="\n") as second,
            ):
                for url, caption in zip(first, second, strict=True):
                    yield _wish(url.strip(), caption)
        except ValueError as error:
            raise DataError(f"{urls} and {captions} do not fit: {error}; get both again") from error

    return UrlList([urls, captions], rows)


def tables(paths: Sequence[Path], url: str, caption: str) -> UrlList:
    """Tables with a heading: CSV, TSV, JSON lines, Parquet. `url`, `caption`: their columns, "" to be found.

    Raises `UsageError` where a column cannot be found.
    """
    opened = [open_table(path) for path in paths]
    columns = [(_column(table, url, _URLS, "url"), _column(table, caption, _CAPTIONS, "caption")) for table in opened]

    def rows() -> Iterator[Wish]:
        for table, (of_url, of_caption) in zip(opened, columns, strict=True):
            for row in table.read(list(dict.fromkeys((of_url, of_caption)))):
                yield Wish("", "", row.fault) if row.fault else _wish(row.values[of_url], row.values[of_caption])

    return UrlList(list(paths), rows)


def table_files(path: Path) -> list[Path]:
    """The table itself, or those of a folder. DataError where there is none."""
    found = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    if not found:
        raise DataError(f"{path} holds no table ({', '.join(SUFFIXES)}) and no .tar")
    return found


def _column(table: Table, wanted: str, usual: Sequence[str], option: str) -> str:
    lower = {name.lower(): name for name in reversed(table.columns)}
    if wanted:
        if wanted not in table.columns:
            raise UsageError(f"{table.name} has no column {wanted!r}; it has {some(table.columns, 8)}")
        return wanted
    if found := next((lower[name] for name in usual if name in lower), None):
        return found
    raise UsageError(f"{table.name}: no column {usual[0]!r}; name it by --{option}-column: {some(table.columns, 8)}")


def _wish(url: Any, caption: Any) -> Wish:
    """White space of a caption becomes one blank, as a line of its own needs."""
    if not isinstance(url, str) or not url.strip():
        return Wish("", "", "no URL")
    text = " ".join(caption.split()) if isinstance(caption, str) else ""
    try:
        storable(url + text)
    except ValueError:
        return Wish("", "", "half a letter in URL or caption")
    return Wish(url.strip(), text, "" if text else "no caption")
