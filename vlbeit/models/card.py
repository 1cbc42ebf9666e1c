"""The model card of a checkpoint: what it is, its data, its recipe, its numbers. What is not recorded is left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from vlbeit.models.spec import EncoderSpec

_TASKS = {
    "classification": "image-classification",
    "vqa": "visual-question-answering",
    "mim": "image-feature-extraction",
}
_RUN = ("epochs", "steps", "global_batch_size", "precision", "seed")
_DATA = ("train_split", "val_split", "image_size", "normalize", "limit")
_USE = """```python
import vlbeit

model = vlbeit.load("{name}")
tokens = model.encode({arguments})
```"""


def model_card(
    description: Mapping[str, Any], config: Mapping[str, Any], evaluation: Mapping[str, Any], name: str
) -> ModelCard:
    """The card of a checkpoint.

    Args:
        description: of its config.json.
        config: of the run that made it; empty for weights from elsewhere.
        evaluation: contents of the run's evaluation.json; empty where there is none.
        name: of the folder or repository.
    """
    recipe = _recipe_name(config)
    sections = [f"# {name}", _what(description, recipe), "## Use", _usage(description, name)]
    data = config.get("data")
    if data:
        lines = [f"Data source `{data['name']}` of vlbeit.", _table(("setting", "value"), _chosen(data, _DATA))]
        sections += ["## Data", *lines]
    if config:
        sections += ["## Recipe", _table(("key", "value"), _settings(config))]
    numbers = metrics_of(evaluation)
    if numbers:
        split = f"On the split `{evaluation['split']}`" if "split" in evaluation else "On the held-out data"
        sections += ["## Evaluation", f"{split}:" if not data else f"{split} of `{data['name']}`:"]
        sections.append(_table(("metric", "value"), ((metric, f"{value:.6g}") for metric, value in numbers.items())))
    card = ModelCardData(
        library_name="vlbeit",
        pipeline_tag=_TASKS.get(recipe),
        tags=_tags(description),
        model_name=name if numbers and data else None,
        eval_results=_results(numbers, evaluation, data, recipe) if numbers and data else None,
    )
    return ModelCard(f"---\n{card.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


def metrics_of(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an evaluation.json."""
    numbers = {name: value for name, value in evaluation.items() if name not in ("step", "time")}
    return {n: v for n, v in numbers.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def _recipe_name(config: Mapping[str, Any]) -> str:
    """Name of the task, else of the stage, else nothing."""
    return next((config[group]["name"] for group in ("task", "stage") if config.get(group)), "")


def _what(description: Mapping[str, Any], recipe: str) -> str:
    made = f"A `{recipe}` run of vlbeit" if recipe else "Weights in the format of vlbeit"
    if "encoder" not in description:
        return f"{made}: an image tokenizer."
    spec = EncoderSpec.from_dict(description["encoder"])
    rows: list[tuple[str, Any]] = [
        ("experts", ", ".join((*spec.experts, *(["fused"] if spec.fused_layers else [])))),
        ("width, blocks, heads", f"{spec.embed_dim}, {spec.depth}, {spec.num_heads}"),
        ("positions", spec.positions.replace("_", " ")),
    ]
    if spec.image_size is not None:
        rows.append(("pictures", f"{spec.image_size[0]} x {spec.image_size[1]}, patches of {spec.patch_size}"))
    if spec.vocab_size is not None:
        rows.append(("vocabulary", spec.vocab_size))
    if description.get("heads"):
        rows.append(("heads", ", ".join(description["heads"])))
    return f"{made}: an encoder as in {'VLMo' if spec.vocab_size else 'BEiT'}.\n\n{_table(('part', 'value'), rows)}"


def _usage(description: Mapping[str, Any], name: str) -> str:
    if "encoder" not in description:
        return f'```python\nimport vlbeit\n\nmodel = vlbeit.load("{name}")\n```'
    spec = EncoderSpec.from_dict(description["encoder"])
    given = [("image=image", spec.image_size), ("text_ids=ids, text_keep=keep", spec.vocab_size)]
    return _USE.format(name=name, arguments=", ".join(words for words, there in given if there is not None))


def _settings(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What was trained how: keys as on the command line. Paths and machine settings stay at home."""
    rows = [(group, config[group]["name"]) for group in ("stage", "task", "model") if config.get(group)]
    rows += _chosen(config, _RUN)
    for group in ("optim", "task" if config.get("task") else "stage"):
        values = config.get(group) or {}
        rows += [
            (f"{group}.{key}", value) for key, value in _chosen(values, values) if key not in ("name", "tokenizer")
        ]
    return rows


def _chosen(values: Mapping[str, Any], keys: Iterable[str]) -> list[tuple[str, Any]]:
    return [(key, values[key]) for key in keys if values.get(key) not in (None, "")]


def _tags(description: Mapping[str, Any]) -> list[str]:
    if "encoder" not in description:
        return ["vlbeit"]
    return ["vlbeit", "vlmo" if EncoderSpec.from_dict(description["encoder"]).vocab_size else "beit"]


def _results(
    numbers: Mapping[str, float], evaluation: Mapping[str, Any], data: Mapping[str, Any], recipe: str
) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=_TASKS.get(recipe, recipe),
            dataset_type=data["name"],
            dataset_name=data["name"],
            dataset_split=evaluation.get("split"),
            metric_type=metric,
            metric_value=value,
        )
        for metric, value in numbers.items()
    ]


def _table(columns: tuple[str, str], rows: Iterable[tuple[str, Any]]) -> str:
    lines = [f"| {columns[0]} | {columns[1]} |", "|---|---|"]
    return "\n".join([*lines, *(f"| {key} | {value} |" for key, value in rows)])
