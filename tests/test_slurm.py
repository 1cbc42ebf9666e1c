from __future__ import annotations

import pytest

from vlbeit.slurm import first_node, take_ranks

STEP = {
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[007-011,020]-ib,login1",
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "2",
}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[007-011,020]-ib,login1", "gpu007-ib"),
        ("a1", "a1"),
        ("a1,a2", "a1"),
        ("node[1-2]", "node1"),
        ("r[1-2]n[03,07-09]", "r1n03"),
        ("[1-3]x,y", "1x"),
    ],
)
def test_first_node(nodes, first):
    assert first_node(nodes) == first


def test_ranks_of_a_step():
    environment = dict(STEP)
    take_ranks(environment)
    taken = {name: environment[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")}
    assert taken == {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu007-ib"}
    other = {**STEP, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    take_ranks(other)
    assert other["MASTER_PORT"] == environment["MASTER_PORT"], "all tasks of a step meet at one port"
    later = {**STEP, "SLURM_STEP_ID": "3"}
    take_ranks(later)
    assert later["MASTER_PORT"] != environment["MASTER_PORT"], "two steps of a job do not meet"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {**STEP, "RANK": "0"},  # torchrun within the step
        {**STEP, "SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_ID": "5"},  # the batch script itself
    ],
)
def test_others_are_left_alone(environment):
    before = dict(environment)
    take_ranks(environment)
    assert environment == before


def test_what_is_set_stays():
    environment = {**STEP, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    take_ranks(environment)
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"], environment["RANK"]) == ("10.0.0.1", "29500", "3")


@pytest.mark.parametrize(
    ("variables", "local"),
    [
        ({}, "3"),
        ({"CUDA_VISIBLE_DEVICES": ""}, "3"),
        ({"CUDA_VISIBLE_DEVICES": "2"}, "0"),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, "3"),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, "3"),  # more tasks than GPUs, which is refused later
        ({"CUDA_VISIBLE_DEVICES": "6,7", "SLURM_GPUS_PER_TASK": "2"}, "0"),
        ({"CUDA_VISIBLE_DEVICES": "6,7", "SLURM_GPUS_PER_TASK": "a100:2"}, "0"),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_GPUS_PER_TASK": "1"}, "3"),  # with --gpu-bind=none
    ],
)
def test_a_task_takes_one_of_the_gpus_that_it_sees(variables, local):
    """`--gpus-per-task` shows each task its own; `--gpus-per-node` shows all of them to all."""
    environment = {**STEP, "SLURM_LOCALID": "3", **variables}
    take_ranks(environment)
    assert environment["LOCAL_RANK"] == local
