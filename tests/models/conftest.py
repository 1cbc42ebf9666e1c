from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def unilm() -> ModuleType:
    """The module unilm_names.py beside this file: random weights under official names."""
    spec = importlib.util.spec_from_file_location("unilm_names", Path(__file__).with_name("unilm_names.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
