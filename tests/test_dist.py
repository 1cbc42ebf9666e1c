"""`vlbeit.dist` on two gloo processes against one process that holds the whole batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vlbeit import dist

WORLD, ROWS, WIDTH = 2, 3, 4


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"image": nn.Linear(5, WIDTH), "text": nn.Linear(6, WIDTH)}).double()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = (WORLD * ROWS, 5), (WORLD * ROWS, 6)
    return tuple(torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes)


def symmetric(image_BD: Tensor, text_BD: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
    """Contrastive loss, image to text and text to image, summed over the rows start to stop."""
    logits_BB = 10 * nn.functional.normalize(image_BD, dim=1) @ nn.functional.normalize(text_BD, dim=1).T
    rows = torch.arange(len(logits_BB))[start:stop]
    pair = [
        nn.functional.cross_entropy(logits[start:stop], rows, reduction="sum") for logits in (logits_BB, logits_BB.T)
    ]
    return sum(pair) / 2


def gradients(module: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in module.parameters()]


def worker(folder: Path) -> None:
    """Both ways to share a loss: every process computes the whole of it, or the terms of its own rows."""
    torch.distributed.init_process_group("gloo")
    rank = dist.rank()
    own = slice(rank * ROWS, (rank + 1) * ROWS)
    result: dict[str, object] = {}
    for name in ("whole", "own rows"):
        towers = build()
        image_BD, text_BD = (towers[key](x[own]) for key, x in zip(("image", "text"), batch(), strict=True))
        image_all, text_all = dist.gather_with_grad(image_BD), dist.gather_with_grad(text_BD)
        if name == "whole":
            loss = symmetric(image_all, text_all) / (WORLD * ROWS)
        else:
            loss = symmetric(image_all, text_all, own.start, own.stop) / ROWS  # count / world size, as the engine gives
        loss.backward()
        mean = [dist.sum_over_ranks(grad) / dist.world_size() for grad in gradients(towers)]  # what DDP does
        result[name] = [dist.sum_over_ranks(loss) / dist.world_size(), *mean]
    mine = torch.full((2,), rank, requires_grad=True, dtype=torch.float)
    result["gather"] = dist.gather(mine)
    result["sum"] = (dist.sum_over_ranks(mine), mine.detach())
    result["objects"] = dist.gather_objects({"rank": rank})
    result["broadcast"] = dist.broadcast_object({"rank": rank})
    result["main"] = dist.is_main()
    dist.barrier()
    dist.leave()
    dist.leave()
    result["left"] = (torch.distributed.is_initialized(), dist.world_size())
    torch.save(result, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("dist")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(WORLD), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen([sys.executable, __file__, folder], env={**os.environ, **common, "RANK": str(rank)})
        for rank in range(WORLD)
    ]
    assert [process.wait(timeout=120) for process in workers] == [0] * WORLD
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("name", ["whole", "own rows"])
def test_gradient_of_one_process(results, name):
    towers = build()
    image, text = batch()
    loss = symmetric(towers["image"](image), towers["text"](text)) / (WORLD * ROWS)
    loss.backward()
    expected = [loss.detach(), *gradients(towers)]
    for result in results:
        for got, want in zip(result[name], expected, strict=True):
            torch.testing.assert_close(got.detach(), want, rtol=0, atol=1e-14)


def test_rank_order_and_no_gradient(results):
    for rank, result in enumerate(results):
        assert result["gather"].tolist() == [0, 0, 1, 1] and not result["gather"].requires_grad
        assert result["sum"][0].tolist() == [1, 1] and result["sum"][1].tolist() == [rank, rank]
        assert result["objects"] == [{"rank": 0}, {"rank": 1}]
        assert result["broadcast"] == {"rank": 0}
        assert result["main"] == (rank == 0)
        assert result["left"] == (False, 1)


def test_no_group_is_one_process():
    x = torch.ones(2, 3, requires_grad=True)
    assert (dist.rank(), dist.world_size(), dist.is_main()) == (0, 1, True)
    assert dist.gather_with_grad(x) is x
    assert torch.equal(dist.gather(x), x) and not dist.gather(x).requires_grad
    assert dist.gather_objects("a") == ["a"] and dist.broadcast_object("a") == "a"
    assert torch.equal(dist.sum_over_ranks(x), x)
    dist.barrier()


def test_torch_is_not_imported():
    code = "import sys, vlbeit.dist as d; d.rank(), d.barrier(), d.gather_objects(1); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
