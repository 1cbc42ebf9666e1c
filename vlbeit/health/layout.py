"""What lies at a path: official files, a prepared folder, or what another data source reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from vlbeit import hub
from vlbeit.config import DataConfig
from vlbeit.data.records import PREPARED
from vlbeit.data.row_files import open_table
from vlbeit.data.shard_files import is_remote
from vlbeit.errors import DataError, UsageError

from .official import SOURCES, OfficialFiles, official_files

_KINDS = {
    "labelled": "imagefolder", "masks": "ade20k", "boxes": "coco", "vqa": "vqa", "pairs": "pairs", "nlvr2": "nlvr2",
    "text": "text",
}  # fmt: skip
_QUESTIONS = {"question", "question_text"}
_TABLES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")


class Layout(NamedTuple):
    """How the data is read: by the official files, where there are such, else the splits of the data source."""

    config: DataConfig  # with its name
    official: Sequence[OfficialFiles]
    splits: Sequence[str]


def layout(config: DataConfig) -> Layout:
    """Find out the data source where `config.name` is empty.

    Raises DataError where nothing lies at `config.root`, UsageError where what lies there is not known.
    """
    splits = list(dict.fromkeys((config.train_split, config.val_split)))
    if config.root.startswith(hub.PREFIX):
        return Layout(replace(config, name=config.name or "vqa"), (), splits)
    path = Path(config.root).expanduser()
    if config.name == "mix" or config.root.startswith("["):
        raise UsageError(f"{config.root}: a mix is looked at member by member; give each of them as PATH")
    if not path.exists():
        if config.name in ("", "shards") and (is_remote(config.root) or any(sign in config.root for sign in "*?[{")):
            return Layout(replace(config, name="shards"), (), splits)
        raise DataError(f"{path} does not exist")
    prepared = _prepared(path)
    if prepared is None:
        config = replace(config, name=config.name or _told_by_files(path))
        files = official_files(path, config.name, config.images) if config.name in SOURCES else []
        if config.name in SOURCES and not files:
            raise DataError(f"{path} holds no OpenEnded_mscoco_*_questions.json of {config.name}; is --data right?")
        return Layout(config, files, splits)
    here = [split for split in prepared["splits"] if split != "vg"]  # Visual Genome is trained on, and shares pictures
    from_release = prepared["kind"] == "vqa" and "root" in prepared.get("arguments", {})
    source = "vqa_v2" if from_release else _KINDS.get(prepared["kind"], "")
    if not (config.name or source):
        raise _unknown(path)
    return Layout(replace(config, name=config.name or source), (), here or splits)


def _prepared(path: Path) -> dict[str, Any] | None:
    """What `vlbeit prepare` wrote; None of every other folder."""
    file = path / PREPARED
    if not file.is_file():
        return None
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        {key: facts[key] for key in ("kind", "splits")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is damaged ({type(error).__name__}: {error}); prepare the folder anew") from error
    return facts


def _told_by_files(path: Path) -> str:
    if path.is_file() and path.suffix.lower() in _TABLES:
        return _kind_of_table(path)
    if path.is_file() and path.suffix in (".txt", ".tar"):
        return "text" if path.suffix == ".txt" else "shards"
    if path.is_dir():
        if (path / "scenes.json").is_file():
            return "scenes"
        if official := [source for source in ("vqa_v2", "okvqa") if official_files(path, source)]:
            return official[0]
        if tables := [file for suffix in _TABLES if (file := path / f"train{suffix}").is_file()]:
            return _kind_of_table(tables[0])
        if (path / "train.txt").is_file():
            return "text"
        if any(path.glob("*.tar")) or any(path.glob("train/*.tar")):
            return "shards"
        if any((path / folder / "train.json").is_file() for folder in ("Annotations", "annotations")):
            return "vizwiz"
        if (path / "train").is_dir():
            return "imagefolder"
    raise _unknown(path)


def _kind_of_table(table: Path) -> str:
    """Pictures with captions, or questions, by the columns. DataError for a table without a row or not in UTF-8."""
    columns = open_table(table).columns
    return "pairs" if "caption" in columns and not _QUESTIONS.intersection(columns) else "vqa"


def _unknown(path: Path) -> UsageError:
    return UsageError(f"{path}: what lies there cannot be told; name its data source: --data vqa, --data imagefolder")
