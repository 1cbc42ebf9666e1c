"""VLMo's three stages in configs/recipe against the published numbers (microsoft/unilm vlmo/vlmo/config.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlbeit import compose
from vlbeit.models.known import KNOWN

FOLDER = Path(__file__).parents[1] / "configs/recipe"
STAGES = {  # recipe -> stage, model, lr, steps, text.max_length, expected or where it begins
    "vlmo_base_text": ("mlm", "base", 2e-4, 500_000, 196),
    "vlmo_base_text_200k": ("mlm", "base", 2e-4, 200_000, 196),
    "vlmo_base_plus_text": ("mlm", "base_plus", 2e-4, 500_000, 196),
    "vlmo_large_text": ("mlm", "large", 2e-4, 500_000, 196),
    "vlmo_base_4m": ("vl", "base", 2e-4, 200_000, 40),
    "vlmo_base_plus_4m": ("vl", "base_plus", 1e-4, 200_000, 40),
    "vlmo_large_4m": ("vl", "large", 5e-5, 200_000, 40),
}
VISION = {"vlmo_base_vision": 3.0, "vlmo_base_plus_vision": 3.0, "vlmo_large_vision": 1.0}  # recipe -> clip_grad


@pytest.mark.parametrize("recipe", STAGES)
def test_text_and_vision_language_stages(recipe: str) -> None:
    stage, model, lr, steps, length = STAGES[recipe]
    config = compose.compose([f"recipe={recipe}"]).config
    optim, text = config.optim, config.text
    assert (config.title, config.model.name, optim.lr, config.steps) == (stage, model, lr, steps)
    assert (text.max_length, text.positions, text.tokenizer) == (length, 196, "bert-base-uncased")
    assert (optim.name, optim.betas, optim.weight_decay, optim.eps) == ("adamw", [0.9, 0.98], 0.01, 1e-8)
    assert (optim.schedule, optim.warmup_steps, optim.min_lr, optim.clip_grad) == ("linear", 2500, 0.0, None)
    assert (config.global_batch_size, config.data.image_size, config.model.drop_path) == (1024, 224, 0.1)
    assert config.model.positions == ("absolute" if model == "base_plus" else "relative")


@pytest.mark.parametrize("size", ["base", "base_plus", "large"])
def test_objectives_are_the_published_ones(size: str) -> None:
    text, pairs = (compose.compose([f"recipe=vlmo_{size}_{stage}"]).config.stage for stage in ("text", "4m"))
    assert (text.probability, text.pack, text.freeze) == (0.15, False, "auto")
    assert (pairs.mlm_weight, pairs.mlm_probability, pairs.negatives) == (0.25, 0.15, "sampled")
    assert (pairs.min_scale, pairs.hflip, pairs.randaugment) == (0.5, 0.5, True)


@pytest.mark.parametrize("recipe", VISION)
def test_the_vision_stage_is_beits(recipe: str) -> None:
    config = compose.compose([f"recipe={recipe}"]).config
    optim = config.optim
    assert (config.title, config.epochs, config.global_batch_size, config.steps) == ("mim", 150, 2048, None)
    assert (optim.lr, optim.min_lr, optim.warmup_steps, optim.weight_decay) == (1.5e-3, 1e-5, 10_000, 0.05)
    assert (optim.clip_grad, optim.betas, config.model.drop_path) == (VISION[recipe], [0.9, 0.999], 0.1)


@pytest.mark.parametrize("recipe", [*STAGES, *VISION])
def test_the_comment_says_cost_source_and_start(recipe: str) -> None:
    text = (FOLDER / f"{recipe}.yaml").read_text()
    comment = [line for line in text.splitlines() if line.startswith("# ")]
    assert all(any(line.startswith(f"# {word}") for line in comment) for word in ("Source:", "Cost:", "Expected"))
    words = " ".join(line[2:] for line in comment).replace(",", " ").replace(")", " ").replace(".", " ").split()
    starts = [word.removeprefix("init=") for word in words if word.startswith("init=")]
    assert starts or recipe == "vlmo_base_plus_text" or recipe.endswith("vision"), "where it begins"
    assert all(start in KNOWN for start in starts)
    named = [word.removeprefix("recipe=") for word in words if word.startswith("recipe=")]
    assert all((FOLDER / f"{name}.yaml").exists() for name in named)


def test_numbers_after_fine_tuning_are_those_of_the_published_weights() -> None:
    for size in ("base", "base_plus", "large"):
        text = " ".join((FOLDER / f"vlmo_{size}_4m.yaml").read_text().replace("\n#", "").split())
        vqa, nlvr2, coco, f30k = (
            KNOWN[f"vlmo_{size}_patch16_{step}"].metrics for step in ("480_vqa", "384_nlvr2", "384_coco", "384_f30k")
        )
        assert f"test-dev {vqa['test_dev']}" in text and f"test-P {nlvr2['test_p']}" in text
        for metrics in (coco, f30k):
            assert f"TR@1 {metrics['text_r1']}, IR@1 {metrics['image_r1']}" in text
