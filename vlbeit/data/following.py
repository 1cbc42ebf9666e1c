"""The training command that data leads to: what preparing and inspecting it print at the end. Plain Python."""

from __future__ import annotations

import shlex
from pathlib import Path

BEIT = "beit_base_patch16_224_pt22k"  # the published tower that a task on pictures starts from
VLMO = "vlmo_base_patch16_224"  # published weights that a VQA model starts from


def next_command(words: str, root: Path, name: str) -> str:
    """A training command for data at `root`, in a run of its own: runs/MIM-TASK may be on other data."""
    place = root.absolute()
    run = f"runs/{place.stem if place.is_file() else place.name}-{name}"
    return f"vlbeit train {words} data.root={shlex.quote(str(root))} run={shlex.quote(run)}"
