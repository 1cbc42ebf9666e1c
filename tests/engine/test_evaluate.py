from __future__ import annotations

import pytest
import torch
from torch import nn

from vlbeit.engine.device import make_accelerator
from vlbeit.engine.evaluate import run_evaluators


class MeanOutput:
    """Mean of the model's output, and how many samples it saw."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def update(self, objective, batch):
        assert not objective.training and not torch.is_grad_enabled()
        self.total += objective(batch["x"]).sum().item() + torch.rand(1).item()
        self.count += len(batch["sample_id"])

    def compute(self):
        return {"mean": self.total / self.count, "samples": self.count}


@pytest.fixture
def model() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).double()
    model[1].eval()  # a frozen part that its owner keeps in evaluation mode
    return model


def batches():
    return [{"x": torch.ones(2, 3), "sample_id": ["a", "b"]}, {"x": torch.ones(1, 3), "sample_id": ["c"]}]


def test_every_batch_once_and_nothing_disturbed(model):
    before = torch.get_rng_state()
    results = [run_evaluators(model, batches(), {"mean": MeanOutput()}, make_accelerator("cpu"), 3) for _ in range(2)]
    assert results[0] == results[1] and results[0]["samples"] == 3  # drawn from a fixed seed
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in model.modules()] == [True, True, False]


def test_same_name_twice(model):
    evaluators = {"first": MeanOutput(), "second": MeanOutput()}
    with pytest.raises(ValueError, match="evaluator second gives mean, samples, which another one gave already"):
        run_evaluators(model, batches(), evaluators, make_accelerator("cpu"), 3)
