"""Who may import whom, read from the source: also from imports inside functions, but not from those for types alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOUNTS = {"vlbeit": "vlbeit", "vlbeit.tasks": "tasks", "vlbeit.data_prep": "data_prep", "vlbeit.configs": "configs"}
# A module imports from rows before its own, and from its own unit. A unit is the longest name here that it begins with.
ROWS = (
    ("types", "errors", "registry", "dist", "config", "files", "table", "hub", "http", "bootstrap", "slurm"),
    ("nn", "data"),
    ("models",),
    ("objectives", "engine"),
    ("task",),
    ("stages", "tasks"),
    (
        "launch", "preflight", "chain", "inference", "demo", "compose", "words", "runs", "checks", "preparing",
        "suggest", "converting", "exporting", "adopt", "attention", "batch_picture", "inspecting", "recipes", "scoring",
        "submitting", "submission", "asked", "answer_parts", "ledger", "leaderboard",
        "evaluation_file", "comparing", "health", "planning", "searching", "multirun", "arguments",
        "evaluating", "predicting", "going_on",
    ),
    ("cli",),
    ("__main__",),
)  # fmt: skip
ROW = {f"vlbeit.{unit}": number for number, row in enumerate(ROWS) for unit in row}
# Of row 1, what preparing data shares with the sources: plain Python, which imports row 0 and each other alone.
PURE = {
    f"vlbeit.data.{name}"
    for name in (
        "records", "instances", "json_file", "class_names", "answers", "vqa_v2_files", "vqa_v2_splits", "visual_genome",
        "picture_names", "row_files", "storable", "vqa_rows", "vqa_splits", "answer_file", "answer_check", "following",
        "nlvr2_files", "tar_samples", "names",
    )
}  # fmt: skip
SHARED_ROWS = (0, 6)  # their modules may import each other
BANNED_NAMES = {"utils", "util", "misc", "helpers", "common"}


def modules() -> dict[str, Path]:
    """Every module of the package with its file."""
    found = {}
    for package, folder in MOUNTS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


def imports(module: str, tree: ast.AST, known: set[str], is_package: bool) -> Iterator[str]:
    """Modules that a source imports; `from vlbeit import x` counts as vlbeit.x where that is a module."""
    for node in _executed(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: None if is_package and node.level == 1 else is_package - node.level]
                base = ".".join([*parents, *filter(None, [node.module])])
            for alias in node.names:
                yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base


def _executed(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those below `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            yield from (inner for branch in node.orelse for inner in (branch, *_executed(branch)))
        else:
            yield node
            yield from _executed(node)


def unit(module: str) -> str:
    """`vlbeit.stages.mim` and `vlbeit.tasks.vqa` are units of their own, everything else is one per row entry."""
    parts = module.split(".")
    return ".".join(parts[:3] if parts[1:2] in (["stages"], ["tasks"]) else parts[:2])


def violation(module: str, imported: str) -> str | None:
    """Why `module` may not import `imported`; None where it may."""
    if not imported.startswith("vlbeit.") or unit(module) == unit(imported):
        return "loads a second copy" if imported.split(".")[0] in ("tasks", "data_prep", "configs") else None
    if module.startswith("vlbeit.data_prep"):
        allowed = ROW.get(".".join(imported.split(".")[:2])) == 0 or imported in PURE
        return None if allowed else f"data_prep imports row 0 and {', '.join(sorted(PURE))} only"
    if imported.startswith(("vlbeit.data_prep", "vlbeit.configs")):
        return "nothing imports data_prep or configs: they are loaded by name"
    own, other = (ROW[".".join(name.split(".")[:2])] for name in (module, imported))
    if other < own or (own == other and own in SHARED_ROWS):
        return None
    return "the same row" if own == other else "a row below"


MODULES = modules()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_only_from_rows_above(module: str) -> None:
    path = MODULES[module]
    if module in ("vlbeit", "vlbeit.configs"):
        assert not [
            name for name in imports(module, ast.parse(path.read_text()), set(MODULES), True) if "vlbeit" in name
        ]
        return
    known = module.startswith("vlbeit.data_prep") or ".".join(module.split(".")[:2]) in ROW
    assert known, f"{module} has no row: add it to ROWS and to the design"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = imports(module, tree, set(MODULES), path.name == "__init__.py")
    wrong = {name: why for name in found if (why := violation(module, name))}
    assert not wrong, f"{module} imports {wrong}"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vlbeit.models.encoder", "def f():\n    from vlbeit.objectives import mim"),
        ("vlbeit.objectives.mim", "import vlbeit.engine.loop"),
        ("vlbeit.engine.loop", "from vlbeit.objectives.base import Objective"),
        ("vlbeit.nn.block", "from vlbeit.data import text"),
        ("vlbeit.tasks.vqa.task", "from vlbeit.stages.vl import VL"),
        ("vlbeit.tasks.vqa.task", "from ..classification import RECIPE"),
        ("vlbeit.stages.vl", "from .mim import MIM"),
        ("vlbeit.tasks.vqa.task", "from tasks.vqa import answers"),
        ("vlbeit.data_prep.scenes", "from vlbeit.data.text import Tokenizer"),
        ("vlbeit.launch", "from vlbeit import cli"),
        ("vlbeit.types", "try:\n    import vlbeit.nn\nexcept ImportError:\n    pass"),
    ],
)
def test_finds_what_it_must_find(module: str, source: str) -> None:
    known = {*MODULES, "vlbeit.launch", "vlbeit.tasks.classification", "vlbeit.stages.mim", "vlbeit.stages.vl"}
    assert any(violation(module, name) for name in imports(module, ast.parse(source), known, False))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vlbeit.task", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from vlbeit.launch import train"),
        ("vlbeit.tasks.vqa.task", "from .answers import words\nfrom vlbeit.objectives.base import Objective"),
        ("vlbeit.data_prep.scenes", "from .scene_draw import draw\nfrom vlbeit.data.records import open_image"),
        ("vlbeit.compose", "from vlbeit import registry, words"),
    ],
)
def test_allows_what_it_must_allow(module: str, source: str) -> None:
    assert not [name for name in imports(module, ast.parse(source), set(MODULES), False) if violation(module, name)]


@pytest.mark.parametrize("module", sorted(PURE))
def test_what_preparing_data_shares_is_plain(module: str) -> None:
    found = {name for name in imports(module, ast.parse(MODULES[module].read_text()), set(MODULES), False)}
    own = {name for name in found if name.startswith("vlbeit.")}
    assert all(name in PURE or ROW.get(".".join(name.split(".")[:2])) == 0 for name in own), own
    assert not found & {"torch", "datasets", "hydra"}


def test_no_module_of_odds_and_ends() -> None:
    assert not [name for name in MODULES if name.rpartition(".")[2] in BANNED_NAMES]


def test_pictures_are_opened_in_one_place() -> None:
    """What says which formats may be: Pillow runs programs for some."""
    found = [name for name, path in MODULES.items() if "Image.open(" in path.read_text(encoding="utf-8")]
    assert found == ["vlbeit.data.records"]


def test_preparing_data_needs_no_torch() -> None:
    names = ", ".join(sorted(name for name in MODULES if name.startswith("vlbeit.data_prep.")))
    code = f"import {names}, sys; print(*sorted({{'torch', 'datasets', 'hydra'}} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == []
