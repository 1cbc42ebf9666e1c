"""One of two processes is killed by kill -9: the same command goes on, and the weights are those of the unbroken run.

`benchmarks/survival.py` does the same to the command line, at random moments.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

LAST = Path("state") / "step-000012"


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("deaths")
    subprocess.run([sys.executable, Path(__file__).with_name("toy.py"), "deaths", folder], check=True, timeout=120)
    return folder


@pytest.mark.parametrize(("moment", "rank", "saved"), [("step", 1, 4), ("evaluation", 1, 8), ("save", 0, 4)])
def test_weights_of_the_unbroken_run(ran: Path, moment: str, rank: int, saved: int) -> None:
    codes = json.loads((ran / "codes.json").read_text())
    assert codes["whole"] == codes[f"{moment} again"] == [0, 0]
    assert codes[f"{moment} saved"] == [saved]
    assert codes[moment][rank] == -9 and codes[moment][1 - rank] == 1, "the other one does not wait for ever"
    for name in ("model", "ema"):
        whole, found = (load_file(ran / run / LAST / f"{name}.safetensors") for run in ("whole", moment))
        assert all(torch.equal(value, found[key]) for key, value in whole.items()) and whole.keys() == found.keys()
    lines = [json.loads(line) for line in (ran / moment / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "evaluation" in line] == [5, 10, 12]
