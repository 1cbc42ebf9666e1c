"""The next command to try: what every command ends with."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlbeit import chain, going_on, registry
from vlbeit.config import DataConfig, ModelConfig, RunConfig

_FOLLOWING = {
    "tokenizer": "vlbeit train stage=mim",
    "mim": "vlbeit train stage=mlm",
    "mlm": "vlbeit train stage=vl",
    "vl": "vlbeit train stage=vl task=vqa",
}
_OF_DATA = ("train_split", "val_split", "columns", "images", "max_bad_fraction")  # as long as the data is the same
_ASKED = {  # kind of record -> what a task on it is asked
    "vqa": 'picture.jpg "how many are there?"',
    "pairs": '"a red circle" --images DIR',
    "nlvr2": 'left.jpg right.jpg "both pictures show the same thing"',
}


def after_training(config: RunConfig) -> str:
    """The run that starts from this one; for a task, or the stage of a plug-in, the run's evaluation."""
    if config.task is not None or config.tower not in _FOLLOWING:
        return f"vlbeit evaluate {shlex.quote(config.run)}"
    following = _FOLLOWING[config.tower]
    if config.tower == "vl" and "vqa" not in registry.get("data", config.data.name).kinds:
        following = "vlbeit train stage=vl task=retrieval"  # on the pairs that are there
    default = f"runs/{config.title}"
    words = [] if config.run == default else [f"init={config.run}"]
    if config.tower == "tokenizer" and words:
        words = [f"stage.tokenizer={config.run}"]
    if config.data.name != chain.BUILT_IN:
        group, _, name = following.split()[-1].partition("=")
        data = chain.data_words(config, registry.get(group, name).kind)
        words += [f"model={config.model.name}", data]
        words += [] if data.endswith("data.root=DIR") else _unusual("data", config.data, DataConfig(), _OF_DATA)
        if config.data.image_size != DataConfig.image_size:
            words.append(f"data.image_size={str(config.data.image_size).replace(' ', '')}")
        words.append(f"run={config.run}-{name}")
    elif Path(config.data.root) != Path("data/scenes"):
        words.append(f"data.root={config.data.root}")
    words += _unusual("model", config.model, ModelConfig(), ("image_tower", "text_tower", "train_towers"))
    return " ".join([following, *words])


def _unusual(section: str, values: Any, usual: Any, keys: Sequence[str]) -> list[str]:
    """Those keys of a section that are not as usual, as words."""
    return [
        shlex.quote(f"{section}.{key}={going_on.typed(getattr(values, key))}")
        for key in keys
        if getattr(values, key) != getattr(usual, key)
    ]


def after_evaluation(config: RunConfig) -> str:
    """An answer for one picture; for a stage what would follow its training."""
    if config.task is None:
        return after_training(config)
    asked = _ASKED.get(chain.recipe_of(config).kind, "picture.jpg")
    return f"vlbeit predict {shlex.quote(config.run)} {asked}"


def after_adoption(weights: str, words: Sequence[str], sizes: Sequence[str]) -> str:
    """Fine-tuning from weights that are no run: what was typed to measure them, and `sizes`, the model's words."""
    typed = {word.partition("=")[0] for word in words}
    own = [word for word in sizes if word.partition("=")[0] not in typed]
    own += [f"task.init_answers={word.partition('=')[2]}" for word in words if word.startswith("task.answers=")]
    return shlex.join(["vlbeit", "train", f"init={weights}", *own, *words])
