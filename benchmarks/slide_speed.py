"""Pictures a second of sliding-window inference against whole pictures, UPerNet on one tower, in one process.

    OMP_NUM_THREADS=2 python benchmarks/slide_speed.py --model tiny --window 96 --pictures 8

The ways are timed in turns, so that a noisy machine disturbs all alike; the median of the rounds counts. Pictures have
the aspect 4:3, as most of ADE20K; weights are random, which costs no less. What a window costs is printed too: the
ratio of two ways should be that of their windows, and what goes beyond it is cutting, averaging and resizing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from vlbeit.config import DataConfig, RunConfig, Settings
from vlbeit.models.presets import PRESETS
from vlbeit.tasks.segmentation.objective import SegmentationObjective
from vlbeit.tasks.segmentation.task import Segmentation, SegmentationSettings

MANY = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]  # scales of the published multi-scale numbers
WAYS = {
    "whole": {"inference": "whole"},
    "slide, a window at a time": {"windows": 1},
    "slide": {},
    "slide and flip": {"flip": True},
    "slide, six scales and flip": {"scales": MANY, "flip": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="base", choices=sorted(PRESETS))
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    size = (options.window * 4 // 3, options.window)
    noise = np.random.default_rng(0).integers(0, 256, (options.pictures, size[1], size[0], 3), dtype=np.uint8)
    pictures = [Image.fromarray(array) for array in noise]
    calls, windows = {}, {}
    for name, task in WAYS.items():
        recipe, objective = built(options.model, options.window, options.classes, task)
        calls[name], windows[name] = forward(recipe, objective.to(options.device).eval(), pictures)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(options.rounds + 1):
        for name, call in calls.items():
            seconds = timed(call, options.device)
            if round_:  # the first warms up
                times[name].append(seconds)
    print(f"{options.model}, window {options.window}, {options.classes} classes, pictures of {size[0]}x{size[1]}")
    base = statistics.median(times["whole"]) / options.pictures
    for name, values in times.items():
        each = statistics.median(values) / options.pictures
        work = f"{windows[name]:4d} windows a picture, {1000 * each / windows[name]:7.1f} ms a window"
        print(f"{name:28s} {1 / each:8.2f} pictures/s  1/{each / base:.2f} of whole  {work}")


def built(model: str, window: int, classes: int, task: dict[str, object]) -> tuple[Segmentation, SegmentationObjective]:
    """The recipe with these settings, and its objective with random weights."""
    config = RunConfig(
        stage=Settings(name="mim"),
        task=SegmentationSettings(name="segmentation", **task),  # type: ignore[arg-type]
        model=replace(PRESETS[model]),
        data=DataConfig(image_size=window),
    )
    recipe = Segmentation(config)
    torch.manual_seed(0)
    return recipe, recipe.objective({"classes": [str(index) for index in range(classes)]})


def forward(
    recipe: Segmentation, objective: SegmentationObjective, pictures: list[Image.Image]
) -> tuple[Callable[[], object], int]:
    """A call that segments all pictures, decoded and resized beforehand, and how many windows one takes."""
    views = recipe.views()
    batch = {
        "views": [views(picture) for picture in pictures],
        "original_size": [(picture.height, picture.width) for picture in pictures],
    }
    sides = 1 + recipe.settings.flip
    count = sum(len(objective.windows.starts(tuple(view.pixels.shape[1:]))) for view in batch["views"][0])
    return lambda: objective.predict(batch), count * sides


def timed(call: Callable[[], object], device: str) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
