"""What setup.py packs, without building anything; the wheel itself is tried by .ci/wheel_test.py."""

from __future__ import annotations

import runpy
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOUNTS = ("vlbeit", "tasks", "data_prep", "configs")


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setattr("setuptools.setup", lambda **arguments: None)
    walk: Callable[[], dict[str, str]] = runpy.run_path(str(ROOT / "setup.py"))["packages"]
    return walk()


def test_every_folder_with_code_is_packed(packages: dict[str, str]) -> None:
    with_code = {path.parent.relative_to(ROOT).as_posix() for top in MOUNTS for path in (ROOT / top).rglob("*.py")}
    assert with_code == set(packages.values()), "a folder without __init__.py would not be in the wheel"
    assert packages["vlbeit.tasks.vqa"] == "tasks/vqa" and packages["vlbeit.data.sources"] == "vlbeit/data/sources"


def test_every_file_has_a_rule() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert patterns["vlbeit.configs"] == ["**/*.yaml"]
    kinds = {
        path.suffix for top in MOUNTS for path in (ROOT / top).rglob("*") if path.is_file() and path.name != "py.typed"
    }
    assert kinds - {".pyc"} == {".py", ".yaml"}, "package-data in pyproject.toml does not know the other kinds"


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_ignore_file_swallows_no_source() -> None:
    paths = ["vlbeit/data/new.py", "configs/data/new.yaml", "tests/data/new.py", "vlbeit/models/new.py", ".ci/run"]
    ignored = subprocess.run(["git", "check-ignore", *paths], cwd=ROOT, capture_output=True, text=True).stdout
    assert ignored == ""
    made = ["data/scenes", "runs/mim", "models/x", "out/x", ".venv/x"]
    assert len(subprocess.run(["git", "check-ignore", *made], cwd=ROOT, capture_output=True).stdout.splitlines()) == 5
