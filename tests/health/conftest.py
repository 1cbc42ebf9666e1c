"""A copy of small scenes that tests may damage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlbeit.config import DataConfig
from vlbeit.health.report import Report, Wanted, inspect


class Copy:
    """Scenes of one's own: their official files as values, their pictures by number."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def questions(self, subtype: str) -> Path:
        return self.root / f"v2_OpenEnded_mscoco_{subtype}_questions.json"

    def annotations(self, subtype: str) -> Path:
        return self.root / f"v2_mscoco_{subtype}_annotations.json"

    def picture(self, subtype: str, number: int) -> Path:
        return self.root / subtype / f"COCO_{subtype}_{number:012d}.jpg"

    def edit(self, path: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
        """Change the rows of a question or annotation file in place."""
        value = json.loads(path.read_text())
        change(value["questions" if "questions" in value else "annotations"])
        path.write_text(json.dumps(value))

    def rows(self, path: Path) -> list[dict[str, Any]]:
        value = json.loads(path.read_text())
        return value["questions" if "questions" in value else "annotations"]

    def report(self, **wanted: Any) -> Report:
        return inspect(Wanted(DataConfig(name="", root=str(self.root)), **{"min_count": 1} | wanted))


@pytest.fixture
def copy(scenes: Path, tmp_path: Path) -> Copy:
    """The built-in data, without what VQA does not read."""
    root = tmp_path / "scenes"
    skipped = shutil.ignore_patterns("imagefolder", "annotations", "*.txt", "instances_*", "captions_*", "scenes.json")
    shutil.copytree(scenes, root, ignore=skipped)
    return Copy(root)
