from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def unilm(load_module: Callable[[Path], ModuleType]) -> ModuleType:
    """The module unilm_names.py beside this file: random weights under official names."""
    return load_module(Path(__file__).with_name("unilm_names.py"))
