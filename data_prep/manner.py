"""How a download is done: what the options of its commands say."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from vlbeit.errors import UsageError

from .resizing import Resize


class Manner(NamedTuple):
    """How it is done, an option each. Of this only `image_size`, `resize` and `shard_rows` change what comes out."""

    threads: Annotated[int, "requests at a time"] = 32
    per_second: Annotated[float, "requests a second to all hosts together; 0: no limit"] = 100
    per_host: Annotated[float, "requests a second to each host; 0: no limit"] = 10
    image_size: Annotated[int, "side in pixels that larger pictures are brought to"] = 384
    resize: Resize = "keep_ratio"
    retries: Annotated[int, "further tries after a timeout, a lost connection, 429 or 5xx"] = 2
    max_mb: Annotated[float, "pictures of more megabytes are not taken"] = 20
    shard_rows: Annotated[int, "rows of the list a shard"] = 10_000
    allow_local: Annotated[bool, "ask private and loopback addresses too"] = False
    again: Annotated[bool, "ask once more for rows of whole shards that failed for a reason that may pass"] = False
    give_up: Annotated[bool, "rows without an answer count as failed also where no server answers at all"] = False

    def check(self) -> None:
        """Raise `UsageError` for a number out of range."""
        least = {"threads": 1, "per_second": 0, "per_host": 0, "image_size": 32, "retries": 0, "shard_rows": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: give {low} or more")
        if self.max_mb <= 0:
            raise UsageError(f"--max-mb {self.max_mb}: give more than 0")
