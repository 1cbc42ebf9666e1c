"""Batch norm on several processes."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import torch
import torch.distributed
from torch import nn

from vlbeit.models.heads import Heads
from vlbeit.nn.batch_norm import SyncedBatchNorm, average_statistics, synced


def test_a_decoder_keeps_its_weights_and_their_names() -> None:
    heads = Heads({"segmentation": {"kind": "upernet", "dim": 8, "num_classes": 3}})
    for module in heads.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight)
            module.running_mean.normal_()
    before = {name: value.clone() for name, value in heads.state_dict().items()}
    maps = [torch.randn(2, 8, side, side) for side in (8, 4, 2, 1)]
    with torch.no_grad():
        expected = heads.eval()["segmentation"](maps)
        found = synced(heads).eval()["segmentation"](maps)
    assert sum(isinstance(module, SyncedBatchNorm) for module in heads.modules()) == 12
    assert not any(type(module) is nn.BatchNorm2d for module in heads.modules())
    assert heads.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in heads.state_dict().items())
    assert torch.equal(expected, found)


def test_alone_it_norms_by_the_running_statistics() -> None:
    plain, shared = nn.BatchNorm2d(3), SyncedBatchNorm(3)
    plain(torch.randn(4, 3, 5, 5))
    shared.load_state_dict(plain.state_dict())
    x = torch.randn(4, 3, 5, 5)
    assert torch.equal(plain.eval()(x), shared.train()(x))
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in shared.state_dict().items())


def test_alone_statistics_stay_as_they_are() -> None:
    norm = nn.BatchNorm2d(3)
    norm(torch.randn(4, 3, 5, 5))
    before = norm.running_mean.clone()
    average_statistics(norm)
    assert torch.equal(norm.running_mean, before)


def _process(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/group", rank=rank, world_size=2)
    norm = nn.Sequential(nn.BatchNorm2d(2))
    norm(torch.full((4, 2, 3, 3), float(rank)) + torch.arange(4.0)[:, None, None, None])
    average_statistics(norm)
    torch.save(norm.state_dict(), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_statistics_of_two_processes_become_their_mean(tmp_path: Path) -> None:
    forked = multiprocessing.get_context("fork")  # nothing is imported anew
    processes = [forked.Process(target=_process, args=(tmp_path, rank)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    torch.testing.assert_close(first["0.running_mean"], torch.full((2,), 0.1 * 2.0))  # of batch means 1.5 and 2.5
    assert all(torch.equal(first[name], second[name]) for name in first)
