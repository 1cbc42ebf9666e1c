"""Pictures that `vlbeit prepare` was to download and did not get."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from vlbeit.errors import DataError

from .findings import Finding

_FACTS, _SUCCESS = "download.json", "success"  # written by vlbeit.data_prep.downloading


def check_download(folder: Path) -> Iterator[Finding]:
    """A finding for each split with rows that failed; none for a folder that was not downloaded.

    Raises DataError for a download.json that cannot be read.
    """
    file = folder / _FACTS
    if not file.is_file():
        return
    try:
        splits = json.loads(file.read_text(encoding="utf-8"))["splits"]
        rows = {split: (int(facts["rows"]), dict(facts["reasons"])) for split, facts in splits.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is damaged ({type(error).__name__}: {error}); run vlbeit prepare again") from error
    for split, (count, reasons) in rows.items():
        failed = {reason: times for reason, times in reasons.items() if reason != _SUCCESS}
        if failed:
            told = ", ".join(f"{reason} {times:,}" for reason, times in failed.items())
            lost = sum(failed.values())
            yield Finding("failed-downloads", split, lost, [], f"{lost:,} of {count:,} rows have no picture: {told}")
