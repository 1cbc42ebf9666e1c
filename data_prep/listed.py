"""What the preparations of published lists of URLs have in common: their options and the command that follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

from vlbeit.data.following import VLMO, next_command
from vlbeit.errors import DataError

from .downloading import download
from .manner import Manner
from .preparation import Out, given
from .progress import Report
from .url_lists import UrlList


def preparation(lists: Callable[[list[Path]], Mapping[str, UrlList]], sources: str, text: str) -> Callable[..., str]:
    """A function `prepare` that downloads what `lists` makes of the files of --from, split by split.

    `sources` describes --from, `text` the command.
    """

    def prepare(
        out: Out,
        *,
        from_: list[str],
        manner: Manner = Manner(),
        report: Report | None = None,
    ) -> str:
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
