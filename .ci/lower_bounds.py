"""The lower bounds of pyproject.toml: `NAME==BOUND` of the names given, else what of them is installed."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]


def lower_bounds() -> dict[str, str]:
    """Name -> lower bound of every dependency."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = (re.match(r"([\w.-]+)>=([\d.]+)", line) for line in project["dependencies"])
    return {match[1]: match[2] for match in found if match}


def main(names: list[str]) -> None:
    bounds = lower_bounds()
    if names:
        print(*(f"{name}=={bounds[name]}" for name in names))
    else:
        print(", ".join(f"{name} {version(name)} (from {bound})" for name, bound in bounds.items()))


if __name__ == "__main__":
    main(sys.argv[1:])
