"""The recipes of VQA v2 beside the published ones: microsoft/unilm vlmo/vlmo/config.py at ab2c83e2, README."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlbeit import compose
from vlbeit.models.known import KNOWN
from vlbeit.recipes import groups_of, recipes, shipped
from vlbeit.tasks.vqa import RECIPE as VQA
from vlbeit.tasks.vqa.reading import longest_text

PUBLISHED = {  # size: lr, test-dev, test-standard
    "base": (3e-5, 76.6, 76.89),
    "base_plus": (3e-5, 78.5, None),
    "large": (1.5e-5, 79.9, 79.98),
}


def test_every_recipe_of_vqa_is_here() -> None:
    found = {name for name in recipes() if groups_of(name).get("task") == "vqa"}
    assert found == {*(f"vlmo_{size}_vqa_480" for size in PUBLISHED), "scenes_vqa"}


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_numbers(size: str) -> None:
    config = compose.compose([f"recipe=vlmo_{size}_vqa_480"]).config
    lr, test_dev, test_std = PUBLISHED[size]
    optim, task, data = config.optim, config.task, config.data
    assert (config.tower, config.model.name, config.model.drop_path) == ("vl", size, 0.15)
    assert (optim.lr, optim.head_lr_scale, optim.warmup_steps, optim.schedule) == (lr, 20, 0.1, "linear")
    assert (optim.weight_decay, optim.betas, optim.eps, optim.clip_grad) == (0.01, [0.9, 0.98], 1e-8, None)
    assert (optim.layer_decay, config.epochs, config.global_batch_size) == (1.0, 10, 128)
    assert (data.name, data.size, data.resize, data.normalize) == ("vqa_v2", (480, 480), "square", "half")
    assert (data.train_split, data.val_split, config.text.max_length) == ("train+trainable_val", "rest_val", 40)
    assert (task.min_scale, task.hflip, task.hflip_sides, task.randaugment) == (0.5, 0.5, "keep", True)
    assert (task.min_count, task.vocabulary_splits, task.targets) == (9, ["train", "val"], "raw")
    text = Path(shipped("recipe")[f"vlmo_{size}_vqa_480"]).read_text().replace("\n# ", " ")
    start = f"vlmo_{size}_patch16_224"
    assert f"init={start}" in text and start in KNOWN and f"task_finetune_vqa_{size}_image480" in text
    assert f"test-dev {test_dev}" in text and KNOWN[f"vlmo_{size}_patch16_480_vqa"].metrics == {"test_dev": test_dev}
    assert (f"test-std {test_std}" in text) == (test_std is not None)
    page = (Path(__file__).parents[2] / "docs" / "vqa.md").read_text()
    assert f"| `vlmo_{size}_vqa_480` | `{start}` | {test_dev} | {test_std or 'none'} |" in page
    VQA(config).check()


@pytest.mark.parametrize("size", PUBLISHED)
def test_questions_are_cut_where_the_published_ones_are(size: str) -> None:
    for words, longest in (([], 40), (["text.positions=196"], 40 if size == "base_plus" else 196)):
        assert longest_text(compose.compose([f"recipe=vlmo_{size}_vqa_480", *words]).config) == longest
