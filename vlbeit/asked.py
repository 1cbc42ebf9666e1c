"""The questions of a test, where they come from, and what the answers to them hang on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vlbeit import __version__, chain, compose, files, ledger
from vlbeit.config import RunConfig
from vlbeit.data.answer_file import read_questions
from vlbeit.data.sources import open_records, open_source
from vlbeit.data.sources.vqa_v2 import vqa_table
from vlbeit.dist import on_main
from vlbeit.inference import Trained
from vlbeit.launch import container
from vlbeit.models.checkpoint import read_head
from vlbeit.types import Records

_OF_TRAINING = ("optim", "engine", "data.train_split", "data.val_split", "data.split_seed", "data.held_out")
_HASHED = ("data.root", "data.limit")  # what they stand for is in the identity by itself: pictures, questions
NO_MATTER = (*compose.MAY_DIFFER, "global_batch_size", *_OF_TRAINING, *_HASHED)
"""Keys, and whole sections, that change no answer."""

_PIECE = 10_000  # rows held at a time


class Asked(NamedTuple):
    """The questions and the config that their samples are made with.

    `facts`, as far as they are known: split, pictures, count; of the official file: file, sha256, subset, of (how many
    questions it has).
    """

    records: Records
    facts: dict[str, Any]
    config: RunConfig


def of_split(run: Trained, words: Sequence[str], split: str) -> Asked:
    """A split of the run's data, or of what `words` put in its place.

    The `data.limit` of a run that was a quick try is not for it, only one that is typed.
    """
    config = run.config
    if not any(word.startswith("data.limit=") for word in words):
        config = replace(config, data=replace(config.data, limit=None))
    if run.is_run and not any(word.startswith(("data=", "data.root=")) for word in words):
        on_main(lambda: chain.ensure_data(config))
    records = open_records(config.data, run.recipe.kind, split)
    source = open_source(config.data)
    file = source.question_file(split)
    origin = _of_file(file) if file is not None and file.exists() else {}
    return Asked(records, {"split": split, "pictures": str(source.root), "count": len(records), **origin}, config)


def of_file(run: Trained, questions: Path, images: Path) -> Asked:
    """Every question of an official file, with the pictures of a folder."""
    images = images.absolute()  # the index holds whole paths
    records = vqa_table(questions, None, images, run.config.data.cache)
    facts = {"pictures": str(images), "count": len(records), **_of_file(questions)}
    return Asked(records, facts, run.config)


def identity(run: Trained, asked: Asked) -> dict[str, Any]:
    """What the answers hang on, as JSON values: the same however the data is spelled, with anything else another."""
    return {
        "vlbeit": __version__,
        "weights": _weights_hash(run),
        "meta": ledger.identity_hash(run.meta),
        "questions": _rows_hash(asked.records),
        "pictures": os.path.realpath(asked.facts["pictures"]),
        "config": _keys(asked.config),
        **({"members": sorted(_weights_hash(member) for member in run.members.values())} if run.members else {}),
    }


def _of_file(questions: Path) -> dict[str, Any]:
    found = read_questions(questions)
    origin = {"file": str(questions.absolute()), "sha256": files.sha256(questions), "subset": found.subset}
    return {**origin, "of": len(found.ids)}


def _rows_hash(records: Records) -> str:
    found = hashlib.sha256()
    columns = [records.column(name) for name in ("id", "question", "image_id")]
    for start in range(0, len(records), _PIECE):  # to iterate over a column of a table is a hundred times slower
        for row in zip(*(column[start : start + _PIECE] for column in columns), strict=True):
            found.update(repr(row).encode())
    return found.hexdigest()


def _weights_hash(run: Trained) -> str:
    """SHA-256 as the run's checkpoint has it; of weights that came without a config, over the tensors."""
    if run.is_run:
        return read_head(run.checkpoint.path)["sha256"]
    found = hashlib.sha256()
    for name, value in sorted(run.objective.state_dict().items()):
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _keys(config: RunConfig) -> dict[str, Any]:
    """The config without the keys that change no answer."""
    values = container(config)
    for key in NO_MATTER:
        section, _, name = key.rpartition(".")
        (values[section] if section else values).pop(name, None)
    if values["data"]["images"]:
        values["data"]["images"] = os.path.realpath(Path(values["data"]["images"]).expanduser())
    return values
