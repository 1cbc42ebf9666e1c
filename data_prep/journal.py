"""The journal of a preparation: what was asked for, then a line for each shard that is whole and each split's end.

JSON lines in ASCII: names may hold any letter, also those at which `str.splitlines` would break a line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlbeit.data.records import PREPARED
from vlbeit.errors import DataError, UsageError
from vlbeit.files import write_bytes, write_text

JOURNAL = "unfinished.jsonl"


def begin(out: Path, arguments: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """The lines of the journal behind the arguments, a new journal where the folder is empty; and a shard that is lost.

    The journal ends before the first shard that is missing or has another size than when it was noted (its name is
    returned, else ""): what follows is written again. None of it where the folder is finished. UsageError: the folder
    is something else's, or was begun with other arguments.
    """
    if (out / PREPARED).is_file():
        facts = _json(out / PREPARED)
        found = {name: facts.get(name) for name in ("kind", "format")}
        compare(out, {**found, **facts.get("arguments", {})}, arguments)
        return [], ""
    journal = out / JOURNAL
    if not journal.is_file():
        if out.exists() and (not out.is_dir() or any(entry.name != ".lock" for entry in out.iterdir())):
            raise UsageError(f"{out} is there but was not begun by `vlbeit prepare`; choose another folder with --out")
        write_text(journal, json.dumps(arguments) + "\n")
    whole, _, torn = journal.read_bytes().rpartition(b"\n")
    first, *lines = map(json.loads, whole.split(b"\n"))
    compare(out, first, arguments)
    sound = next((place for place, line in enumerate(lines) if not _there(out, line)), len(lines))
    lost = [line["file"] for line in lines[sound:] if "file" in line]
    if torn or lost:  # torn: the process was killed while it wrote this line
        write_bytes(journal, b"".join(json.dumps(line).encode() + b"\n" for line in (first, *lines[:sound])))
    for path in (*out.glob(".tmp-*"), *(out / name for name in lost)):
        path.unlink(missing_ok=True)
    return lines[:sound], lost[0] if lost else ""


def note(out: Path, line: Mapping[str, Any]) -> None:
    """Append a line; it is on the disk when this returns."""
    with open(out / JOURNAL, "ab") as file:
        file.write(json.dumps(line).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _there(out: Path, line: Mapping[str, Any]) -> bool:
    path = out / line.get("file", "")
    return "file" not in line or (path.is_file() and path.stat().st_size == line["size"])


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}); remove the folder and prepare it anew") from error


def compare(out: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise `UsageError`, naming what differs, unless a folder was begun with the same arguments."""
    wanted = json.loads(json.dumps(wanted))
    if differing := [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]:
        has = ", ".join(f"{name}={found.get(name)}" for name in differing)
        wants = ", ".join(f"{name}={wanted.get(name)}" for name in differing)
        raise UsageError(f"{out} was prepared with {has}, not {wants}; remove it or choose another folder with --out")
