"""The recipes of segmentation beside the published configs of microsoft/unilm, {beit,beit2}/semantic_segmentation."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlbeit import compose
from vlbeit.models.known import KNOWN
from vlbeit.recipes import groups_of, recipes, shipped

BASE, LARGE = "upernet_beit_base_12", "upernet_beit_large_24"
PUBLISHED = {  # name of the config; window, lr, layer decay, drop path, start
    "beit_base_ade20k_512":
        (f"{BASE}_512_slide_160k_ade20k_pt", 512, 7e-4, 0.65, 0.1, "beit_base_patch16_224_pt22k"),
    "beit_base_ade20k_512_ft22k":
        (f"{BASE}_512_slide_160k_ade20k_pt2ft", 512, 3e-5, 0.9, 0.1, "beit_base_patch16_224_pt22k_ft22k"),
    "beit_base_ade20k_640":
        (f"{BASE}_640_slide_160k_ade20k_pt2ft", 640, 3e-5, 0.9, 0.1, "beit_base_patch16_224_pt22k_ft22k"),
    "beit_large_ade20k_512":
        (f"{LARGE}_512_slide_160k_ade20k_pt2ft", 512, 2e-5, 0.95, 0.2, "beit_large_patch16_224_pt22k_ft22k"),
    "beit_large_ade20k_640":
        (f"{LARGE}_640_slide_160k_ade20k_pt2ft", 640, 2e-5, 0.95, 0.2, "beit_large_patch16_224_pt22k_ft22k"),
    "beitv2_base_ade20k_512":
        (f"{BASE}_512_slide_160k_ade20k", 512, 5e-5, 0.75, 0.15, "beitv2_base_patch16_224_pt1k"),
    "beitv2_large_ade20k_512":
        (f"{LARGE}_512_slide_160k_ade20k", 512, 4e-5, 0.9, 0.2, "beitv2_large_patch16_224_pt1k"),
}  # fmt: skip
REACHED = {  # recipe -> published weights that it makes
    "beit_base_ade20k_640": "beit_base_patch16_640_pt22k_ft22ktoade20k",
    "beit_large_ade20k_640": "beit_large_patch16_640_pt22k_ft22ktoade20k",
    "beitv2_base_ade20k_512": "beitv2_base_patch16_224_pt1k_ftade20k",
    "beitv2_large_ade20k_512": "beitv2_large_patch16_224_pt1k_ftade20k",
}


def text_of(recipe: str) -> str:
    return Path(shipped("recipe")[recipe]).read_text().replace("\n# ", " ")


def test_every_recipe_of_segmentation_is_in_the_table() -> None:
    assert {name for name in recipes() if groups_of(name).get("task") == "segmentation"} == {
        *PUBLISHED,
        "scenes_segmentation",
    }


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_published_numbers(recipe: str) -> None:
    source, size, lr, decay, drop_path, start = PUBLISHED[recipe]
    config = compose.compose([f"recipe={recipe}"]).config
    assert (config.data.name, config.data.image_size, config.data.normalize) == ("ade20k", size, "imagenet")
    assert (config.optim.lr, config.optim.layer_decay, config.model.drop_path) == (lr, decay, drop_path)
    assert config.model.name == recipe.split("_")[1] and start in KNOWN
    assert f"{source})" in text_of(recipe) and f"init={start}" in text_of(recipe)


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_what_all_of_them_share(recipe: str) -> None:
    config = compose.compose([f"recipe={recipe}"]).config
    task, optim = config.task, config.optim
    assert (config.steps, config.epochs, config.global_batch_size) == (160_000, None, 16)
    assert (optim.name, optim.betas, optim.weight_decay, optim.clip_grad) == ("adamw", [0.9, 0.999], 0.05, None)
    assert (optim.schedule, optim.power, optim.min_lr, optim.warmup_steps) == ("poly", 1.0, 0.0, 1500)
    assert (task.head, task.auxiliary_weight, task.dropout, task.reduce_zero_label) == ("upernet", 0.4, 0.1, True)
    assert (task.ratio_min, task.ratio_max, task.cat_max_ratio, task.hflip, task.photometric) == (
        0.5,
        2,
        0.75,
        0.5,
        True,
    )
    assert (task.inference, task.scales, task.flip) == ("slide", [1.0], False)


@pytest.mark.parametrize("recipe", REACHED)
def test_expected_numbers_are_those_of_the_published_weights(recipe: str) -> None:
    metrics = KNOWN[REACHED[recipe]].metrics
    words = {"miou": "mIoU", "macc": "mAcc", "aacc": "aAcc", "miou_multi_scale": "with six scales and flip"}
    assert metrics.keys() <= words.keys() and "miou" in metrics
    expected = [f"{words[name]} {value}" for name, value in metrics.items()]
    assert [each for each in expected if each not in text_of(recipe)] == []


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("beitv2_base_ade20k_512", "after fine-tuning on ImageNet-21k {miou:.1f}"),
        ("beitv2_large_ade20k_512", "after fine-tuning on ImageNet-21k {miou:.1f} (mAcc {macc}, aAcc {aacc})"),
    ],
)
def test_so_are_those_of_the_other_start(recipe: str, said: str) -> None:
    metrics = KNOWN[REACHED[recipe].replace("_ftade20k", "_ft21ktoade20k")].metrics
    assert said.format(**metrics) in text_of(recipe)


def test_defaults_of_the_task_are_the_recipe_of_masked_image_modeling_alone() -> None:
    plain = compose.compose(["stage=mim", "task=segmentation", "data=ade20k", "model=base"]).config
    recipe = compose.compose(["stage=mim", "recipe=beit_base_ade20k_512"]).config
    differing = compose.differing_keys(plain, recipe)
    assert [key for key, *_ in differing if not key.startswith("engine.")] == []
