from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def contrast_run(load_module: Callable[[Path], ModuleType]) -> ModuleType:
    """The module contrast_run.py beside this file."""
    return load_module(Path(__file__).with_name("contrast_run.py"))
