"""Processes that `srun` has started learn their ranks: SLURM's variables become those that torch reads."""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping

FIRST_PORT, PORTS = 20000, 10000  # below what Linux gives to outgoing connections


def take_ranks(environment: MutableMapping[str, str]) -> None:
    """In a step of several tasks set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT, where nobody has set RANK.

    The main process is on the step's first node, its port follows from the ids of job and step: all tasks find the same
    without talking. What is set already stays. A batch script itself, and a step of one task, are left alone.

    LOCAL_RANK is the number of the GPU that a task takes of those it sees: 0 where it has some of its own, as
    `--gpus-per-task` gives them.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if "RANK" in environment or not tasks.isdecimal() or int(tasks) < 2 or "SLURM_PROCID" not in environment:
        return
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or "127.0.0.1"
    job, step = (environment.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    number = int(job) * 7 + int(step) if job.isdecimal() and step.isdecimal() else 0
    environment.setdefault("WORLD_SIZE", tasks)
    environment.setdefault("LOCAL_RANK", "0" if _has_own_gpus(environment) else environment.get("SLURM_LOCALID", "0"))
    environment.setdefault("MASTER_ADDR", first_node(nodes))
    environment.setdefault("MASTER_PORT", str(FIRST_PORT + number % PORTS))
    environment["RANK"] = environment["SLURM_PROCID"]


def _has_own_gpus(environment: Mapping[str, str]) -> bool:
    """Whether a task sees one GPU, or as many as each task was given (`2`, `a100:2`): not those of other tasks too."""
    seen = environment.get("CUDA_VISIBLE_DEVICES", "")
    each = environment.get("SLURM_GPUS_PER_TASK", "1").rpartition(":")[2]
    return seen != "" and str(len(seen.split(","))) in ("1", each)


def first_node(nodes: str) -> str:
    """The first of a list as SLURM writes it: `gpu[007-011,020]-ib,login1` -> `gpu007-ib`."""
    found = re.match(r"[^,\[]+(?:\[[^\]]*\][^,\[]*)*|(?:\[[^\]]*\][^,\[]*)+", nodes.strip())
    first = found[0] if found else nodes
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)
