"""The online probe beside masked image modeling: its two numbers, and that it changes nothing."""

from __future__ import annotations

import json
import math
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vlbeit.cli import main
from vlbeit.data.collate import collate
from vlbeit.data.records import ListRecords
from vlbeit.objectives.online_probe import RIDGE, Labelled, OnlineProbe, effective_rank, ridge_guesses, some_of
from vlbeit.types import DataSpec


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("matrix", "rank"),
    [
        (torch.eye(5), 5.0),
        (torch.ones(7, 3), 1.0),
        (torch.outer(randn(6), randn(4)), 1.0),
        (torch.zeros(4, 4), 0.0),
        (torch.diag(torch.tensor([3.0, 1.0])), math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))),
    ],
)
def test_effective_rank_of_known_matrices(matrix: torch.Tensor, rank: float) -> None:
    assert effective_rank(matrix) == pytest.approx(rank, rel=1e-6)


def test_effective_rank_hangs_on_directions_alone() -> None:
    matrix = randn(20, 6)
    turned = matrix @ torch.linalg.qr(randn(6, 6, seed=1))[0]
    assert effective_rank(7 * turned) == pytest.approx(effective_rank(matrix)) and 1 < effective_rank(matrix) < 6


def test_ridge_is_least_squares_with_penalty_rows() -> None:
    centres = randn(3, 5, seed=2)
    labels = torch.arange(30) % 3
    train, val = (centres[labels] + randn(30, 5, seed=seed) for seed in (3, 4))
    mean, deviation = train.mean(0), train.std(0, correction=0)
    x, y = ((part - mean).numpy() / deviation.numpy() for part in (train, val))
    targets = np.eye(3)[labels]
    rows = np.vstack([x, math.sqrt(RIDGE * len(x)) * np.eye(5)])
    weights = np.linalg.lstsq(rows, np.vstack([targets - targets.mean(0), np.zeros((5, 3))]), rcond=None)[0]
    expected = (y @ weights + targets.mean(0)).argmax(1)
    found = ridge_guesses(train, labels, val)
    assert found.tolist() == expected.tolist() and 0.5 < (found == labels).double().mean() <= 1


class Encoder(torch.nn.Module):
    """The picture's own first row stands for CLS and patches."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def embed_image(self, image):
        return image

    def forward(self, image):
        class Out:
            x_BLD = torch.cat([1e6 * image[:, :1], image, image], dim=1) * self.weight

        return Out


class Objective(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()


def loader(count: int, images: int):
    """Pictures that are sorted by their class, as folders of classes are."""
    records = ListRecords([{"id": f"{i:03d}", "label": i * 4 // count, "image": i} for i in range(count)])

    def transform(record):
        image = torch.zeros(1, 6)
        image[0, record["label"]] = 1
        image[0, 4] = record["image"] / count
        return {"sample_id": record["id"], "image": image, "label": record["label"]}

    return some_of(DataSpec(records, transform, collate), images, 0, 0.0)


def test_numbers_of_the_evaluator() -> None:
    """As many pictures as it is told, of all classes, without the CLS token."""
    probe = OnlineProbe(6, Labelled(loader(200, 20), loader(100, 12)))
    assert len(probe.labelled.train.spec.records) == 20
    assert sorted(set(probe.labelled.train.spec.records.column("label"))) == [0, 1, 2, 3]
    for start in (0, 4, 8):
        probe.update(Objective(), {"image": torch.eye(12, 6)[start : start + 4, None]})
    again = OnlineProbe(6, probe.labelled)
    again.load_state_dict(probe.state_dict())
    assert torch.equal(torch.cat(again.features), torch.eye(6))
    assert probe.compute() == {"effective_rank": pytest.approx(6), "probe": 100.0}


def test_two_processes_give_the_numbers_of_one(monkeypatch) -> None:
    image = torch.cat([torch.eye(6), randn(6, 6).float()])[:, None]
    whole = OnlineProbe(12)
    whole.update(Objective(), {"image": image})
    expected = whole.compute()["effective_rank"]
    parts = []
    monkeypatch.setattr("vlbeit.dist.world_size", lambda: 2)
    for rank in range(2):
        own = OnlineProbe(12)
        for picture in image[rank::2].split(1):
            own.update(Objective(), {"image": picture})
        parts.append(own.features)
    assert [sum(map(len, part)) for part in parts] == [6, 6]
    monkeypatch.setattr("vlbeit.dist.gather_objects", lambda value: parts)
    assert OnlineProbe(12).compute() == {"effective_rank": pytest.approx(expected)}


def test_it_changes_neither_weights_nor_the_other_numbers(again: dict, in_chain: Path, tmp_path: Path) -> None:
    words = [word for word in again["mim"] if not word.startswith(("steps=", "stage.tokenizer="))]
    words += [f"stage.tokenizer={in_chain / 'runs/tokenizer'}", "steps=4", "engine.evaluate_every=2"]
    with chdir(tmp_path):
        for run, probe in (("with", "true"), ("without", "false")):
            assert main(["train", *words, "model.drop_path=0.3", f"run={run}", f"stage.probe={probe}"]) == 0
        lines = {
            run: [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
            for run in ("with", "without")
        }
        weights = {run: load_file(next(Path(run, "state").glob("step-000004/model*"))) for run in lines}
    assert all(torch.equal(value, weights["without"][name]) for name, value in weights["with"].items())
    found, plain = ([line["evaluation"] for line in lines[run] if "evaluation" in line] for run in ("with", "without"))
    assert len(found) == 2
    for numbers, others in zip(found, plain, strict=True):
        assert 1 <= numbers.pop("effective_rank") <= 32 and 0 <= numbers.pop("probe") <= 100
        assert numbers == others and "effective_rank" not in others


def test_data_without_labels_says_so(tmp_path: Path, scenes: Path, capsys) -> None:
    """Pictures in no class folders: the rank alone."""
    for split in ("train", "val"):
        (tmp_path / "plain" / split).mkdir(parents=True)
        for i, picture in enumerate(sorted((scenes / "val2014").glob("*.jpg"))[:8]):
            (tmp_path / "plain" / split / f"{i}.jpg").write_bytes(picture.read_bytes())
    sizes = ["model=tiny", "model.embed_dim=32", "model.depth=2", "model.num_heads=2", "data.image_size=32"]
    sizes += ["data.workers=0", "global_batch_size=4", "micro_batch_size=4", "steps=1"]
    data = ["data=imagefolder", f"data.root={tmp_path / 'plain'}", f"data.cache={tmp_path / 'cache'}"]
    with chdir(tmp_path):
        words = ["train", "stage=mim", "stage.target=pixels", "stage.probe=true", *sizes, *data]
        assert main(words) == 0
        numbers = json.loads(Path("runs/mim/evaluation.json").read_text())
    assert "effective_rank" in numbers and "probe" not in numbers
    assert "stage.probe: no `probe`: " in capsys.readouterr().err
