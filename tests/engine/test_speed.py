from __future__ import annotations

import gzip
import json
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vlbeit.engine.speed import PEAKS, Speed, memory_peak, peak_of, speed_on


@pytest.mark.parametrize(
    ("name", "precision", "tf32", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", False, 312e12),
        ("NVIDIA A100-SXM4-80GB", "fp32", False, 19.5e12),
        ("NVIDIA A100-PCIE-40GB", "fp32", True, 156e12),
        ("NVIDIA H100 PCIe", "bf16", False, 756e12),
        ("NVIDIA H100 80GB HBM3", "fp16", False, 989e12),
        ("NVIDIA H200", "bf16", False, 989e12),
        ("NVIDIA L40S", "bf16", False, 362e12),
        ("NVIDIA L4", "bf16", False, 121e12),
        ("Tesla V100-SXM2-16GB", "fp16", False, 125e12),
        ("Tesla V100-SXM2-16GB", "bf16", False, None),
        ("Tesla V100-PCIE-32GB", "fp16", False, 112e12),
        ("Tesla V100S-PCIE-32GB", "fp16", False, None),
        ("NVIDIA A100 80GB PCIe", "bf16", False, 312e12),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16", False, None),
        ("NVIDIA H100 NVL", "bf16", False, None),
        ("NVIDIA H200 NVL", "bf16", False, None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16", False, None),
        ("Tesla T4", "fp32", True, None),
        ("NVIDIA H100 80GB HBM3", "fp64", False, None),
        ("Some Other Device 3000", "bf16", False, None),
    ],
)
def test_peak_of_known_devices(name, precision, tf32, peak):
    assert peak_of(name, precision, tf32=tf32) == peak


def test_a_cpu_has_no_known_peak():
    assert speed_on(torch.device("cpu"), "fp32", compiled=False).peak is None and len(PEAKS) > 5
    assert 0.05 < memory_peak(torch.device("cpu")) < 100


def test_operations_of_one_micro_batch_and_utilisation():
    """A linear layer of 20 x 30: 2 x 20 x 30 a row forward, as much for the weight; the input needs no gradient."""
    speed, layer, x = (
        Speed(torch.device("cpu"), None, counts_flops=True),
        nn.Linear(20, 30, bias=False),
        torch.ones(8, 20),
    )
    for _ in range(3):
        with speed.forward_and_backward(tokens=4):
            layer(x).sum().backward()
    assert speed.flops_per_token == 2 * (2 * 20 * 30) * 8 / 4 and speed.tokens == 12
    assert "mfu" not in speed.numbers(2.0)
    speed.peak = 1e6
    found = speed.numbers(2.0)
    assert found["tokens_per_second"] == 6
    assert found["tflops_per_second"] * 1e12 == pytest.approx(6 * speed.flops_per_token)
    assert found["mfu"] == pytest.approx(6 * speed.flops_per_token / 1e6)


def test_what_checkpointing_computes_again_does_not_count():
    """The utilisation is that of the model's operations: the same with and without."""
    layers, found = nn.Sequential(nn.Linear(20, 30), nn.GELU(), nn.Linear(30, 20)), []
    for reentrant in (None, False, True):
        speed, x = Speed(torch.device("cpu"), None, counts_flops=True), torch.ones(8, 20, requires_grad=True)
        with speed.forward_and_backward(tokens=1):
            (layers(x) if reentrant is None else checkpoint(layers, x, use_reentrant=reentrant)).sum().backward()
        found.append(speed.flops_per_token)
    assert found == [3 * 2 * 8 * 2 * 600] * 3


def test_nothing_is_said_of_what_is_not_counted():
    speed = Speed(torch.device("cpu"), 1e12, counts_flops=False)
    with speed.forward_and_backward(tokens=4):
        pass
    assert speed.numbers(1.0).keys() == {"data_wait", "tokens_per_second", "memory_gib"}


def test_counting_does_not_change_a_bit(toy):
    counted, plain = toy.make_engine(), toy.make_engine()
    counted.meter.speed = Speed(torch.device("cpu"), None, counts_flops=True)
    counted.objective.tokens = lambda batch: 8
    counted.fit(), plain.fit()
    assert counted.meter.speed.flops_per_token > 0 and plain.meter.speed.flops_per_token is None
    for name, value in plain.objective.state_dict().items():
        assert torch.equal(value, counted.objective.state_dict()[name])


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_share_of_waiting(toy, tmp_path):
    class Slow(toy.Samples):
        def steps(self, start, stop):
            for batches in super().steps(start, stop):
                time.sleep(0.1)
                yield batches

    toy.make_engine(tmp_path / "slow", stream=Slow(), steps=3).fit()
    toy.make_engine(tmp_path / "quick", steps=3).fit()
    slow, quick = (lines(tmp_path / name)[0]["speed"]["data_wait"] for name in ("slow", "quick"))
    assert 0.5 < slow <= 1 and quick < slow


def test_learning_rates_of_the_groups(toy, tmp_path):
    engine = toy.make_engine(tmp_path, steps=3, log_every=1)
    engine.fit()
    assert [line["lr_groups"] for line in lines(tmp_path) if "losses" in line] == [
        {"lowest": 0.5 * engine.plan.schedule(step), "highest": engine.plan.schedule(step)} for step in range(3)
    ]


@pytest.mark.parametrize("name", ["run", "x[2]{1}"])  # torch writes the path behind the events
def test_profile(toy, tmp_path, caplog, name):
    """Steps 3 and 4 of what is left are traced, and the run ends as ever."""
    tmp_path /= name
    with caplog.at_level("INFO"):
        traced, plain = toy.make_engine(tmp_path, profile=2, steps=6), toy.make_engine(steps=6)
        traced.fit(), plain.fit()
    for name, value in plain.objective.state_dict().items():
        assert torch.equal(value, traced.objective.state_dict()[name])

    trace = gzip.decompress((tmp_path / "profile" / "step-000003.json.gz").read_bytes())
    events = json.loads(trace)["traceEvents"]
    names = [event.get("name") for event in events if event.get("cat") == "user_annotation"]
    assert [names.count(part) for part in ("forward", "backward", "update", "wait for data")] == [2, 2, 2, 2]
    assert "aten::addmm" in (tmp_path / "profile" / "step-000003.txt").read_text()
    assert "wrote" in caplog.text and "https://ui.perfetto.dev" in caplog.text
    assert sorted(path.name for path in (tmp_path / "profile").iterdir()) == ["step-000003.json.gz", "step-000003.txt"]


@pytest.mark.parametrize("torn", [b'{"traceEvents": [{"name": "a", "args": {"x": [1]', None])
def test_profile_on_a_full_disk(toy, tmp_path, caplog, monkeypatch, torn):
    """Torch writes what it can and says nothing, or fails: no torn file gets the name, and training goes on."""

    def export(self, path):
        if torn is None:
            raise OSError(28, "No space left on device")
        Path(path).write_bytes(torn)

    monkeypatch.setattr(torch.profiler.profile, "export_chrome_trace", export)
    assert toy.make_engine(tmp_path, profile=2, steps=6).fit().step == 6
    assert caplog.text.count("no profile: cannot write") == 1 and not list((tmp_path / "profile").iterdir())


def test_profile_of_a_run_that_ends_too_early(toy, tmp_path, caplog):
    with caplog.at_level("WARNING"):
        toy.make_engine(tmp_path, profile=5, steps=1).fit()
    assert "no profile: the run ended before step 3" in caplog.text and not (tmp_path / "profile").exists()
    toy.make_engine(tmp_path / "short", profile=5, steps=4).fit()
    assert (tmp_path / "short" / "profile" / "step-000003.json.gz").exists()
