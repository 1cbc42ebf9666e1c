from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vlbeit.config import DataConfig, ModelConfig, RunConfig
from vlbeit.data.records import ListRecords
from vlbeit.errors import UsageError
from vlbeit.models.dvae import DVAESpec
from vlbeit.stages.tokenizer import Tokenizer, TokenizerSettings

SMALL: dict[str, Any] = {"vocab_size": 32, "hidden": 16, "blocks_per_group": 1, "decoder_input": 16}


def stage(run: dict[str, Any] | None = None, *, size: Any = (16, 24), **settings: Any) -> Tokenizer:
    config = {"data": DataConfig(image_size=list(size)), "model": ModelConfig(patch_size=8), **(run or {})}
    return Tokenizer(RunConfig(stage=TokenizerSettings(name="tokenizer", **SMALL | settings), **config))


def records(number: int) -> ListRecords:
    generator = np.random.default_rng(0)
    rows = []
    for row in range(number):
        file = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(file, "PNG")
        rows.append({"id": f"picture {row}", "image": file.getvalue()})
    return ListRecords(rows)


def test_defaults_are_the_published_model() -> None:
    assert TokenizerSettings().spec == DVAESpec()


@pytest.mark.parametrize("train", [True, False])
def test_samples_are_pixels_of_the_size_asked_for(train: bool) -> None:
    spec = stage().data(records(3), {}, train=train)
    batch = spec.collate([spec.transform(spec.records[row]) for row in range(3)])
    assert batch["sample_id"] == ["picture 0", "picture 1", "picture 2"]
    assert batch["pixels"].shape == (3, 3, 16, 24)
    assert batch["pixels"].min() >= 0 and batch["pixels"].max() <= 1 and batch["pixels"].std() > 0.05


@pytest.mark.parametrize("run", [{"steps": 400}, {"epochs": 5.0, "global_batch_size": 2}])
def test_a_share_of_the_run_is_annealed(run: dict[str, Any]) -> None:
    recipe = stage(run, kl_steps=0.1, temperature_steps=0.5)
    annealing = recipe.objective(recipe.meta(records(160), {})).annealing
    assert (annealing.kl_steps, annealing.temperature_steps) == (40, 200)


def test_whole_numbers_are_steps() -> None:
    annealing = TokenizerSettings().annealing(3_000_000)
    assert (annealing.kl_steps, annealing.temperature_steps) == (5_000, 150_000)


def test_kernels_decay_and_biases_do_not() -> None:
    recipe = stage({"steps": 4})
    objective = recipe.objective(recipe.meta(records(1), {}))
    groups = {group["weight_decay"]: group["params"] for group in recipe.param_groups(objective, recipe.config.optim)}
    assert {parameter.ndim for parameter in groups[0.05]} == {4}
    assert {parameter.ndim for parameter in groups[0.0]} == {1}
    assert sum(len(group) for group in groups.values()) == len(list(objective.parameters()))


def test_evaluation_gives_the_metric() -> None:
    recipe = stage({"steps": 4})
    objective = recipe.objective({}).eval()
    evaluator = recipe.evaluators(records(1), {})["codebook"]
    evaluator.update(objective, {"pixels": torch.rand(2, 3, 16, 24)})
    assert recipe.metric.removeprefix("-") in evaluator.compute()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantizer": "vq"}, "stage.quantizer=vq is not one of gumbel, fsq"),
        ({"loss": "huber"}, "stage.loss=huber is not one of logit_laplace, l1, l2"),
        ({"quantizer": "fsq", "vocab_size": 4}, "stage.vocab_size=4 must be at least 5"),
        ({"levels": [8, 5]}, "stage.levels= goes with stage.quantizer=fsq"),
        ({"hidden": 18}, "stage.hidden=18 must be a multiple of 4"),
        ({"num_groups": 0}, "stage.num_groups=0 must be positive"),
        ({"temperature_end": 0.0}, "stage.temperature_end=0.0 must be positive"),
        ({"kl_weight": -1.0}, "stage.kl_weight=-1.0 must not be negative"),
        ({"min_scale": 0.0}, "stage.min_scale=0.0 must lie in"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        stage(**settings)
    assert message in str(caught.value)


def test_image_size_that_does_not_divide_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match=r"data\.image_size=24x32 must be a multiple of 16"):
        stage(size=(24, 32), num_groups=5)
