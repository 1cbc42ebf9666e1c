"""What .ci/oldest installs is the lower bounds of pyproject.toml."""

from __future__ import annotations

import runpy
from pathlib import Path

from packaging.version import Version

CI = Path(__file__).parents[1] / ".ci"


def test_oldest_versions_are_the_lower_bounds() -> None:
    """Every dependency but torch, each at its bound: 5.1 is 5.1.0."""
    bounds = runpy.run_path(str(CI / "lower_bounds.py"))["lower_bounds"]()
    assert {"torch", "torchvision", "timm", "transformers", "datasets", "accelerate"} <= bounds.keys()
    listed = dict(line.split("==") for line in (CI / "oldest.txt").read_text().split())
    others = bounds.keys() - {"torch", "torchvision"}
    assert {name: Version(listed[name]) for name in others} == {name: Version(bounds[name]) for name in others}
