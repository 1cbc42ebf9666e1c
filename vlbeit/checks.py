"""`vlbeit checks`: what works on this machine, and what to do about the rest. Nothing is changed or downloaded."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "open-clip-torch",
    "accelerate",
    "datasets",
    "safetensors",
    "hydra-core",
)
_GIGABYTE = 1e9


class Check(NamedTuple):
    """One line of the report."""

    name: str
    status: str  # ok | warn | fail
    found: str
    remedy: str = ""


def run_checks() -> list[Check]:
    """All checks in order; one that raises is itself reported as a failure."""
    checks: list[Check] = []
    for check in (_versions, _devices, _precision, _threads, _disk, _cache, _shared_memory, _hub, _proxies, _git):
        try:
            checks.extend(check())
        except Exception as error:  # a check reports what is wrong, it never hides the other checks
            checks.append(Check(check.__name__.strip("_"), "fail", f"{type(error).__name__}: {error}"))
    return checks


def _versions() -> Iterator[Check]:
    yield Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in PACKAGES:
        try:
            yield Check(package, "ok", version(package))
        except PackageNotFoundError:
            yield Check(package, "fail", "not installed", f"pip install {package}")


def _devices() -> Iterator[Check]:
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            memory = f"{free / _GIGABYTE:.1f} of {total / _GIGABYTE:.1f} GB free"
            yield Check(f"cuda:{index}", "ok", f"{torch.cuda.get_device_name(index)}, {memory}")
    elif torch.backends.mps.is_available():
        yield Check("mps", "ok", "Apple GPU; choose it by device=mps")
    else:
        remedy = "enough for the built-in data; with a GPU in the machine, see what nvidia-smi says"
        yield Check("gpu", "warn", "none: everything runs on the CPU", remedy)


def _precision() -> Iterator[Check]:
    import torch

    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        remedy = "" if fast else "use precision=fp16"
        yield Check("bf16", "ok" if fast else "warn", "in hardware" if fast else "emulated, slow", remedy)
        yield Check("fp16", "ok", "works on this GPU")
        return
    x_BD = torch.ones(8, 8, dtype=torch.bfloat16)
    works = bool((x_BD @ x_BD == 8).all())
    found = "works on this CPU" if works else "wrong result on this CPU"
    yield Check("bf16", "ok" if works else "warn", found, "" if works else "use precision=fp32")
    yield Check("fp16", "warn", "needs CUDA", "use precision=bf16 or fp32")


def _threads() -> Iterator[Check]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    setting = f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}" if "OMP_NUM_THREADS" in os.environ else ""
    found = f"{threads} torch threads on {cores} cores {setting}".strip()
    remedy = f"export OMP_NUM_THREADS={cores}" if threads > cores else ""
    yield Check("threads", "warn" if remedy else "ok", found, remedy)


def _disk() -> Iterator[Check]:
    free = shutil.disk_usage(".").free / _GIGABYTE
    remedy = "" if free > 5 else "a base model's run folder takes about 3 GB; set run= to another disk"
    yield Check("disk", "warn" if remedy else "ok", f"{free:.1f} GB free in {Path.cwd()}", remedy)


def _cache() -> Iterator[Check]:
    from vlbeit.data.index import cache_folder

    folder = cache_folder("").absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            yield Check("cache", "ok", f"{folder} is writable")
    except OSError as error:
        yield Check("cache", "warn", f"{folder}: {error.strerror}", "set data.cache= to a folder you may write to")


def _shared_memory() -> Iterator[Check]:
    folder = Path("/dev/shm")
    if folder.is_dir():
        size = shutil.disk_usage(folder).total / _GIGABYTE
        remedy = "" if size > 0.5 else "data.workers=0, or start the container with --shm-size=2g"
        yield Check("/dev/shm", "warn" if remedy else "ok", f"{size:.1f} GB for loader workers", remedy)


def _hub() -> Iterator[Check]:
    from huggingface_hub import get_token
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        yield Check("hugging face", "ok", "offline (HF_HUB_OFFLINE)")
    elif get_token():
        yield Check("hugging face", "ok", "a token is stored")
    else:
        yield Check("hugging face", "ok", "no token", "`hf auth login`, only for gated or private repositories")


def _proxies() -> Iterator[Check]:
    names = [name for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY") if _environment(name)]
    yield Check("proxies", "ok", f"set: {', '.join(names)}" if names else "none")


def _git() -> Iterator[Check]:
    try:
        found = subprocess.run(["git", "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
        yield Check("git", "ok", found.strip().removeprefix("git version "))
    except (OSError, subprocess.SubprocessError):
        yield Check("git", "warn", "not found", "install git: run folders then name the commit they were made with")


def _environment(name: str) -> str:
    return os.environ.get(name) or os.environ.get(name.lower()) or ""
