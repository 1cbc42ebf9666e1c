"""The text stage on packed texts, from the command line."""

from __future__ import annotations

import json
import logging
from contextlib import chdir
from pathlib import Path

import pytest
import torch

from vlbeit import batch_picture, compose, inference
from vlbeit.cli import main
from vlbeit.data.sources import open_records
from vlbeit.errors import UsageError
from vlbeit.stages.mlm import MLM
from vlbeit.types import DataSpec


def spec_of(words: list[str], meta: dict, *, train: bool = True) -> DataSpec:
    config = compose.compose(words).config
    recipe = MLM(config)
    return recipe.data(open_records(config.data, "text", config.data.train_split), meta, train=train)


@pytest.fixture(scope="module")
def run(scenes: Path, chain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text stage on the tower of the chain, one optimizer step of packed texts after the other."""
    folder = tmp_path_factory.mktemp("packed")
    with chdir(folder):
        sizes = ["model.embed_dim=32", "model.num_heads=2", "model.fused_layers=1", "data.workers=0", "steps=3"]
        batches = ["global_batch_size=4", "micro_batch_size=2", "engine.log_every=1"]
        words = ["stage=mlm", "stage.pack=true", f"init={chain}/runs/mim", f"data.root={scenes}", *sizes, *batches]
        assert main(["train", *words, f"data.cache={folder}/cache"]) == 0
    return folder


def test_a_packed_run_trains_and_is_evaluated_as_others_are(run: Path, chain: Path) -> None:
    lines = [json.loads(line) for line in (run / "runs/mlm/metrics.jsonl").read_text().splitlines()]
    assert len(lines) >= 3
    packed, plain = (json.loads((path / "runs/mlm/evaluation.json").read_text()) for path in (run, chain))
    assert packed.keys() == plain.keys()
    assert (run / "runs/mlm/batch0.png").stat().st_size > 10_000
    trained = inference.Trained(run / "runs/mlm")
    assert trained.config.stage.pack and len(list((run / "cache").glob("packed-*.bin"))) == 1


def test_training_sees_full_rows_and_evaluation_one_text_a_row(run: Path, scenes: Path) -> None:
    meta = inference.Trained(run / "runs/mlm").checkpoint.meta
    words = ["stage=mlm", f"data.root={scenes}", f"data.cache={run}/cache"]
    packed, plain = (spec_of([*words, f"stage.pack={value}"], meta) for value in ("true", "false"))
    assert len(packed.records) < len(plain.records) / 2
    batch = packed.collate([packed.transform(packed.records[index]) for index in range(4)])
    assert batch["text_keep"].all() and batch["text_segments"].amax() > 1
    held_out = spec_of([*words, "stage.pack=true"], meta, train=False)
    assert len(held_out.records) == len(plain.records)
    config = inference.Trained(run / "runs/mlm").config
    drawn = batch_picture._Drawn(config, meta)._texts(batch, 0)
    assert drawn[0].count("|") == int(batch["text_segments"][0].max()) - 1 and "[MASK]" in drawn[1]


def test_one_packed_batch_is_learnt_by_heart(run: Path, scenes: Path) -> None:
    trained = inference.Trained(run / "runs/mlm")
    words = [
        "stage=mlm",
        "stage.pack=true",
        "model=tiny",
        "init=none",
        f"data.root={scenes}",
        f"data.cache={run}/cache",
    ]
    spec = spec_of(words, trained.checkpoint.meta)
    torch.manual_seed(0)
    batch = spec.collate([spec.transform(spec.records[index]) for index in range(4)])
    objective = MLM(compose.compose(words).config).objective(trained.checkpoint.meta).train()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = objective(batch, objective.counts(batch)).losses["mlm"]
        loss.backward()
        assert all(parameter.grad is not None for parameter in objective.parameters() if parameter.requires_grad)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.15 * losses[0], losses[::10]


def test_another_text_tower_refuses_packed_texts(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    words = ["stage=mlm", "stage.pack=true", "model.text_tower=open_clip:ViT-B-32@none", "init=none"]
    with pytest.raises(UsageError, match=r"stage.pack=true packs texts for our own text tower"):
        MLM(compose.compose(words).config)
