"""Every file of configs/recipe, and the published numbers of fine-tuning on ImageNet beside them.

The table is from microsoft/unilm at 4eaa6ca4: beit/README.md, beit/get_started_for_image_classification.md and
beit2/get_started_for_image_classification.md; the flags that those commands leave out are run_class_finetuning.py's.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from vlbeit import compose, registry
from vlbeit.data.transforms import ClassificationEval
from vlbeit.models.known import KNOWN
from vlbeit.models.presets import PRESETS
from vlbeit.recipes import groups_of, recipes, shipped

FOLDER = Path(__file__).parents[1] / "configs/recipe"
COLUMNS = (
    "optim.lr", "global_batch_size", "epochs", "warmup epochs", "optim.layer_decay", "model.drop_path",
    "optim.weight_decay", "optim.clip_grad", "mixed", "data.image_size", "data.normalize", "init",
)  # fmt: skip
PUBLISHED = {
    "beit_base_in1k": (4e-3, 1024, 100, 20, 0.65, 0.1, 0.05, None, True, 224, "half", "beit_base_patch16_224_pt22k"),
    "beit_large_in1k": (1e-3, 1024, 50, 5, 0.75, 0.2, 0.05, None, True, 224, "half", "beit_large_patch16_224_pt22k"),
    "beit_base_in22k": (3e-3, 4096, 90, 5, 0.65, 0.2, 0.05, 3.0, False, 224, "half", "beit_base_patch16_224_pt22k"),
    "beit_large_in22k": (2e-3, 2048, 90, 5, 0.75, 0.2, 0.05, 1.0, False, 224, "half", "beit_large_patch16_224_pt22k"),
    "beit_base_in22k_in1k":
        (2e-5, 512, 30, 5, 0.85, 0.1, 1e-8, None, False, 224, "half", "beit_base_patch16_224_pt22k_ft22k"),
    "beit_base_in22k_in1k_384":
        (2e-5, 512, 30, 5, 0.85, 0.1, 1e-8, None, False, 384, "half", "beit_base_patch16_224_pt22k_ft22k"),
    "beit_large_in22k_in1k":
        (2e-5, 512, 30, 5, 0.9, 0.4, 1e-8, None, False, 224, "half", "beit_large_patch16_224_pt22k_ft22k"),
    "beit_large_in22k_in1k_384":
        (2e-5, 512, 30, 5, 0.9, 0.4, 1e-8, None, False, 384, "half", "beit_large_patch16_224_pt22k_ft22k"),
    "beit_large_in22k_in1k_512":
        (2e-5, 512, 30, 5, 0.9, 0.4, 1e-8, None, False, 512, "half", "beit_large_patch16_224_pt22k_ft22k"),
    "beitv2_base_in1k":
        (5e-4, 1024, 100, 20, 0.6, 0.2, 0.05, None, True, 224, "imagenet", "beitv2_base_patch16_224_pt1k"),
    "beitv2_base_in1k_300e":
        (5e-4, 1024, 100, 20, 0.65, 0.1, 0.05, None, True, 224, "imagenet", "beitv2_base_patch16_224_pt1k_300e"),
    "beitv2_large_in1k":
        (2e-4, 1024, 50, 5, 0.8, 0.2, 0.05, None, True, 224, "imagenet", "beitv2_large_patch16_224_pt1k"),
    "beitv2_large_in1k_300e":
        (5e-4, 1024, 50, 5, 0.8, 0.2, 0.05, None, True, 224, "imagenet", "beitv2_large_patch16_224_pt1k_300e"),
    "beitv2_base_in21k":
        (6e-4, 4096, 90, 20, 0.75, 0.1, 0.05, None, True, 224, "imagenet", "beitv2_base_patch16_224_pt1k"),
    "beitv2_large_in21k":
        (6e-4, 4096, 90, 20, 0.75, 0.2, 0.05, None, True, 224, "imagenet", "beitv2_large_patch16_224_pt1k"),
    "beitv2_base_in21k_in1k":
        (5e-5, 1024, 30, 20, 0.75, 0.1, 0.05, None, False, 224, "imagenet", "beitv2_base_patch16_224_pt1k_ft21k"),
    "beitv2_large_in21k_in1k":
        (7e-5, 1024, 20, 5, 0.8, 0.25, 0.05, None, False, 224, "imagenet", "beitv2_large_patch16_224_pt1k_ft21k"),
}  # fmt: skip
REACHED = {  # recipe -> the published weights that it makes: their top-1 stands in the recipe's comment
    "beit_base_in1k": "beit_base_patch16_224_pt22k_ft1k",
    "beit_large_in1k": "beit_large_patch16_224_pt22k_ft1k",
    "beit_base_in22k_in1k": "beit_base_patch16_224_pt22k_ft22kto1k",
    "beit_base_in22k_in1k_384": "beit_base_patch16_384_pt22k_ft22kto1k",
    "beit_large_in22k_in1k": "beit_large_patch16_224_pt22k_ft22kto1k",
    "beit_large_in22k_in1k_384": "beit_large_patch16_384_pt22k_ft22kto1k",
    "beit_large_in22k_in1k_512": "beit_large_patch16_512_pt22k_ft22kto1k",
    "beitv2_base_in1k": "beitv2_base_patch16_224_pt1k_ft1k",
    "beitv2_base_in1k_300e": "beitv2_base_patch16_224_pt1k_300e_ft1k",
    "beitv2_large_in1k": "beitv2_large_patch16_224_pt1k_ft1k",
    "beitv2_large_in1k_300e": "beitv2_large_patch16_224_pt1k_300e_ft1k",
    "beitv2_base_in21k_in1k": "beitv2_base_patch16_224_pt1k_ft21kto1k",
    "beitv2_large_in21k_in1k": "beitv2_large_patch16_224_pt1k_ft21kto1k",
}


@pytest.mark.parametrize("recipe", recipes())
def test_every_recipe_says_what_it_is_for_and_composes_alone(recipe: str) -> None:
    brought = groups_of(recipe)
    assert {"stage", "task"} & brought.keys(), f"{recipe}.yaml names neither `stage: {{name:}}` nor `task: {{name:}}`"
    config = compose.compose([f"recipe={recipe}"]).config
    named = {"stage": config.stage, "task": config.task, "data": config.data, "model": config.model}
    assert {group: named[group].name for group in brought} == brought
    assert brought.get("model", "base") in PRESETS and brought.get("data", "scenes") in registry.names("data")
    assert config.steps or config.epochs


@pytest.mark.parametrize("recipe", recipes())
def test_every_recipe_has_a_comment(recipe: str) -> None:
    head, *lines = shipped("recipe")[recipe].read_text().splitlines()
    assert head == "# @package _global_" and lines[0].startswith("# ")


def test_every_recipe_of_classification_is_in_the_table() -> None:
    found = {name for name in recipes() if groups_of(name).get("task") == "classification"}
    assert found == {*PUBLISHED, "scenes_classification"}


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_published_numbers(recipe: str) -> None:
    config = compose.compose([f"recipe={recipe}"]).config
    row = dict(zip(COLUMNS, PUBLISHED[recipe], strict=True))
    warmup, mixed, init, clip = (row.pop(key) for key in ("warmup epochs", "mixed", "init", "optim.clip_grad"))
    for key, value in row.items():
        section, _, name = key.rpartition(".")
        assert getattr(getattr(config, section) if section else config, name) == value, key
    assert config.optim.clip_grad == clip
    assert config.optim.warmup_steps == pytest.approx(warmup / row["epochs"], rel=1e-6)
    assert (config.task.mixup, config.task.cutmix) == ((0.8, 1.0) if mixed else (0.0, 0.0))
    side = row["data.image_size"]
    shorter_side = ClassificationEval(config.data.size, *config.normalization, crop_pct=config.task.crop_pct).cover
    assert shorter_side == ((256, 256) if side == 224 else (side, side))
    assert config.model.name == recipe.split("_")[1]
    text = (FOLDER / f"{recipe}.yaml").read_text()
    assert f"init={init}" in text.replace(".\n", " ").split() or f"init={init}." in text
    assert init in KNOWN and KNOWN[init].hints["normalize"] == row["data.normalize"]


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_what_all_of_them_share(recipe: str) -> None:
    """The defaults of the reference's script, and the augmentation of its two guides."""
    config = compose.compose([f"recipe={recipe}"]).config
    task, optim = config.task, config.optim
    assert (task.randaugment, task.color_jitter, task.erasing) == ("rand-m9-mstd0.5-inc1", 0.4, 0.25)
    assert (task.smoothing, task.mixup_prob, task.switch_prob, task.min_scale) == (0.1, 1.0, 0.5, 0.08)
    assert (task.init_scale, config.engine.ema_decay) == (0.001, 0.0)
    assert (optim.name, optim.betas, optim.eps, optim.min_lr) == ("adamw", [0.9, 0.999], 1e-8, 1e-6)
    assert (optim.schedule, optim.head_lr_scale, config.steps) == ("cosine", 1.0, None)


def test_another_size_brings_its_crop() -> None:
    config = compose.compose(["recipe=beit_base_in22k_in1k", "data.image_size=384"]).config
    larger = compose.compose(["recipe=beit_base_in22k_in1k_384"]).config
    assert config == larger


@pytest.mark.parametrize("recipe", REACHED)
def test_expected_accuracy_is_that_of_the_published_weights(recipe: str) -> None:
    published = KNOWN[REACHED[recipe]]
    assert f"Expected top-1: {published.metrics['top1']}" in (FOLDER / f"{recipe}.yaml").read_text()
    config = compose.compose([f"recipe={recipe}"]).config
    assert published.hints["image_size"] == config.data.size
    assert (
        published.hints["normalize"] == config.data.normalize and published.hints["num_heads"] == config.model.num_heads
    )
