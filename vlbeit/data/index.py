"""Indexes: memory-mapped tables of records, written once to the cache folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa

from vlbeit.data.records import TableRecords
from vlbeit.errors import DataError
from vlbeit.types import Record

_FORMAT = 4  # raise it when the rows that a source writes change: older indexes are then left alone
_CHUNK = 1000  # rows written at a time

_TYPES = {
    "id": pa.string(), "image": pa.string(), "label": pa.int64(), "text": pa.string(), "question": pa.string(),
    "question_id": pa.int64(), "image_id": pa.int64(), "question_type": pa.string(), "answer_type": pa.string(),
    "answers": pa.list_(pa.string()), "multiple_choice_answer": pa.string(), "mask": pa.string(),
    "boxes": pa.list_(pa.list_(pa.float64())),
    "labels": pa.list_(pa.int64()), "areas": pa.list_(pa.float64()), "crowd": pa.list_(pa.bool_()),
    "outlines": pa.list_(pa.string()), "shard": pa.int64(), "image_at": pa.int64(), "image_bytes": pa.int64(),
    "mask_at": pa.int64(), "mask_bytes": pa.int64(), "image_0_at": pa.int64(), "image_0_bytes": pa.int64(),
    "image_1_at": pa.int64(), "image_1_bytes": pa.int64(), "split": pa.string(), "fault": pa.string(),
    "height": pa.int64(), "width": pa.int64(), "picture": pa.string(), "title": pa.string(),
    "image_0": pa.string(), "image_1": pa.string(), "sentence": pa.string(),
}  # fmt: skip


def cache_folder(cache: str | Path) -> Path:
    """Folder of the indexes: `data.cache`, else $VLBEIT_CACHE, else $XDG_CACHE_HOME/vlbeit, else ~/.cache/vlbeit."""
    if cache:
        return Path(cache).expanduser()
    if own := os.environ.get("VLBEIT_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vlbeit"


def cached_table(
    cache: str | Path, name: str, sources: Sequence[Path], fields: Sequence[str], rows: Callable[[], Iterable[Record]]
) -> TableRecords:
    """The records that `rows()` gives, from the cache where `sources` have not changed since they were written.

    `name` and the sources' paths, sizes and times make the key. A folder among the sources stands for its list of
    files. Processes that ask at the same time wait for the first one to write.
    Raises `DataError` where the cache folder cannot be written.
    """
    from datasets import Dataset
    from filelock import FileLock

    folder = cache_folder(cache)
    path = folder / f"{name}-{_key(name, sources)}.arrow"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            with FileLock(f"{path}.lock"):
                if not path.exists():
                    _write(path, fields, rows())
    except OSError as error:
        raise DataError(f"cannot write the index {path}: {error.strerror or error}; set data.cache=DIR") from error
    return TableRecords(Dataset.from_file(str(path)))


def _key(name: str, sources: Sequence[Path]) -> str:
    stats = [(path, path.stat()) for path in (source.absolute() for source in sources)]
    facts = [_FORMAT, name, [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats]]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _write(path: Path, fields: Sequence[str], rows: Iterable[Record]) -> None:
    """Write the rows chunk by chunk to a temporary file and rename it."""
    schema = pa.schema([(field, _TYPES[field]) for field in fields])
    temporary = path.with_name(f".tmp-{path.name}")  # the lock keeps others away from it
    try:
        with open(temporary, "wb") as file:
            with pa.ipc.new_stream(file, schema) as writer:
                for chunk in _chunks(rows):
                    writer.write_batch(pa.RecordBatch.from_pylist(chunk, schema=schema))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _chunks(rows: Iterable[Record]) -> Iterator[list[Record]]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk
