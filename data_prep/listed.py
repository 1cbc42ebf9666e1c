"""What the preparations of published lists of URLs have in common: their options and the command that follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

from vlbeit.data.following import VLMO, next_command
from vlbeit.errors import DataError

from .downloading import download
from .manner import Again, AllowLocal, GiveUp, ImageSize, Manner, MaxMB, PerHost, PerSecond, Retries, ShardRows, Threads
from .preparation import Out, given
from .progress import Report
from .resizing import Resize
from .url_lists import UrlList

_USUAL = Manner()


def preparation(lists: Callable[[list[Path]], Mapping[str, UrlList]], sources: str, text: str) -> Callable[..., str]:
    """A function `prepare` that downloads what `lists` makes of the files of --from, split by split.

    `sources` describes --from, `text` the command.
    """

    def prepare(
        out: Out,
        *,
        from_: list[str],
        image_size: ImageSize = _USUAL.image_size,
        resize: Resize = _USUAL.resize,
        threads: Threads = _USUAL.threads,
        per_second: PerSecond = _USUAL.per_second,
        per_host: PerHost = _USUAL.per_host,
        retries: Retries = _USUAL.retries,
        max_mb: MaxMB = _USUAL.max_mb,
        shard_rows: ShardRows = _USUAL.shard_rows,
        allow_local: AllowLocal = False,
        again: Again = False,
        give_up: GiveUp = False,
        report: Report | None = None,
    ) -> str:
        manner = Manner(
            threads, per_second, per_host, image_size, resize, retries, max_mb, shard_rows, allow_local, again, give_up
        )  # fmt: skip
        download(out, lists(existing(from_)), manner, report)
        return following(out)

    prepare.__doc__ = text
    prepare.__annotations__["from_"] = Annotated[list[str], sources]
    return prepare


def existing(sources: list[str]) -> list[Path]:
    """The files and folders of --from. DataError for one that does not exist."""
    paths = [Path(part).expanduser() for part in given(sources)]
    if missing := [path for path in paths if not path.exists()]:
        raise DataError(f"{missing[0]} does not exist; give --from the list of URLs")
    return paths


def named(paths: list[Path], name: str) -> Path | None:
    """A file of --from by its name, or the one in a folder of --from."""
    inside = (path / name if path.is_dir() else path for path in paths)
    return next((path for path in inside if path.name == name and path.is_file()), None)


def following(out: Path) -> str:
    """The command that trains on the shards. A single one leaves none to be held out: it is evaluated on itself."""
    single = len([*out.glob("*/*.tar")]) == 1
    return next_command(f"stage=vl init={VLMO} data=shards", out, "vl") + " data.val_split=train" * single
