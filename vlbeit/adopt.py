"""Weights that come without a config of ours: the config that fits them, from their tensors and what is typed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from vlbeit import chain, compose, registry
from vlbeit.config import RunConfig, TextConfig
from vlbeit.data.sources import open_records
from vlbeit.errors import UsageError
from vlbeit.models.checkpoint import Checkpoint, read_head, spec_of
from vlbeit.models.presets import PRESETS
from vlbeit.models.pyramid import taps
from vlbeit.models.spec import EncoderSpec
from vlbeit.models.transfer import check_fits, classifiers, transfer
from vlbeit.objectives.base import Objective
from vlbeit.task import Recipe
from vlbeit.types import Meta

VLMO_TOKENIZER, VLMO_VOCABULARY = "bert-base-uncased", 30522  # of every published VLMo model
_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".ckpt", ".zip")


def config_for(checkpoint: Checkpoint, words: Sequence[str]) -> RunConfig:
    """The config of a task whose weights are this foreign checkpoint; what is typed wins.

    Raises UsageError where the words do not say what it is for, or which answers or words its tensors stand for.
    """
    spec, path = checkpoint.encoder_spec, checkpoint.path
    if spec is None:
        raise UsageError(f"{path} is an image tokenizer: name it as stage.tokenizer= of stage=mim")
    typed = {word.partition("=")[0]: word.partition("=")[2] for word in words}
    if "task" not in typed:
        known = "|".join(registry.names("task"))
        raise UsageError(
            f"{path} carries no config: `vlbeit evaluate {path} task={known} data.root=DIR` measures it, "
            f"`vlbeit train task={known} init={path}` makes a run of it"
        )
    own = [f"stage={'vl' if spec.vocab_size else 'mim'}", f"data={_source(typed['task'])}", *words_for(spec)]
    own += [f"data.normalize={checkpoint.normalize}"]
    config = compose.compose([*(word for word in own if word.partition("=")[0] not in typed), *words]).config
    if "answer" in checkpoint.description.get("heads", {}) and getattr(config.task, "answers", "") in ("auto", "own"):
        raise UsageError(f"{path} has a classifier, and does not say of which answers: task.answers=FILE names them")
    return _with_tokenizer(config, spec, path)


def meta_for(recipe: Recipe, checkpoint: Checkpoint) -> Meta:
    """What a run of the recipe would have learned from its training records, had it had any: names and words alone.

    It may inherit the names of the classes that the checkpoint tells apart; where it does not name them, their places.
    """
    data, head = recipe.config.data, checkpoint.description.get("heads", {}).get("classification", {})
    places = [str(row) for row in range(head.get("num_classes", 0))]
    inherited = {"classes": checkpoint.meta.get("classes") or places} if places else {}
    return recipe.meta(open_records(data, recipe.kind, data.val_split), inherited)


def take_weights(objective: Objective, checkpoint: Checkpoint, meta: Meta, say: Callable[[str], None]) -> None:
    """Fill every parameter of the objective, classifiers by the names of their rows where both sides have some.

    Raises UsageError where the checkpoint lacks one, such as a head that wide, or a class.
    """
    source, target = checkpoint.encoder_spec, cast(Any, objective).encoder.spec
    assert source is not None, "config_for refuses a tokenizer"
    check_fits(source, target, str(checkpoint.path))
    if told := other_taps(checkpoint, objective):
        raise UsageError(f"{told}: set task.taps= to the former")
    labels = labels_of(checkpoint, objective, meta, say)
    ours: set[str] = set(meta.get("classes", ()))
    if lacking := sorted(ours.difference(labels.get("classes", ours))):
        raise UsageError(f"{checkpoint.path} knows {len(labels['classes'])} classes, {lacking[0]!r} is none of them")
    report = transfer(objective, checkpoint.state, source, target, (labels, meta))
    if report.missing:
        there, wanted_heads = checkpoint.description.get("heads", {}), objective.describe().get("heads", {})
        heads = [f"{name} ({there.get(name, 'none')} there, {spec} wanted)" for name, spec in wanted_heads.items()]
        wanted = "; ".join(heads) if any(name.startswith("heads.") for name in report.missing) else report.missing[0]
        raise UsageError(
            f"{checkpoint.path} has not all that is to be measured: {wanted}. Is it fine-tuned for this task, and has "
            f"the data its classes?"
        )


def other_taps(checkpoint: Checkpoint, objective: Objective) -> str:
    """What is to be said where a decoder was trained on the outputs of other blocks than ours takes; "" where not."""
    theirs, ours = (each.get("heads", {}).get("necks") for each in (checkpoint.description, objective.describe()))
    if theirs is None or ours is None or theirs.get("taps") == ours.get("taps"):
        return ""
    assert checkpoint.encoder_spec is not None
    blocks = [necks.get("taps") or taps(checkpoint.encoder_spec.depth) for necks in (theirs, ours)]
    return f"{checkpoint.path} decodes the outputs of blocks {blocks[0]}, counted from 0, and here it is {blocks[1]}"


def labels_of(checkpoint: Checkpoint, objective: Objective, meta: Meta, say: Callable[[str], None]) -> Meta:
    """What the rows of a checkpoint's classifiers stand for, as far as it says so in the words of `meta`.

    Class names of others that share none with ours (ImageNet's words beside its numbers) count as not said: rows go
    by their place then, and `say` is told. Capitals and spaces around a name make no difference there ("crt screen").
    """
    classes, ours = checkpoint.meta.get("classes"), meta.get("classes")
    if checkpoint.config or not classes or not ours:
        return checkpoint.meta
    spelled = {name.strip().casefold(): name for name in ours}
    classes = [spelled.get(name.strip().casefold(), name) for name in classes]
    if {*classes} & {*ours}:
        return {**checkpoint.meta, "classes": classes}
    unnamed = {key: value for key, value in checkpoint.meta.items() if key != "classes"}
    theirs, wanted = (description.get("heads", {}) for description in (checkpoint.description, objective.describe()))
    if not theirs.keys() & wanted.keys() & classifiers("classes"):
        return unnamed  # there are no rows to take
    say(f"note: no class has the same name there and here, so they go by their place: {classes[0]!r} is {ours[0]!r}")
    return unnamed


def with_its_tokenizer(config: RunConfig) -> RunConfig:
    """The config of a run that starts from published words and names no tokenizer: with the tokenizer of those.

    Raises UsageError where the words are of nobody knows which tokenizer.
    """
    if config.init in ("auto", "none") or not chain.reads_text(config):
        return config
    try:
        if not chain.has_checkpoint(config.init):
            return config
    except UsageError:  # what is wrong with init= is said when the runs before this one are looked up
        return config
    head = read_head(config.init)
    spec = spec_of(head["description"], config.init)
    return config if head["config"] or spec is None else _with_tokenizer(config, spec, config.init)


def _with_tokenizer(config: RunConfig, spec: EncoderSpec, origin: str | Path) -> RunConfig:
    if spec.vocab_size is None or config.text.tokenizer != TextConfig.tokenizer:
        return config
    if spec.vocab_size != VLMO_VOCABULARY:
        raise UsageError(
            f"{origin} has a vocabulary of {spec.vocab_size} words, and does not say which: text.tokenizer= names the "
            f"tokenizer (a run, a folder, a hub name)"
        )
    return replace(config, text=replace(config.text, tokenizer=VLMO_TOKENIZER))


def folder_for(name: str, config: RunConfig) -> Path:
    """Where the numbers of weights go that have no run folder."""
    path = Path(name)
    stem = path.with_suffix("") if path.suffix in _SUFFIXES else path
    return Path("runs") / f"{str(stem).strip('./').replace('/', '--')}-{config.task.name}"


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
