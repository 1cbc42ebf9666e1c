"""The packages, walked rather than listed: a list would silently drop a new sub-package from the wheel."""

from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
# folder in the repository -> package that it ships as
MOUNTS = {"vlbeit": "vlbeit", "tasks": "vlbeit.tasks", "data_prep": "vlbeit.data_prep", "configs": "vlbeit.configs"}


def packages() -> dict[str, str]:
    """Package -> folder, for every folder with an `__init__.py` under a mount."""
    found = {}
    for folder, package in MOUNTS.items():
        for init in sorted((ROOT / folder).rglob("__init__.py")):
            parts = init.parent.relative_to(ROOT / folder).parts
            found[".".join((package, *parts))] = "/".join((folder, *parts))
    return found


PACKAGES = packages()
setup(packages=list(PACKAGES), package_dir=PACKAGES)
