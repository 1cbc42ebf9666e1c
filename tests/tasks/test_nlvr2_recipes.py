"""The recipes of NLVR2 beside the published ones: microsoft/unilm vlmo/vlmo/config.py at ab2c83e2, README."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlbeit import compose
from vlbeit.models.known import KNOWN
from vlbeit.recipes import groups_of, recipes, shipped

PUBLISHED = {  # size: lr, drop path, test-P of the README, dev and test-P of the paper
    "base": (5e-5, 0.1, 83.3, "dev 82.77, test-P 83.34"),
    "base_plus": (3e-5, 0.2, 85.1, None),
    "large": (3e-5, 0.15, 86.9, "dev 85.64, test-P 86.86"),
}


def test_every_recipe_of_nlvr2_is_here() -> None:
    found = {name for name in recipes() if groups_of(name).get("task") == "nlvr2"}
    assert found == {*(f"vlmo_{size}_nlvr2_384" for size in PUBLISHED), "scenes_nlvr2"}


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_numbers(size: str) -> None:
    config = compose.compose([f"recipe=vlmo_{size}_nlvr2_384"]).config
    lr, drop_path, test_p, paper = PUBLISHED[size]
    optim, task, data = config.optim, config.task, config.data
    assert (config.tower, config.model.name, config.model.drop_path) == ("vl", size, drop_path)
    assert (optim.lr, optim.head_lr_scale, optim.warmup_steps, optim.schedule) == (lr, 1.0, 0.1, "linear")
    assert (optim.weight_decay, optim.betas, optim.eps, optim.clip_grad) == (0.01, [0.9, 0.98], 1e-8, None)
    assert (optim.layer_decay, config.epochs, config.global_batch_size) == (1.0, 10, 128)
    assert (data.name, data.size, data.normalize, data.train_split) == ("nlvr2", (384, 384), "half", "train")
    assert (data.val_split, config.text.max_length, config.text.positions) == ("dev", 40, 40)
    assert (task.min_scale, task.hflip, task.randaugment) == (0.5, 0.5, True)
    text = Path(shipped("recipe")[f"vlmo_{size}_nlvr2_384"]).read_text().replace("\n# ", " ")
    start = f"vlmo_{size}_patch16_224"
    assert f"init={start}" in text and start in KNOWN and f"task_finetune_nlvr2_{size}_image384" in text
    assert f"test-P {test_p}" in text and KNOWN[f"vlmo_{size}_patch16_384_nlvr2"].metrics == {"test_p": test_p}
    assert paper is None or paper in text
    page = (Path(__file__).parents[2] / "docs" / "nlvr2.md").read_text()
    assert f"| `vlmo_{size}_nlvr2_384` | `{start}` | {test_p} |" in page
