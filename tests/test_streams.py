"""Training on streams from the command line: shards, a mix, what is told of them."""

from __future__ import annotations

import json
import re
from contextlib import chdir
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from vlbeit import compose, suggest
from vlbeit.cli import main
from vlbeit.data.shards import ShardRecords
from vlbeit.engine.folder import RunFolder

SMALL = (
    "init=none", "model=tiny", "model.embed_dim=32", "model.depth=2", "model.num_heads=2", "model.fused_layers=1",
    "data.image_size=32", "data.workers=0", "data.shuffle_buffer=16", "text.max_length=8", "text.positions=8",
    "global_batch_size=4", "micro_batch_size=4", "optim.lr=1e-4", "optim.warmup_steps=0",
    "optim.schedule=constant", "device=cpu",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, made: ModuleType, monkeypatch: pytest.MonkeyPatch):
    """data/sbu: 12 pairs in tars, the last 4 held out; data/cc3m: Parquet, 8 and 4, one of which has no picture."""
    monkeypatch.setenv("VLBEIT_CACHE", str(tmp_path / "cache"))
    made.write_tars(tmp_path / "data" / "sbu", [4, 4, 4])
    made.write_parquet(tmp_path / "data" / "cc3m" / "train-0.parquet", range(20, 28), struct=True)
    made.write_parquet(tmp_path / "data" / "cc3m" / "val-0.parquet", range(40, 44), struct=True)
    with chdir(tmp_path):
        yield tmp_path


def test_a_mix_is_trained_on_evaluated_and_gone_on_with(folder, made, capfd):
    members = {f"{n}.{ending}": "broken" if ending == "jpg" else "t" for n in range(2) for ending in ("jpg", "txt")}
    made.write_tar(folder / "data" / "web" / "train.tar", made.pair_members(range(60, 64)) | members)
    words = ["train", "stage=vl", "data.mix=[sbu*2,cc3m,web]", *SMALL, "data.max_bad_fraction=0.2"]
    assert main([*words, "epochs=1"]) == 0
    told = capfd.readouterr()
    assert "data.mix: sbu 8 * 2, cc3m 8 * 1, web 6 * 1: 30 samples an epoch" in told.err
    assert "data.mix: web has no split 'val'" in told.err or "held out" in told.err
    assert "note: unusable samples were replaced: 2 unreadable picture" in told.out
    assert "7 steps of 4 samples" in told.out and "next: vlbeit train stage=vl task=retrieval" in told.out
    lines = [json.loads(line) for line in (folder / "runs/vl/metrics.jsonl").read_text().splitlines()]
    assert any("evaluation" in line for line in lines)
    assert main([*words, "steps=9"]) == 0
    assert "going on from step 7" in capfd.readouterr().out
    assert main([*words, "steps=9", "run=runs/whole"]) == 0
    states = [load_file(RunFolder(run).last_state() / "model.safetensors") for run in ("runs/vl", "runs/whole")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0]), "as if it had not been broken off"
    assert main(["evaluate", "runs/vl", "data.mix=[cc3m]"]) == 0


def test_a_vanished_shard_ends_the_run_in_one_line_and_the_last_state_is_whole(folder, capfd, monkeypatch):
    words = ["train", "stage=vl", "data=shards", "data.root=data/sbu", *SMALL, "engine.save_every=1"]
    assert main([*words, "steps=1"]) == 0
    ordered = ShardRecords.ordered
    for table in (folder / "data" / "sbu").glob("*.parquet"):
        table.unlink()

    def vanishing(self, *arguments):
        (folder / "data" / "sbu" / "00001.tar").unlink(missing_ok=True)  # after it was listed and counted
        return ordered(self, *arguments)

    monkeypatch.setattr(ShardRecords, "ordered", vanishing)
    capfd.readouterr()
    assert main([*words, "steps=9"]) == 1
    told = capfd.readouterr().err
    assert re.search(r"error: \S+data/sbu/00001\.tar is gone; put it back", told) and "Traceback" not in told
    assert json.loads((folder / "runs/vl/last.json").read_text())["step"] >= 1
    assert RunFolder("runs/vl").last_state().is_dir()


def test_the_text_stage_reads_documents(folder, capfd):
    for name in ("train-0", "val-0"):
        table = pa.table({"title": ["a"] * 6, "text": [f"some words of document {n}" for n in range(6)]})
        pq.write_table(table, folder / "data" / f"{name}.parquet")
    words = [word for word in SMALL if not word.startswith("data.image_size")]
    assert main(["train", "stage=mlm", "data=shards", "data.root=data", *words, "steps=2"]) == 0
    told = capfd.readouterr()
    assert "6 samples of train in 1 shard" in told.err
    assert "next: vlbeit train stage=vl model=tiny data=pairs data.root=DIR" in told.out


@pytest.mark.parametrize(
    ("words", "kind", "expected"),
    [
        ("stage=mlm data=shards", "text", "stage=vl model=base data=pairs data.root=DIR"),
        ("stage=mlm data=shards", "pairs", "stage=vl model=base data=shards data.root=own"),
        ("stage=mlm data=shards", "", "stage=vl model=base data=pairs data.root=DIR"),
        ("stage=mlm data=pairs", "text", "stage=vl model=base data=pairs data.root=DIR"),
        ("stage=mlm data=pairs", "", "stage=vl model=base data=pairs data.root=own"),
        ("stage=mlm data.mix=[own]", "text", "stage=vl model=base data=pairs data.root=DIR"),
        ("stage=mim data=shards", "", "stage=mlm model=base data=text data.root=DIR"),
        ("stage=mim data=shards", "pairs", "stage=mlm model=base data=shards data.root=own"),
        ("stage=mim data=imagefolder", "", "stage=mlm model=base data=text data.root=DIR"),
        ("stage=mim data=coco_captions", "pairs", "stage=mlm model=base data=coco_captions data.root=own"),
        ("stage=tokenizer data=shards", "", "stage=mim model=base data=shards data.root=own"),
        ("stage=vl data=shards", "", "stage=vl task=retrieval model=base data=shards data.root=own"),
    ],
)
def test_what_comes_next_is_on_data_that_can_serve(tmp_path, monkeypatch, words, kind, expected):
    """`kind`: what own was prepared for; "": it is not of `vlbeit prepare`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    if kind:
        facts = {"version": 1, "kind": kind, "format": "parquet", "classes": [], "splits": {}}
        (tmp_path / "own" / "prepared.json").write_text(json.dumps(facts))
    config = compose.compose([*words.split(), "data.root=own"]).config
    assert suggest.after_training(config).startswith(f"vlbeit train {expected} run=runs/")
