from __future__ import annotations

import socket

import pytest
import torch
from torch import nn

from vlbeit.engine.device import batch_dtype, fits, make_accelerator, probe_micro_batch, to_device
from vlbeit.engine.environment import describe_environment
from vlbeit.errors import DataError, UsageError

SECOND = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}

needs_no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")


def test_half_precision_needs_cuda():
    with pytest.raises(UsageError, match=r"precision=fp16 needs CUDA.*precision=bf16"):
        make_accelerator("cpu", "fp16")


@needs_no_cuda
def test_missing_device():
    with pytest.raises(UsageError, match=r"device=cuda: .*use device=auto"):
        make_accelerator("cuda")
    assert make_accelerator("auto").device.type in ("cpu", "mps")


def test_unknown_device_and_tracker():
    with pytest.raises(UsageError, match="device=tpu is not one of auto, cpu, cuda, mps"):
        make_accelerator("tpu")
    with pytest.raises(UsageError, match=r"engine.trackers=nothing is unknown: there is .*tensorboard, "):
        make_accelerator("cpu", trackers=["nothing"])


def test_one_run_after_another_may_differ():
    precisions = [make_accelerator("cpu", precision).mixed_precision for precision in ("bf16", "fp32", "fp64", "bf16")]
    assert precisions == ["bf16", "no", "no", "bf16"]


def test_batch_on_its_way():
    batch = {"image": torch.ones(2), "label": torch.ones(2, dtype=torch.long), "sample_id": ["a", "b"]}
    moved = to_device(batch, torch.device("cpu"), torch.float64)
    assert [moved["image"].dtype, moved["label"].dtype] == [torch.float64, torch.long]
    assert moved["sample_id"] == ["a", "b"]
    assert to_device(batch, torch.device("cpu"))["image"].dtype == torch.float32
    assert (batch_dtype(nn.Linear(1, 1)), batch_dtype(nn.Linear(1, 1).double())) == (None, torch.float64)


@pytest.mark.parametrize(("per_process", "expected"), [(64, 32), (100, 25), (7, 7), (37, 1)])
def test_micro_batch_on_a_cpu(per_process, expected):
    assert probe_micro_batch(nn.Linear(1, 1), None, per_process, make_accelerator("cpu")) == expected


def test_trying_a_size_changes_nothing(toy):
    accelerator = make_accelerator("cpu")
    objective = toy.Regression()
    forward = objective.forward

    def limited(batch, counts):
        objective.calls += 1
        if len(batch["y"]) > 4:
            raise torch.OutOfMemoryError
        return forward(batch, counts)

    objective.forward = limited
    before = torch.get_rng_state()
    batches = [toy.Samples().batch(0, 0, size) for size in (8, 4)]
    assert [fits(objective, batch, accelerator) for batch in batches] == [False, True]
    assert int(objective.calls) == 0 and all(p.grad is None for p in objective.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_environment_names_no_host():
    import platform

    described = describe_environment(torch.device("cpu"))
    assert described["packages"]["torch"] == torch.__version__.split("+")[0] and described["threads"] >= 1
    assert platform.node() not in str({**described, "command": ""})


def test_what_of_fsdp_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UsageError, match=r"set fsdp_version: 2"):
        make_accelerator("cpu")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_ACTIVATION_CHECKPOINTING", "true")
    with pytest.raises(UsageError, match=r"model.grad_checkpointing=true"):
        make_accelerator("cpu")


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two in the environment is not a number"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK=-1 in the environment is not a number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 of WORLD_SIZE=2: ranks are counted from 0"),
        ({**SECOND, "MASTER_PORT": "http"}, "MASTER_PORT=http in the environment is not a number"),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, "WORLD_SIZE=2 without MASTER_ADDR, MASTER_PORT: "),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 without RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT: .*by torchrun, srun"),
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK=0 without RANK, MASTER_ADDR, MASTER_PORT: .*unset LOCAL_RANK"),
        (SECOND, "LOCAL_RANK=1, and this process sees 1 GPU"),
    ],
)
def test_ranks_of_the_environment(monkeypatch, variables, said):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(UsageError, match=said):
        make_accelerator("cuda")


def test_accelerate_that_starts_one_of_several_is_told(monkeypatch, caplog):
    """Without GPUs `accelerate launch --num_processes 2` starts one process, with an address to meet the other."""
    for name, value in (("ACCELERATE_MIXED_PRECISION", "no"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    make_accelerator("cpu")
    assert "asked for several processes and has started one" in caplog.text and "torchrun" in caplog.text
    caplog.clear()
    monkeypatch.delenv("MASTER_PORT")
    make_accelerator("cpu")
    assert not caplog.text


def set_first(monkeypatch, port):
    """The environment of the first of two processes."""
    for name, value in {**SECOND, "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(name, value)


def test_a_port_that_is_in_use(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        set_first(monkeypatch, port)
        with pytest.raises(
            UsageError, match=rf"MASTER_PORT={port} is in use on this machine.*set MASTER_PORT to a free"
        ):
            make_accelerator("cpu", timeout=20)


def test_a_process_that_nobody_joins(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        set_first(monkeypatch, free.getsockname()[1])
    with pytest.raises(DataError, match=r"the 2 processes of this run have not met at 127.0.0.1:\d+ within .*=1 s \("):
        make_accelerator("cpu", timeout=1)
    monkeypatch.undo()
    assert make_accelerator("cpu").num_processes == 1
