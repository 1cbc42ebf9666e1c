from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture(scope="session")
def toy(load_module: Callable[[Path], ModuleType]) -> ModuleType:
    """The module toy.py beside this file."""
    return load_module(Path(__file__).with_name("toy.py"))


@pytest.fixture(autouse=True)
def _one_thread():
    """The same number of threads everywhere: equal bits depend on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
