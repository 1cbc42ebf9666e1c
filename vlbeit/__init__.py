"""vlbeit: BEiT image towers, VLMo vision-language models, and the way from pictures to a VQA answer file.

`vlbeit.load(path)` gives a trained `Model`, `vlbeit.pipeline(path)` a function of an image (and a question).
Importing the package loads neither torch nor Hydra; both names are resolved on first use.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load", "pipeline"]

_LAZY = {"load": "vlbeit.models.checkpoint", "pipeline": "vlbeit.inference"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'vlbeit' has no attribute {name!r}")
