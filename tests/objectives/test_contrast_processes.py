"""Contrast, matching and masked words on two gloo processes against one process with the joined batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from vlbeit.objectives.contrastive import ContrastRule


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("contrast")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    script = Path(__file__).with_name("contrast_run.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, script, folder, port], env=environment, timeout=200, check=True)
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


def averaged(ranks: list[dict[str, Any]], name: str) -> dict[str, torch.Tensor]:
    """Loss and gradients as training gets them: averaged over the processes."""
    found = [rank[name] for rank in ranks]
    rows = {part: torch.cat([each[part] for each in found]) / 2 for part in ("text", "image")}
    return rows | {part: torch.stack([each[part] for each in found]).mean(0) for part in ("loss", "scale", "bias")}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("softmax", "clip local"),
        ("softmax", "clip whole"),
        ("published", "clip published"),
        ("sigmoid", "siglip bidir"),
        ("sigmoid", "siglip gather"),
    ],
)
def test_equals_open_clip(ranks: list[dict[str, Any]], ours: str, theirs: str) -> None:
    found, expected = averaged(ranks, ours), averaged(ranks, theirs)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=f"{ours} {name}")


@pytest.mark.parametrize("name", ["softmax", "sigmoid", "published"])
def test_features_get_the_gradient_of_one_process(
    ranks: list[dict[str, Any]], contrast_run: ModuleType, name: str
) -> None:
    """The published gather: half of it on two processes, but for the scale."""
    whole = contrast_run.compared(contrast_run.ours(contrast_run.RULES[name]), 0, 6)
    found = averaged(ranks, name)
    share = {part: 0.5 if name == "published" and part in ("text", "image") else 1.0 for part in whole}
    for part, value in whole.items():
        torch.testing.assert_close(found[part], share[part] * value, rtol=1e-5, atol=1e-6, msg=part)


def test_negatives_of_all_processes(ranks: list[dict[str, Any]], contrast_run: ModuleType) -> None:
    whole = contrast_run.chosen_columns(0, 6)
    assert torch.equal(torch.cat([rank["columns"] for rank in ranks], dim=1), whole)
    pictures = torch.tensor(contrast_run.PICTURES[:6])
    assert (pictures[whole] != pictures).all()
    crossing = (whole // 3 != torch.arange(6) // 3).sum()
    assert 0 < crossing < 12


@pytest.mark.parametrize("name", ["softmax", "sigmoid", "published"])
def test_step_of_one_process(ranks: list[dict[str, Any]], contrast_run: ModuleType, name: str) -> None:
    """All three losses and their gradients, in single precision; widths of texts differ between the processes."""
    objective = contrast_run.make_objective(contrast_run.RULES[name], dtype=torch.float32)
    losses, gradients = contrast_run.step_of(objective, contrast_run.batch(0, 8, dtype=torch.float32))
    for found_losses, found_gradients in (rank[f"step {name}"] for rank in ranks):
        for loss, value in losses.items():
            torch.testing.assert_close(found_losses[loss], value, rtol=1e-5, atol=1e-5, msg=loss)
        wrong = [
            key
            for key, value in gradients.items()
            if not torch.allclose(found_gradients[key], value, rtol=1e-5, atol=1e-5)
        ]
        # the gradient of contrast is half of the true one there
        assert bool(wrong) == (name == "published"), wrong
        assert not [key for key in wrong if key.startswith(("heads.match", "heads.pooler", "heads.mlm"))]
        assert not [key for key in wrong if "logit_scale" in key]


def test_one_picture_on_all_processes(ranks: list[dict[str, Any]], contrast_run: ModuleType) -> None:
    given = contrast_run.batch(0, 2, dtype=torch.float32)
    given = {key: value if isinstance(value, list) else torch.cat([value, value]) for key, value in given.items()}
    given["picture"] = torch.ones(4, dtype=torch.long)
    objective = contrast_run.make_objective(ContrastRule(), dtype=torch.float32)
    losses, gradients = contrast_run.step_of(objective, given)
    found_losses, found_gradients = ranks[1]["one picture"]
    for found, expected in ((found_losses, losses), (found_gradients, gradients)):
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=name)


def test_rows_are_fetched_from_all_processes(ranks: list[dict[str, Any]]) -> None:
    table = torch.arange(18.0).view(6, 3)
    assert [rank["sent"].tolist() for rank in ranks] == [[0, 1], [2, 1]]  # what was asked for, once a process
    for rank, wanted in zip(ranks, ([5, 0, 0], [1, 1, 4]), strict=True):
        assert torch.equal(rank["fetched"], table[wanted])
        assert torch.equal(rank["fetched of one"], table[[0, 0]])  # the other process is asked for nothing


@pytest.mark.parametrize("name", ["softmax", "sigmoid", "published"])
def test_cached_gradients_of_two_processes(
    ranks: list[dict[str, Any]], contrast_run: ModuleType, tmp_path: Path, name: str
) -> None:
    """Two processes with two micro-batches each, against eight pairs at once; DistributedDataParallel between."""
    rule = contrast_run.RULES[name]
    one = contrast_run.trained(rule, 8, tmp_path / "one", cached=False)
    same = {key: torch.allclose(ranks[0][f"cached {name}"]["weights"][key], value, rtol=0, atol=1e-12)
            for key, value in one["weights"].items()}  # fmt: skip
    assert all(same.values()) == (name != "published"), [key for key, equal in same.items() if not equal]
    for key, value in ranks[0][f"cached {name}"]["weights"].items():
        assert torch.equal(value, ranks[1][f"cached {name}"]["weights"][key]), key
    if name == "published":
        for key, value in ranks[0]["large published"]["weights"].items():
            cached = ranks[0]["cached published"]["weights"][key]
            torch.testing.assert_close(cached, value, rtol=0, atol=1e-12, msg=key)
    first, expected = (json.loads(run["metrics"].splitlines()[0]) for run in (ranks[0][f"cached {name}"], one))
    assert first["losses"] == pytest.approx(expected["losses"], abs=1e-12)
    assert first["logs"] == pytest.approx(expected["logs"], abs=1e-6)


def test_cached_gradients_of_sharded_weights(ranks: list[dict[str, Any]]) -> None:
    """Under FSDP2 the features that are looked at come through the prepared module, as those that are trained."""
    assert ranks[0]["cached sharded"]["sharded"] and not ranks[0]["cached softmax"]["sharded"]
    for name, value in ranks[0]["cached softmax"]["weights"].items():
        torch.testing.assert_close(ranks[0]["cached sharded"]["weights"][name], value, rtol=0, atol=1e-12, msg=name)
