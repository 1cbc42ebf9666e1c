"""Weights that come without a config of ours: the config that fits them, from their tensors and what is typed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vlbeit import chain, compose, registry
from vlbeit.config import RunConfig, TextConfig
from vlbeit.errors import UsageError
from vlbeit.models.checkpoint import Checkpoint
from vlbeit.models.presets import PRESETS
from vlbeit.models.spec import EncoderSpec

VLMO_TOKENIZER = "bert-base-uncased"  # of every published VLMo model


def config_for(checkpoint: Checkpoint, words: Sequence[str]) -> RunConfig:
    """The config of a task whose weights are this foreign checkpoint; what is typed wins.

    Raises UsageError where the words do not say what it is for, or the order of its answers is not known.
    """
    spec = checkpoint.encoder_spec
    if spec is None:
        raise UsageError(f"{checkpoint.path} is an image tokenizer: name it as stage.tokenizer= of stage=mim")
    typed = {word.partition("=")[0] for word in words}
    if "task" not in typed:
        known = ", ".join(registry.names("task"))
        raise UsageError(f"{checkpoint.path} carries no config: say what it is for, task= ({known}) and data.root=DIR")
    task = next(word.partition("=")[2] for word in words if word.startswith("task="))
    source = [] if "data" in typed else [f"data={_source(task)}"]
    stage = [] if "stage" in typed else [f"stage={'vl' if spec.vocab_size else 'mim'}"]
    own = [word for word in words_for(spec) if word.partition("=")[0] not in typed]
    config = with_tokenizer(compose.compose([*stage, *source, *own, *words]).config, checkpoint)
    check_answers(config, checkpoint)
    return config


def with_tokenizer(config: RunConfig, checkpoint: Checkpoint | None) -> RunConfig:
    """VLMo's own tokenizer where a run starts from its words and names none."""
    foreign = checkpoint is not None and not checkpoint.config and checkpoint.encoder_spec is not None
    if not foreign or checkpoint.encoder_spec.vocab_size is None or config.text.tokenizer != TextConfig.tokenizer:  # type: ignore[union-attr]
        return config
    return replace(config, text=replace(config.text, tokenizer=VLMO_TOKENIZER))


def check_answers(config: RunConfig, checkpoint: Checkpoint | None) -> None:
    """UsageError where an answer head would be used whose answers nobody named: their order is not in its weights."""
    if checkpoint is None or checkpoint.config or "answer" not in checkpoint.description.get("heads", {}):
        return
    if getattr(config.task, "answers", "own") in ("auto", "own"):
        count = checkpoint.description["heads"]["answer"].get("num_answers", "?")
        raise UsageError(
            f"{checkpoint.path} has a classifier of {count} answers, and its file does not say which: "
            f"task.answers=FILE names them in its order"
        )


def _source(task: str) -> str:
    """The first data source, but for the built-in one, that gives the records of a task."""
    kind = registry.get("task", task).kind
    others = [name for name in registry.names("data") if name != chain.BUILT_IN]
    return next((name for name in others if kind in registry.get("data", name).kinds), chain.BUILT_IN)


def words_for(spec: EncoderSpec) -> list[str]:
    """The words of a run whose encoder takes these weights: the nearest preset and what differs from it."""
    preset = next(
        (p for p in PRESETS.values() if (p.embed_dim, p.depth) == (spec.embed_dim, spec.depth)), PRESETS["base"]
    )
    sizes: dict[str, Any] = {
        name: getattr(spec, name) for name in ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
    }
    same_scale = bool(spec.layer_scale) == bool(preset.layer_scale)  # whether there is one is what counts
    sizes["layer_scale"] = preset.layer_scale if same_scale else spec.layer_scale
    sizes["positions"] = "absolute" if spec.positions == "absolute" else "relative"
    if spec.fused_layers:
        sizes["fused_layers"] = spec.fused_layers
    words = [f"model={preset.name}"]
    words += [f"model.{name}={value}" for name, value in sizes.items() if value != getattr(preset, name)]
    if spec.image_size is not None:
        height, width = spec.image_size
        words.append(f"data.image_size={height if height == width else f'[{height},{width}]'}")
    if spec.vocab_size is not None:
        words.append(f"text.positions={spec.text_positions}")
    return words
