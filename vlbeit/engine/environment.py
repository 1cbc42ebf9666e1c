"""What a run was made with: versions, commit, command, device, split of the batch. No host name and no user name."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "vlbeit", "torch", "torchvision", "timm", "transformers", "tokenizers", "open-clip-torch", "accelerate",
    "torchmetrics", "datasets", "safetensors", "numpy", "pillow",
)  # fmt: skip


def describe_environment(
    device: torch.device, processes: int = 1, micro_batch_size: int | None = None
) -> dict[str, Any]:
    """JSON values for `environment.json`."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "git_commit": _git_commit(Path(__file__).parent),
        "command": shlex.join(sys.argv),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": processes,
        "micro_batch_size": micro_batch_size,
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit(folder: Path) -> str | None:
    """Commit of the checkout that the code runs from, `-dirty` with changes; None for an installed package."""
    commands = (
        ["git", "ls-files", "--error-unmatch", Path(__file__).name],  # a package inside somebody's own repository
        ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
    )
    try:
        for command in commands:
            run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()
