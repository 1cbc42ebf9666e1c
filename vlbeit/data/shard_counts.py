"""How many samples the shards have: from what lies beside them or at their end, else they are read once.

`00000_stats.json` is img2dataset's, a Parquet file says it in its footer. Only lists of texts, and tars without
anything beside them, must be read; then their index is made in passing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from vlbeit.data.index import cache_folder
from vlbeit.data.order import CHUNK, Chunks
from vlbeit.data.shard_files import ShardFile, asked, file_system, reason
from vlbeit.data.shard_rows import holds_paths, is_list, is_tar
from vlbeit.data.shard_store import ShardStore, open_parquet
from vlbeit.data.shards import Counted
from vlbeit.errors import DataError
from vlbeit.files import write_json

log = logging.getLogger(__name__)

_FORMAT = 2  # of the file of counts
_EVERY = 10.0  # seconds between two lines of progress
_AT_ONCE = 8  # shards that are asked for their counts at a time


def counted(shards: Sequence[ShardFile], store: ShardStore, say: Any = log.info) -> list[Counted]:
    """What is known of every shard, counted once and kept. Processes that ask together wait for the first one.

    Raises `DataError` for a shard that cannot be read.
    """
    from filelock import FileLock

    reading = store.reading
    facts = [_FORMAT, reading.kind, reading.prepared, [list(shard) for shard in shards]]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    path = cache_folder(reading.cache) / f"shards-{reading.kind}-{key}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            with FileLock(f"{path}.lock"):
                if not path.exists():
                    write_json(path, _count_all(shards, store, say))
        return [Counted(*values) for values in json.loads(path.read_text(encoding="utf-8"))]
    except OSError as error:
        raise DataError(f"cannot write the counts {path}: {error.strerror or error}; set data.cache=DIR") from error
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}); remove it, the shards are counted anew") from error


def _count_all(shards: Sequence[ShardFile], store: ShardStore, say: Any) -> list[Counted]:
    """Several at a time: most of it is waiting. A line now and then says how far it is."""
    found: list[Counted] = []
    started = said = time.monotonic()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        waiting = [pool.submit(_count, shard, store) for shard in shards]
        try:
            for task in waiting:
                found.append(task.result())
                if (now := time.monotonic()) - said >= _EVERY:
                    said, rest = now, int((now - started) / len(found) * (len(shards) - len(found)))
                    samples = sum(each.samples for each in found)
                    say(
                        f"counting: {len(found):,} of {len(shards):,} shards, {samples:,} samples, "
                        f"ETA {rest // 3600}:{rest // 60 % 60:02d}:{rest % 60:02d}"
                    )
        finally:
            for task in waiting:
                task.cancel()
    return found


def _count(shard: ShardFile, store: ShardStore) -> Counted:
    samples, chunks, decoded = _beside(shard) if is_tar(shard.name) else _footer(shard, store)
    if samples is None:  # an index that there is already must not tell otherwise: another machine has none
        index = ShardStore(store.reading).index(shard)  # handles of its own: this may be one of several threads
        samples = index.pictures if store.reading.kind == "images" else index.samples
        chunks = index.group_ends() if decoded else chunks
    return Counted(samples, chunks, decoded)


def _beside(shard: ShardFile) -> tuple[int | None, Chunks, int]:
    """What img2dataset says of a tar: the pictures that it could download and wrote."""
    name = f"{shard.name.removesuffix('.tar')}_stats.json"
    try:
        if shard.remote:
            system, path = file_system(name)
            with asked():
                content = system.cat_file(path)
        else:
            content = Path(name).read_bytes()
        return int(json.loads(content)["successes"]), CHUNK, 0
    except (FileNotFoundError, NotADirectoryError):
        return None, CHUNK, 0
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{name} cannot be read ({reason(error)}); remove it, the shard is counted then") from error


def _footer(shard: ShardFile, store: ShardStore) -> tuple[int | None, Chunks, int]:
    """Rows of a Parquet file; None where a row has a list of texts. Then its row groups, and the pictures' bytes."""
    if not shard.remote:
        with open_parquet(shard.name, shard.name) as file:
            return _facts(shard, store, file)
    system, path = file_system(shard.name)
    try:
        with asked(), system.open(path, "rb") as source, open_parquet(source, shard.name) as file:
            return _facts(shard, store, file)
    except OSError as error:
        raise DataError(f"{shard.name} cannot be read: {reason(error)}") from error


def _facts(shard: ShardFile, store: ShardStore, file: pq.ParquetFile) -> tuple[int | None, Chunks, int]:
    columns, schema = store.columns(shard, file), file.schema_arrow
    chunks: Chunks = CHUNK
    decoded = 0
    if columns.image and not columns.lengths and not holds_paths(schema, columns):
        groups = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
        chunks = _chunks([group.num_rows for group in groups])
        parts = [group.column(number) for group in groups for number in range(group.num_columns)]
        own = [part for part in parts if part.path_in_schema.partition(".")[0] == columns.image]
        decoded = sum(part.total_uncompressed_size for part in own)
    lists = bool(columns.text) and is_list(schema, columns.text)
    return None if lists else file.metadata.num_rows, chunks, decoded


def _chunks(rows: list[int]) -> Chunks:
    """Row groups of so many rows: one number where they are alike, but for a shorter last one, else their ends."""
    alike = all(count == rows[0] for count in rows[:-1]) and rows[-1:] <= rows[:1]
    return max(rows, default=CHUNK) if alike else list(accumulate(rows))
