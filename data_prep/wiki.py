"""Documents for the text stage: WikiExtractor's files, plain text, tables with a column text, to Parquet shards."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from vlbeit import hub
from vlbeit.data.following import BEIT, next_command
from vlbeit.data.names import Names
from vlbeit.data.row_files import SUFFIXES, open_table, stored_table
from vlbeit.data.storable import storable
from vlbeit.errors import DataError, UsageError

from .preparation import Options, Out, Plan, ShardMB, Split, fingerprint, given, run
from .progress import Report, counted, size
from .shards import Finding, Item, Layout, Position

_TITLES, _ADDRESSES = ("title",), ("url",)
_PACKED: dict[str, Callable[..., Any]] = {".bz2": bz2.open, ".gz": gzip.open}  # as WikiExtractor --compress writes
_XML = (".xml", ".xml.bz2", ".xml.gz")


class Document(NamedTuple):
    """One text, where it comes from, and its address, which two versions of one article share."""

    place: str
    title: str
    text: str
    address: str = ""

    @property
    def key(self) -> str:
        """What says to which split it belongs."""
        return self.address or self.text


def prepare(
    out: Out,
    *,
    from_: Annotated[list[str], "WikiExtractor's folder (--json), text files, tables with a column text, or hub:NAME"],
    text_column: Annotated[str, "column of a table that holds the text"] = "text",
    held_out: Annotated[float, "share of the documents for the split val"] = 0.005,
    seed: Annotated[int, "which documents are held out"] = 0,
    least: Annotated[int, "characters: shorter documents (redirects, lists of names) are left out"] = 100,
    shard_mb: ShardMB = 256,
    report: Report | None = None,
) -> str:
    """Prepare documents for the text stage: Parquet shards of id, title, text for data=text and data=shards.

    Reads what WikiExtractor --json wrote (AA/wiki_00, ...), text files (documents separated by empty lines), tables
    (.csv .tsv .jsonl .json .parquet) and data sets of the hub (hub:OWNER/NAME, or hub:FOLDER in its layout). A text
    that came before is left out, and so is another version of an article (the same url). A dump (.xml.bz2) is first
    run through WikiExtractor: python -m wikiextractor.WikiExtractor DUMP --json -o FOLDER.
    """
    say = report or (lambda line: None)
    if not 0 <= held_out < 1:
        raise UsageError(f"--held-out {held_out:g}: give a share of the documents below 1, or 0")
    sources = given(from_)
    documents = _Documents(sources, text_column, least)
    survey = Counter[str]()
    totals = Counter[str]()
    for document, why in counted(documents.told(), "reading: {} documents", say):
        split = _split(document, held_out, seed)
        survey[why or split] += 1
        totals[split] += 0 if why else len(document.text.encode())
    said = ", ".join(f"{count:,} {what}" for what, count in survey.most_common())
    say(f"documents: {said or 'none'} ({size(totals.total())})")
    if held_out and survey["train"] and not survey["val"]:
        say(f"no split val: by --held-out {held_out:g} none of so few documents falls to it; give a larger share")
    if not survey["train"]:
        raise DataError(f"--from {','.join(sources)}: no document that can be used is for train ({said or 'none'})")
    arguments = {
        "from": documents.prints(), "text_column": text_column, "held_out": held_out, "seed": seed, "least": least,
        "shard_mb": shard_mb, "counts": dict(sorted(survey.items())),
    }  # fmt: skip
    plan = Plan(
        layout=Layout("text", "parquet", arguments, more=("title",)),
        classes=[],
        splits=[
            Split(split, totals[split], _items(documents, split, lambda document: _split(document, held_out, seed)))
            for split in ("train", "val")
            if survey[split]
        ],
        examine=lambda item: Finding(),
        archives=[],
    )
    run(out, plan, Options(1, shard_mb), report)
    return next_command(f"stage=mlm init={BEIT} stage.pack=true data=shards", out, "mlm")


def _items(
    documents: _Documents, split: str, split_of: Callable[[Document], str]
) -> Callable[[Position], Iterator[Item]]:
    def items(after: Position) -> Iterator[Item]:
        for number, (document, why) in enumerate(documents.told()):
            if not why and (number,) > after and split_of(document) == split:
                yield Item((number,), {"id": document.place, "title": document.title, "text": document.text})

    return items


def _split(document: Document, held_out: float, seed: int) -> str:
    """By a hash of the document: the same however many others there are."""
    digest = hashlib.blake2b(f"{seed} {document.key}".encode(), digest_size=8).digest()
    return "val" if int.from_bytes(digest, "big") < held_out * 2**64 else "train"


class _Documents:
    """The documents of all sources in a fixed order, as often as one asks."""

    def __init__(self, sources: Sequence[str], text_column: str, least: int) -> None:
        self._column, self._least = text_column, least
        self._hubs = [source for source in sources if source.startswith(hub.PREFIX)]
        paths = [Path(source).expanduser() for source in sources if source not in self._hubs]
        if missing := [path for path in paths if not path.exists()]:
            raise DataError(f"{missing[0]} does not exist; give --from files, folders or {hub.PREFIX}NAME")
        self._files = [(name, file) for path in paths for name, file in _files(path)]
        if dump := next((file for _, file in self._files if file.name.endswith(_XML)), None):
            raise UsageError(
                f"{dump} is a dump; run: python -m wikiextractor.WikiExtractor {dump} --json -o FOLDER, and give "
                f"--from FOLDER"
            )

    def prints(self) -> list[list[Any]]:
        """By what a restarted preparation knows the sources again."""
        return [[name] for name in self._hubs] + [fingerprint(file) for _, file in self._files]

    def told(self) -> Iterator[tuple[Document, str]]:
        """Every document, and why it is left out ("": it is not)."""
        texts, addresses = Names(), Names()
        for document in map(_whole, self._read()):
            if len(document.text) < self._least:
                yield document, "too short"
            elif document.address and not addresses.add(document.address):
                yield document, "another version of an article"
            else:
                yield document, "" if texts.add(" ".join(document.text.split())) else "the text came before"

    def _read(self) -> Iterator[Document]:
        for name in self._hubs:
            for split, table in hub.load_tables(name.removeprefix(hub.PREFIX)).items():
                place = f"{name.removeprefix(hub.PREFIX)}/{split}"
                yield from self._rows(place, stored_table(f"{name} {split}", table, Path.cwd()))
        for name, file in self._files:
            if file.suffix.lower() in SUFFIXES:
                yield from self._rows(name, open_table(file))
            elif _is_json(file):
                yield from _extracted(name, file)
            else:
                yield from _paragraphs(name, file)

    def _rows(self, name: str, table: Any) -> Iterator[Document]:
        if self._column not in table.columns:
            raise UsageError(
                f"{table.name} has no column {self._column!r}; it has {', '.join(table.columns)}: --text-column"
            )
        others = [next((column for column in usual if column in table.columns), "") for usual in (_TITLES, _ADDRESSES)]
        for number, row in enumerate(table.read([column for column in (self._column, *others) if column])):
            title, address = (str(row.values.get(column) or "") for column in others)
            yield Document(f"{name}:{number}", title, _clean(str(row.values.get(self._column) or "")), address)


def _files(path: Path) -> list[tuple[str, Path]]:
    """The file, or those below a folder but for hidden ones, in order, each with its name from the folder on."""
    if path.is_file():
        return [(path.name, path)]
    found = sorted(file for file in path.rglob("*") if file.is_file())
    named = [(file.relative_to(path), file) for file in found]
    return [(name.as_posix(), file) for name, file in named if not any(part[0] == "." for part in name.parts)]


def _is_json(path: Path) -> bool:
    """Whether it is a file of WikiExtractor --json, whose names have no ending: an object a line."""
    return next(_lines(path), "").startswith("{")


def _extracted(name: str, path: Path) -> Iterator[Document]:
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            try:
                row = json.loads(line)
                title, text, address = str(row.get("title") or ""), row["text"], str(row.get("url") or "")
                if not isinstance(text, str):
                    raise TypeError("text is no text")
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f"{path}, line {number}: {type(error).__name__}: {error}; is it of WikiExtractor --json?"
                ) from error
            yield Document(f"{name}:{number}", title, _clean(text), address)


def _paragraphs(name: str, path: Path) -> Iterator[Document]:
    """Runs of lines between empty ones."""
    held: list[str] = []
    start = 1
    for number, line in enumerate(_ended(_lines(path)), 1):
        if line.strip():
            start = start if held else number
            held.append(line)
        elif held:
            yield Document(f"{name}:{start}", "", _clean("".join(held)))
            held = []


def _ended(lines: Iterable[str]) -> Iterator[str]:
    yield from lines
    yield ""


def _lines(path: Path) -> Iterator[str]:
    try:
        with _PACKED.get(path.suffix, open)(path, "rt", encoding="utf-8-sig") as file:
            yield from file
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason}); convert it, or leave it out") from error
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read ({error}); get it again") from error


def _whole(document: Document) -> Document:
    """The same, with ? for halves of letters (of a pair of UTF-16, as JSON may have them): no file can hold those."""
    try:
        storable("".join(document))
    except ValueError:
        return Document(*(part.encode(errors="replace").decode() for part in document))
    return document


def _clean(text: str) -> str:
    """Lines without the white space around them, empty ones left out."""
    return "\n".join(line for line in map(str.strip, text.splitlines()) if line)
