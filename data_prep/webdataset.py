"""Pictures with captions of any list of URLs, downloaded to WebDataset shards; or shards that are there, checked."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from pathlib import Path
from typing import Annotated, Any

from vlbeit.config import DataConfig
from vlbeit.errors import DataError, Interrupted, UsageError
from vlbeit.files import write_text

from .downloading import FACTS, download
from .listed import existing, following
from .manner import Manner
from .pictures import Check
from .preparation import Out, alone
from .progress import Progress, Report
from .shards import BAD
from .tar_check import Checked, check_shard, checked_shards, stamp
from .url_lists import table_files, tables

_CHECKED = "checked.jsonl"
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val"}
_MOST_BAD = DataConfig.max_bad_fraction
_WORDS = re.compile(r"[^a-zA-Z]+")


def prepare(
    out: Out,
    *,
    from_: Annotated[list[str], "a list (.csv, .tsv, .jsonl, .json, .parquet) or a folder of lists; or shards (.tar)"],
    url_column: Annotated[str, "column of the addresses; empty: url, image_url, ..."] = "",
    caption_column: Annotated[str, "column of the captions; empty: caption, text, ..."] = "",
    held_out: Annotated[int, "shards: so many of the last ones become val, where none is named after it"] = 1,
    check: Check = "header",
    manner: Manner = Manner(),
    report: Report | None = None,
) -> str:
    """Download the pictures of a list of URLs to shards for data=shards; or check shards that are there already.

    Shards stay where they are: train/ and val/ of the folder hold links to those that can be read. The same command
    after an interruption, of whatever kind, goes on where it stopped.
    """
    paths = existing(from_)
    if shards := _shards(paths):
        share = _check(out, shards, held_out, check, manner.threads, report or (lambda line: None))
        bound = f" data.max_bad_fraction={ceil(100 * share) / 100:g}" if share > _MOST_BAD else ""  # 0.0197: 0.02
        return following(out) + bound
    else:
        lists = [file for path in paths for file in table_files(path)]
        download(out, {"train": tables(lists, url_column, caption_column)}, manner, report)
    return following(out)


def _shards(paths: Sequence[Path]) -> list[Path]:
    """The tars of --from, sorted: files, and those in folders and in their folders of the name of a split."""
    found: set[Path] = set()
    for path in (path.absolute() for path in paths):
        folders = [path, *(path / split for split in _SPLITS)] if path.is_dir() else []
        found.update(file for folder in folders for file in folder.glob("[!.]*.tar"))
        found.update([path] if path.suffix == ".tar" else [])
    return sorted(found)


def _check(out: Path, shards: list[Path], held_out: int, check: Check, threads: int, say: Report) -> float:
    """Check the shards that are new or changed, then link all that can be read below train/ and val/.

    Returns the share of samples that cannot be used, of the split that has more of them.
    """
    out.mkdir(parents=True, exist_ok=True)
    with alone(out):
        known = _known(out, check)
        _check_new(out, checked_shards(shards, known), known, check, threads, say)
        sound = [path for path in shards if "damaged" not in known[str(path)]]
        if not sound:
            raise DataError(f"none of {len(shards)} shards can be read: {known[str(shards[0])]['damaged']}")
        splits = _split(sound, held_out, say)
        _link(out, splits)
        _tell(out, splits, shards, known, say)
        return max(_share(known, paths) for paths in splits.values())


def _share(known: dict[str, Any], paths: list[Path]) -> float:
    """The share of samples that training cannot use."""
    samples, usable = (sum(known[str(path)][what] for path in paths) for what in ("samples", "usable"))
    return 1 - usable / samples if samples else 0.0


def _known(out: Path, check: Check) -> dict[str, Any]:
    """Shard -> what an earlier run of the same check found. UsageError where the folder is something else's."""
    path = out / _CHECKED
    if not path.is_file():
        if any(entry.name != ".lock" for entry in out.iterdir()):
            made = f"holds a download ({FACTS})" if (out / FACTS).exists() else "was not begun by `vlbeit prepare`"
            raise UsageError(f"{out} is there but {made}; choose another folder with --out")
        return {}
    try:
        lines = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]  # the last one may be torn
        return {line["shard"]: line for line in lines if line["check"] == check}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); remove {out} and prepare it anew") from error


def _check_new(out: Path, shards: list[Path], known: dict[str, Any], check: Check, threads: int, say: Report) -> None:
    def facts(path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {"shard": str(path), "check": check, "stamp": stamp(path)}
        try:
            return found | check_shard(path, check)._asdict()
        except DataError as error:
            return found | Checked(0, 0, {}, [])._asdict() | {"damaged": str(error)}

    total = sum(path.stat().st_size for path in shards)
    pool = ThreadPoolExecutor(min(threads, os.cpu_count() or 1))
    with open(out / _CHECKED, "ab") as journal, Progress("checking", total, say) as progress, pool:
        try:
            for path, found in zip(shards, pool.map(facts, shards), strict=True):
                known[str(path)] = found
                journal.write(json.dumps(found).encode() + b"\n")
                journal.flush()
                progress.add(found["stamp"][0])
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise Interrupted(
                f"stopped; {out / _CHECKED} has {len(known)} shards, and the same command checks the others"
            ) from None


def _split(shards: list[Path], held_out: int, say: Report) -> dict[str, list[Path]]:
    """By the names of files and folders; else the last ones are val."""
    named: dict[str, list[Path]] = {"train": [], "val": []}
    for path in shards:
        words = [*_WORDS.split(path.stem.lower()), path.parent.name.lower()]
        named[next((_SPLITS[word] for word in words if word in _SPLITS), "train")].append(path)
    if named["val"] or not held_out:
        return {split: paths for split, paths in named.items() if paths}
    if held_out < 0 or held_out >= len(shards):
        raise UsageError(
            f"--held-out {held_out}: {len(shards)} shards can be read; some must remain for train (0: none is held out)"
        )
    say(f"no shard is named after val: {', '.join(path.name for path in shards[-held_out:])} held out for it")
    return {"train": shards[:-held_out], "val": shards[-held_out:]}


def _link(out: Path, splits: dict[str, list[Path]]) -> None:
    """Number the shards of each split: train/00000.tar leads to the first; what stands beside it comes too."""
    for split in ("train", "val"):
        folder = out / split
        for link in folder.glob("*") if folder.is_dir() else ():
            if link.is_symlink():
                link.unlink()
        for number, path in enumerate(splits.get(split, [])):
            folder.mkdir(exist_ok=True)
            for ending in (".tar", "_stats.json", ".parquet"):
                beside = path.with_name(path.stem + ending)
                if beside.exists():
                    (folder / f"{number:05d}{ending}").symlink_to(beside)


def _tell(out: Path, splits: dict[str, list[Path]], shards: list[Path], known: dict[str, Any], say: Report) -> None:
    for split, paths in splits.items():
        samples, usable = (sum(known[str(path)][what] for path in paths) for what in ("samples", "usable"))
        say(f"{split}: {len(paths):,} shards, {samples:,} samples, {usable:,} with a picture and a caption")
    faults = Counter[str]()
    lines = []
    above = os.path.commonpath([path.parent for path in shards])
    for path in shards:
        found = known[str(path)]
        faults.update(found["faults"])
        shard = os.path.relpath(path, above)  # train/00000.tar and val/00000.tar have one name
        lines += [json.dumps({"shard": shard, **row}) + "\n" for row in found["bad"]]
        if "damaged" in found:
            say(f"left out: {found['damaged']}")
    for what, count in sorted(faults.items()):
        say(f"  {what}: {count:,}")
    write_text(out / BAD, "".join(lines))
    say(f"wrote {out / _CHECKED}" + (f"; {out / BAD} names each of these" if lines else ""))
