from __future__ import annotations

import pytest
import torch
from torch import nn

from vlbeit.config import OptimConfig
from vlbeit.engine.moments import load_optimizer_state
from vlbeit.engine.optim import build_optimizer, check_coverage, write_lr
from vlbeit.errors import UsageError


def groups(model: nn.Linear) -> list[dict]:
    return [
        {"params": [model.bias], "weight_decay": 0.3, "lr_scale": 0.5, "name": "bias"},
        {"params": [model.weight], "weight_decay": 0.0, "lr_scale": 2.0},
    ]


def test_groups_stay_as_given():
    """timm exempts one-dimensional parameters from decay by default: ours decide for themselves."""
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(groups(model), OptimConfig(lr=1.0, betas=[0.9, 0.98], eps=1e-6))
    write_lr(optimizer, 0.1)
    assert type(optimizer) is torch.optim.AdamW
    seen = [(len(g["params"]), g["weight_decay"], g["lr"], g["betas"], g["eps"]) for g in optimizer.param_groups]
    assert seen == [(1, 0.3, 0.05, (0.9, 0.98), 1e-6), (1, 0.0, 0.2, (0.9, 0.98), 1e-6)]
    before = model.bias.detach().clone()
    model.weight.grad, model.bias.grad = torch.zeros_like(model.weight), torch.zeros_like(model.bias)
    optimizer.step()
    assert torch.equal(model.bias, before * (1 - 0.05 * 0.3))


@pytest.mark.parametrize("name", ["lamb", "lion", "sgd", "adafactor"])
def test_other_optimizers_of_timm(name):
    optimizer = build_optimizer(groups(nn.Linear(3, 2)), OptimConfig(name=name))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]


def test_unknown_optimizer_names_the_nearest():
    with pytest.raises(UsageError, match=r"optim.name=adamv is no optimizer.*adam"):
        build_optimizer(groups(nn.Linear(3, 2)), OptimConfig(name="adamv"))


def test_coverage():
    model = nn.Linear(3, 2)
    full = groups(model)
    check_coverage(model, build_optimizer(full, OptimConfig()))
    with pytest.raises(ValueError, match=r"leaves out trainable parameters: bias$"):
        check_coverage(model, build_optimizer(full[1:], OptimConfig()))
    with pytest.raises(ValueError, match="does not own"):
        check_coverage(model, build_optimizer([*full, {"params": [nn.Parameter(torch.ones(1))]}], OptimConfig()))
    model.bias.requires_grad_(False)
    check_coverage(model, build_optimizer(full[1:], OptimConfig()))


def test_restored_state_keeps_this_runs_settings():
    """`resume=` may bring another decay: the moments come from the file, the settings from the config."""
    model = nn.Linear(3, 2)
    old, new = (build_optimizer(groups(model), OptimConfig(betas=betas)) for betas in ([0.9, 0.95], [0.8, 0.9]))
    model(torch.ones(1, 3)).sum().backward()
    old.step()
    old.param_groups[0]["weight_decay"] = 0.7
    load_optimizer_state(new, old.state_dict())
    assert (new.param_groups[0]["weight_decay"], new.param_groups[0]["betas"]) == (0.3, (0.8, 0.9))
    assert torch.equal(new.state[model.weight]["exp_avg"], old.state[model.weight]["exp_avg"])
