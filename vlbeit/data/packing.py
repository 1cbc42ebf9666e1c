"""Texts packed into full sequences: no padding, and every token of a long text is seen.

The texts of a split, tokenised once, make one stream, [CLS] words [SEP] [CLS] words [SEP] ..., in a file of the cache.
Sequence i is a [CLS] and the tokens [1 + i * (T - 1), 1 + (i + 1) * (T - 1)) of the stream, T the length of a sequence:
a pure function of its number, so that resuming is exact, and a sequence is read in one piece however long its texts
are. A text that goes on in the next sequence begins there with a [CLS] again, as position tables want it; so every
[CLS] begins a text, and what is not its text is not seen by it (`vlbeit.nn.packed`).

Packing as RoBERTa's FULL-SENTENCES (arXiv 1907.11692), which differs from ours: its words see the other texts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from vlbeit import files
from vlbeit.data.index import cache_folder
from vlbeit.data.masked_text import MaskedText
from vlbeit.data.order import Member, Scattered, StreamOrder
from vlbeit.data.records import FieldColumn, StreamedTexts
from vlbeit.data.text import Tokenizer
from vlbeit.errors import DataError
from vlbeit.types import Record, Records, Sample

log = logging.getLogger(__name__)

SAMPLED = 10_000  # texts from which `count_rows` tells how many rows there will be
_FORMAT = 1  # raise it when the stream changes: older files are then left alone
_CHUNK = 1000  # texts tokenised at a time
_WINDOW = 10_000  # sequences permuted together, once they are scattered
_KEPT_EVERY = 10.0  # seconds after which what is done is safe from a kill
_TOLD_EVERY = 30.0  # seconds between lines of progress


class Stream(NamedTuple):
    """The tokens of a split in a file, and what they came from."""

    path: Path
    dtype: str
    tokens: int  # [CLS] and [SEP] of every text included
    texts: int
    empty: int  # texts without a token, which are left out


class PackedRecords:
    """Sequences of `length` tokens: records of `id` and `ids`; the last one alone may be shorter."""

    def __init__(self, stream: Stream, length: int, cls_id: int) -> None:
        self._stream, self._body, self._cls_id = stream, length - 1, cls_id
        self.order = StreamOrder([Member(Scattered(len(self)))], _WINDOW)  # of millions of sequences no list is kept

    def __len__(self) -> int:
        return -(-(self._stream.tokens - 1) // self._body)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        start = 1 + int(index) * self._body
        count = min(self._body, self._stream.tokens - start)
        size = np.dtype(self._stream.dtype).itemsize
        try:
            body = np.fromfile(self._stream.path, self._stream.dtype, count, offset=start * size)
        except OSError as error:
            body = np.empty(0)
            reason = error.strerror or str(error)
        else:
            reason = "it is cut off"
        if len(body) < count:
            raise DataError(
                f"{self._stream.path}, the packed text, cannot be read ({reason}); the same command goes on"
            )
        return {"id": f"sequence {index}", "ids": [self._cls_id, *body.tolist()]}

    def column(self, name: str) -> Sequence[Any]:
        """All values of `id` or `ids`, each read when it is asked for."""
        return FieldColumn(self, name)


class PackedTransform:
    """Sequence -> token ids, some words masked, and which text each token is of (1, 2, ...)."""

    def __init__(self, masked: MaskedText) -> None:
        self.masked, self._cls_id = masked, masked.tokenizer.cls_id

    def __call__(self, record: Record) -> Sample:
        begins = np.asarray(record["ids"]) == self._cls_id
        segments = begins.cumsum().tolist()
        return {"sample_id": record["id"], "text_segments": segments, **self.masked.of_ids(record["ids"])}


def packed(records: Records, tokenizer: Tokenizer, cache: str | Path) -> PackedRecords:
    """The texts of the records in sequences of `tokenizer.max_length` tokens.

    They are tokenised the first time, by one process while the others wait; broken off, that goes on where it was.
    Raises `DataError` where there is no text, or the cache cannot be written.
    """
    folder = cache_folder(cache)
    path = folder / f"packed-{_key(records, tokenizer)}.bin"
    try:
        stream = _stream(path, records, tokenizer)
    except OSError as error:
        raise DataError(
            f"cannot write the packed text {path}: {error.strerror or error}; set data.cache=DIR"
        ) from error
    if stream.texts == stream.empty:
        raise DataError("there is no text to pack: every record is empty")
    return PackedRecords(stream, tokenizer.max_length, tokenizer.cls_id)


def count_rows(records: Records, tokenizer: Tokenizer) -> int:
    """Sequences that `packed` would make of the records; of more than `SAMPLED` texts, as so many of them tell."""
    column = records.column("text")
    if isinstance(column, StreamedTexts):
        texts: Sequence[str] = list(column.sample(SAMPLED))
    else:
        texts = [column[row] for row in range(0, len(column), -(-len(column) // SAMPLED))]
    lengths = [length for length in tokenizer.lengths(texts) if length > 2]  # the others have no token of their own
    tokens = round(sum(lengths) * len(records) / len(texts))
    return max(1, -(-(tokens - 1) // (tokenizer.max_length - 1)))


def _key(records: Records, tokenizer: Tokenizer) -> str:
    facts = [_FORMAT, tokenizer.to_json(), len(records), _identity(records)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _identity(records: Records) -> str:
    """What differs where the texts do: told by records that know their files, else made of all texts."""
    known = getattr(records, "identity", None)
    if isinstance(known, str):
        return known
    digest = hashlib.sha256()
    column = records.column("text")
    for start in range(0, len(records), _CHUNK):
        for text in column[start : start + _CHUNK]:
            digest.update(json.dumps(text).encode())
    return digest.hexdigest()


def _stream(path: Path, records: Records, tokenizer: Tokenizer) -> Stream:
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    facts = path.with_suffix(".json")
    if not (facts.exists() and path.exists()):
        with FileLock(f"{path}.lock"):
            if not (facts.exists() and path.exists()):
                _write(path, facts, records, tokenizer)
    return Stream(path, **json.loads(facts.read_text(encoding="utf-8")))


def _write(path: Path, facts: Path, records: Records, tokenizer: Tokenizer) -> None:
    """Tokenise all texts into `.tmp-PATH`, with a note of what is safe beside it, then rename; `facts` comes last."""
    dtype = np.dtype("uint16" if tokenizer.vocab_size <= 2**16 else "uint32")
    temporary, note = path.with_name(f".tmp-{path.name}"), path.with_name(f".tmp-{facts.name}")
    done: dict[str, Any] = {"dtype": dtype.name, "tokens": 0, "texts": 0, "empty": 0}
    if note.exists() and temporary.exists():
        done = json.loads(note.read_text(encoding="utf-8"))
        log.info("packing texts: going on after %d of %d", done["texts"], len(records))
    kept, tell = time.monotonic(), _Teller(len(records), done["texts"])
    with open(temporary, "r+b" if done["texts"] else "wb") as file:
        file.truncate(done["tokens"] * dtype.itemsize)
        file.seek(0, os.SEEK_END)
        for added in _encoded(records, tokenizer, dtype, done):
            file.write(added.tobytes())
            tell(done["texts"])
            if time.monotonic() - kept > _KEPT_EVERY:
                _flush(file)
                files.write_json(note, done)
                kept = time.monotonic()
        _flush(file)
    temporary.replace(path)
    files.write_json(facts, done)
    note.unlink(missing_ok=True)


def _encoded(
    records: Records, tokenizer: Tokenizer, dtype: np.dtype[Any], done: dict[str, Any]
) -> Iterator[np.ndarray]:
    """The stream from where it stands, in pieces; `done` counts what has been given."""
    column = records.column("text")
    for start in range(done["texts"], len(records), _CHUNK):
        texts = column[start : start + _CHUNK]
        bodies = [ids for ids in tokenizer.encoded(texts) if ids]
        tokens = np.fromiter(chain.from_iterable((tokenizer.cls_id, *ids, tokenizer.sep_id) for ids in bodies), dtype)
        done["tokens"] += len(tokens)
        done["texts"] += len(texts)
        done["empty"] += len(texts) - len(bodies)
        yield tokens


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


class _Teller:
    """Says now and then how far it is; shorter work says nothing."""

    def __init__(self, total: int, before: int) -> None:
        self._total, self._before = total, before
        self._began = self._told = time.monotonic()

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now - self._told > _TOLD_EVERY:
            self._told = now
            minutes = (self._total - done) * (now - self._began) / (done - self._before) / 60
            log.info("packing texts: %d of %d, about %d minutes left", done, self._total, minutes + 1)
