"""Shared fixtures: the built-in data, small, and the whole chain of runs on it, two steps each."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: exact numbers hang on the number of threads

import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from types import ModuleType

import pytest

from vlbeit.cli import main

SMALL = (
    "model.embed_dim=32",
    "model.depth=3",
    "model.num_heads=2",
    "model.fused_layers=1",
    "data.workers=0",
    "global_batch_size=8",
    "micro_batch_size=4",
    "steps=2",
    "engine.log_every=1",
    "data.limit=24",
)
CHAIN = (
    ("stage=tokenizer", "stage.vocab_size=32", "stage.hidden=16"),
    ("stage=mim",),
    ("stage=mlm",),
    ("stage=vl",),
    ("stage=vl", "task=vqa", "task.min_count=1"),
    ("stage=mim", "task=classification"),
)


@pytest.fixture(autouse=True)
def log_handlers_of_a_test() -> Iterator[None]:
    """A command logs to the standard error of now: what it leaves would write to that of a test that is over."""
    log = logging.getLogger("vlbeit")
    handlers = log.handlers
    yield
    log.handlers = handlers


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`vlbeit prepare scenes` with 60 pictures."""
    out = tmp_path_factory.mktemp("data") / "scenes"
    assert main(["prepare", "scenes", "--out", str(out), "--images", "60"]) == 0
    return out


@pytest.fixture(scope="session")
def chain(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `runs/` of every stage and task. Tests must leave it as it is."""
    folder = tmp_path_factory.mktemp("chain")
    with chdir(folder):
        for words in CHAIN:
            assert main(["train", *words, f"data.root={scenes}", *SMALL]) == 0
    return folder


@pytest.fixture(scope="session")
def load_module() -> Callable[[Path], ModuleType]:
    """Imports a file that lies beside tests: pytest's importlib mode puts no folder on the path."""

    def load(path: Path) -> ModuleType:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def unilm(load_module: Callable[[Path], ModuleType]) -> ModuleType:
    """The module models/unilm_names.py: random weights under official names."""
    return load_module(Path(__file__).parent / "models" / "unilm_names.py")


@pytest.fixture(scope="session")
def tokenizer_files(load_module: Callable[[Path], ModuleType]) -> ModuleType:
    """The module tokenizer_files.py beside this file."""
    return load_module(Path(__file__).with_name("tokenizer_files.py"))


@pytest.fixture(scope="session")
def made(load_module: Callable[[Path], ModuleType]) -> ModuleType:
    """The module shard_files.py beside this file."""
    return load_module(Path(__file__).with_name("shard_files.py"))


@pytest.fixture
def again(scenes: Path) -> dict[str, list[str]]:
    """The words of `vlbeit train` that made each run of the chain."""
    names = ("tokenizer", "mim", "mlm", "vl", "vl-vqa", "mim-classification")
    return {name: [*words, f"data.root={scenes}", *SMALL] for name, words in zip(names, CHAIN, strict=True)}


@pytest.fixture
def in_chain(chain: Path) -> Iterator[Path]:
    """The test runs inside the chain's folder."""
    with chdir(chain):
        yield chain
