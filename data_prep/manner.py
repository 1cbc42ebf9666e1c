"""How a download is done: what the options of its commands say."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from vlbeit.errors import UsageError

from .resizing import Resize

# Options of all downloads: a type, and the text that --help shows.
Threads = Annotated[int, "requests at a time"]
PerSecond = Annotated[float, "requests a second to all hosts together; 0: no limit"]
PerHost = Annotated[float, "requests a second to each host; 0: no limit"]
ImageSize = Annotated[int, "side in pixels that larger pictures are brought to"]
Retries = Annotated[int, "further tries after a timeout, a lost connection, 429 or 5xx"]
MaxMB = Annotated[float, "pictures of more megabytes are not taken"]
ShardRows = Annotated[int, "rows of the list a shard"]
AllowLocal = Annotated[bool, "ask private and loopback addresses too"]
Again = Annotated[bool, "ask once more for rows of whole shards that failed for a reason that may pass"]
GiveUp = Annotated[bool, "rows without an answer count as failed also where no server answers at all"]


class Manner(NamedTuple):
    """How it is done. Of this only `image_size`, `resize` and `shard_rows` change what comes out."""

    threads: int = 32
    per_second: float = 100
    per_host: float = 10
    image_size: int = 384
    resize: Resize = "keep_ratio"
    retries: int = 2
    max_mb: float = 20
    shard_rows: int = 10_000
    allow_local: bool = False
    again: bool = False
    give_up: bool = False

    def check(self) -> None:
        """Raise `UsageError` for a number out of range."""
        least = {"threads": 1, "per_second": 0, "per_host": 0, "image_size": 32, "retries": 0, "shard_rows": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: give {low} or more")
        if self.max_mb <= 0:
            raise UsageError(f"--max-mb {self.max_mb}: give more than 0")
