"""From a config to a trained run: checks, weights, loaders, engine. Wiring only, the layers below do the work."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator

from vlbeit import chain, compose, dist, files
from vlbeit.config import RunConfig
from vlbeit.data.loader import EvalLoader, TrainLoader
from vlbeit.data.sources import open_records
from vlbeit.engine.callbacks import Callbacks
from vlbeit.engine.device import make_accelerator, probe_micro_batch
from vlbeit.engine.evaluate import run_evaluators
from vlbeit.engine.folder import RunFolder
from vlbeit.engine.loop import Engine, FitPlan
from vlbeit.engine.optim import build_optimizer
from vlbeit.engine.randomness import seed_generators
from vlbeit.errors import UsageError
from vlbeit.models.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from vlbeit.models.transfer import check_fits, transfer
from vlbeit.objectives.base import Objective
from vlbeit.task import Recipe
from vlbeit.types import DataSpec, Meta, Records

NEXT = {
    "tokenizer": "vlbeit train stage=mim",
    "mim": "vlbeit train stage=mlm",
    "mlm": "vlbeit train stage=vl",
    "vl": "vlbeit train stage=vl task=vqa",
}


def train(config: RunConfig) -> int:
    """Train a run from where it stands; what must come before it is trained first. Returns the exit status.

    Start-up order: this run's own state > `resume=` > `init=` > scratch.

    Raises:
        UserError: anything that the user can mend, before any work where it can be known by then.
    """
    logging.basicConfig(format="%(message)s", level=logging.INFO, force=True)
    accelerator = make_accelerator(config.device, config.precision, config.engine.trackers, config.run)
    folder = RunFolder(config.run)
    _check_folder(folder, config)
    before = chain.missing_runs(config)
    _on_main_first(lambda: chain.ensure_data(config))
    for earlier in before:
        say(f"{earlier.run} is missing: training stage={earlier.tower} first")
        train(earlier)
    if before:  # the accelerator of an earlier run took the place of ours
        accelerator = make_accelerator(config.device, config.precision, config.engine.trackers, config.run)
    return _run(config, chain.recipe_of(config), folder, accelerator)


def _run(config: RunConfig, recipe: Recipe, folder: RunFolder, accelerator: Accelerator) -> int:
    """Records, objective, engine; `train` has checked what can be checked without them."""
    records = open_records(config.data, recipe.kind, config.data.train_split)
    held_out = open_records(config.data, recipe.kind, config.data.val_split)
    start = None if folder.last_step() is not None else chain.init_of(config)
    checkpoint = None if start is None else read_checkpoint(start)
    meta = _meta(recipe, records, checkpoint, folder)
    spec = recipe.data(records, meta, train=True)
    steps, steps_per_epoch = count_steps(config, len(spec.records))
    if folder.is_finished(steps):
        say(
            f"{folder.path} is finished: {folder.last_step()} steps. "
            "Larger steps= or epochs= goes on, overwrite=true starts anew"
        )
        return 0
    seed_generators(config.seed, "init")
    objective = recipe.objective(meta)
    if folder.last_step() is None:
        _start(recipe, objective, checkpoint)
    else:
        say(f"going on from step {folder.last_step()} of {folder.path}")
    _write_start(folder, replace(config, steps=steps), meta)
    plan = FitPlan.from_config(
        config,
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        metric=recipe.metric,
        resume_command=f"run the same command again (run={config.run})",
    )
    optimizer = build_optimizer(recipe.param_groups(objective, config.optim), config.optim)
    stream = train_loader(config, spec, objective, accelerator)
    callbacks = Callbacks(
        evaluate=lambda model: evaluate_model(model, recipe, config, held_out, meta, accelerator),
        export=lambda state, path: save_checkpoint(path, state, objective.describe(), container(config), meta),
    )
    say(f"training {config.title} in {folder.path}: {steps} steps of {config.global_batch_size} samples")
    Engine(objective, optimizer, stream, plan, accelerator, folder, callbacks).fit()
    say(f"wrote {folder.path}: checkpoint/, metrics.jsonl, evaluation.json")
    say(f"next: {_next_command(config)}")
    return 0


def say(line: str) -> None:
    """Print on the main process."""
    if dist.is_main():
        print(line, flush=True)


def count_steps(config: RunConfig, samples: int) -> tuple[int, float]:
    """Optimizer steps of the run and of one pass over the samples."""
    per_epoch = samples / config.global_batch_size
    if config.steps is not None:
        return config.steps, per_epoch
    if config.epochs is None:
        raise UsageError("how long? give steps= or epochs=")
    return max(1, int(config.epochs * per_epoch)), per_epoch


def train_loader(config: RunConfig, spec: DataSpec, objective: Objective, accelerator: Accelerator) -> TrainLoader:
    """The training stream; `micro_batch_size=auto` is settled here."""
    micro = config.micro_batch_size
    if micro == "auto":
        per_process = max(1, config.global_batch_size // dist.world_size())

        def make_batch(size: int) -> dict[str, Any]:
            return spec.collate([spec.transform(spec.records[i % len(spec.records)]) for i in range(size)])

        micro = probe_micro_batch(objective, make_batch, per_process, accelerator)
    return TrainLoader(
        spec,
        seed=config.seed,
        global_batch_size=config.global_batch_size,
        micro_batch_size=micro,
        workers=config.data.workers,
        max_bad_fraction=config.data.max_bad_fraction,
    )


def evaluate_model(
    model: Any, recipe: Recipe, config: RunConfig, records: Records, meta: Meta, accelerator: Accelerator
) -> dict[str, float]:
    """The recipe's evaluators over the records."""
    loader = eval_loader(config, recipe.data(records, meta, train=False))
    return run_evaluators(model, loader, recipe.evaluators(records, meta), accelerator)


def eval_loader(config: RunConfig, spec: DataSpec) -> EvalLoader:
    """Batches of at most 64 samples; their size changes no number but those of contrast and matching."""
    return EvalLoader(
        spec,
        batch_size=min(64, config.global_batch_size),
        workers=config.data.workers,
        max_bad_fraction=config.data.max_bad_fraction,
    )


def container(config: RunConfig) -> dict[str, Any]:
    """The config as plain values."""
    return yaml.safe_load(compose.to_yaml(config))


def _check_folder(folder: RunFolder, config: RunConfig) -> None:
    """Refuse a folder of another config; empty it with `overwrite`, fill a new one with `resume`."""
    if config.overwrite and dist.is_main():
        folder.clear()
    dist.barrier()
    if folder.config_file.exists():
        differing = compose.differing_keys(compose.from_yaml(folder.config_file), config)
        if differing:
            keys = ", ".join(f"{key} {old} there, {new} here" for key, old, new in differing)
            raise UsageError(
                f"{folder.path} belongs to another config ({keys}): give the same keys, another run=, "
                f"run=NEW resume={folder.path}, or overwrite=true"
            )
    elif config.resume is not None:
        _on_main_first(lambda: folder.fill_from(RunFolder(str(config.resume))))


def _meta(recipe: Recipe, records: Records, checkpoint: Checkpoint | None, folder: RunFolder) -> Meta:
    """The meta that this run was started with, else a new one, made on the main process."""
    stored = {path.stem: path for path in sorted(folder.checkpoint.glob("*.json")) if path.stem != "config"}
    if folder.last_step() is not None and stored:
        return {name: yaml.safe_load(path.read_text(encoding="utf-8")) for name, path in stored.items()}
    inherited = {} if checkpoint is None else checkpoint.meta
    return dist.broadcast_object(recipe.meta(records, inherited) if dist.is_main() else {})


def _start(recipe: Recipe, objective: Objective, checkpoint: Checkpoint | None) -> None:
    """Weights of a run that begins."""
    recipe.start(objective)
    if checkpoint is None:
        say("starting from scratch")
        return
    source = checkpoint.encoder_spec
    if source is None:
        raise UsageError(f"init={checkpoint.path}: a tokenizer has no encoder to start from; see stage.tokenizer=")
    target = objective.encoder.spec  # type: ignore[union-attr]
    check_fits(source, target, str(checkpoint.path))
    report = transfer(objective, checkpoint.state, source, target)
    say(f"starting from {checkpoint.path}: {report.line()}")


def _write_start(folder: RunFolder, config: RunConfig, meta: Meta) -> None:
    """What a run must remember before its first checkpoint: config and meta."""
    if dist.is_main():
        folder.write_config(container(config))
        for name, value in meta.items():
            files.write_json(folder.checkpoint / f"{name}.json", value)
    dist.barrier()


def _on_main_first(work: Any) -> None:
    """Run on the main process while the others wait."""
    if dist.is_main():
        work()
    dist.barrier()


def _next_command(config: RunConfig) -> str:
    if config.task is not None or config.tower not in NEXT:
        return f"vlbeit evaluate {config.run}"
    default = f"runs/{config.title}"
    words = [] if config.run == default else [f"init={config.run}"]
    if config.tower == "tokenizer" and words:
        words = [f"stage.tokenizer={config.run}"]
    if config.data.name != chain.BUILT_IN:
        words += [f"model={config.model.name}", f"data={config.data.name}", f"data.root={config.data.root}"]
    elif Path(config.data.root) != Path("data/scenes"):
        words.append(f"data.root={config.data.root}")
    return " ".join([NEXT[config.tower], *words])
