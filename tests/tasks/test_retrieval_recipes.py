"""The recipes of retrieval beside the published ones: microsoft/unilm vlmo/vlmo/config.py at ab2c83e2, README."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlbeit import compose
from vlbeit.models.known import KNOWN
from vlbeit.recipes import groups_of, recipes, shipped

PUBLISHED = {  # size, data: lr, drop path, steps, TR@1, IR@1
    ("base", "coco"): (3e-5, 0.2, 3000, 74.8, 57.2),
    ("base_plus", "coco"): (3e-5, 0.2, 3000, 76.3, 58.6),
    ("large", "coco"): (2e-5, 0.2, 3000, 78.2, 60.6),
    ("base", "f30k"): (3e-5, 0.15, 1500, 92.3, 79.3),
    ("base_plus", "f30k"): (3e-5, 0.2, 1500, 93.2, 81.8),
    ("large", "f30k"): (2e-5, 0.2, 1500, 95.3, 84.5),
}
NAMES = [f"vlmo_{size}_retrieval_{data}_384" for size, data in PUBLISHED]


def test_every_recipe_of_retrieval_is_here() -> None:
    assert {n for n in recipes() if groups_of(n).get("task") == "retrieval"} == {*NAMES, "scenes_retrieval"}


@pytest.mark.parametrize(("size", "name"), PUBLISHED)
def test_published_numbers(size: str, name: str) -> None:
    recipe = f"vlmo_{size}_retrieval_{name}_384"
    config = compose.compose([f"recipe={recipe}"]).config
    lr, drop_path, steps, texts, pictures = PUBLISHED[size, name]
    optim, task, data = config.optim, config.task, config.data
    assert (config.tower, config.model.name, config.model.drop_path) == ("vl", size, drop_path)
    assert (optim.lr, optim.warmup_steps, optim.schedule, optim.layer_decay) == (lr, 0.1, "linear", 1.0)
    assert (optim.weight_decay, optim.betas, optim.clip_grad) == (0.01, [0.9, 0.98], None)
    assert (config.steps, config.global_batch_size, config.text.max_length, config.text.positions) == (
        steps,
        3072,
        40,
        40,
    )
    assert (data.name, data.size, data.normalize) == (
        {"coco": "coco_captions"}.get(name, "flickr30k"),
        (384, 384),
        "half",
    )
    assert (task.min_scale, task.hflip, task.randaugment, task.matching_weight) == (0.5, 0.5, True, 0.0)
    text = Path(shipped("recipe")[recipe]).read_text().replace("\n# ", " ")
    assert f"TR@1 {texts}, IR@1 {pictures}" in text and f"irtr_{name}_{size}_image384" in text
    known = [start for start in KNOWN if f"init={start}" in text]
    assert known == [] if (size, name) == ("base_plus", "f30k") else len(known) == 1
    page = (Path(__file__).parents[2] / "docs" / "retrieval.md").read_text()
    (row,) = (line for line in page.splitlines() if line.startswith(f"| `{recipe}` |"))
    assert row.endswith(f"| {texts} | {pictures} |")
