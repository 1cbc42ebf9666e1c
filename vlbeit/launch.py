"""From a config to a trained run: checks, weights, loaders, engine. Wiring only, the layers below do the work."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import yaml
from accelerate import Accelerator

from vlbeit import adopt, chain, compose, dist, files, preflight, suggest
from vlbeit.batch_picture import MOST, draw_batch
from vlbeit.config import RunConfig
from vlbeit.data.loader import EvalLoader, TrainLoader
from vlbeit.data.order import epoch_length
from vlbeit.data.sources import open_records
from vlbeit.engine.callbacks import Callbacks
from vlbeit.engine.checkpoint import read_weights
from vlbeit.engine.device import asked_processes, make_accelerator, probe_micro_batch
from vlbeit.engine.evaluate import run_evaluators
from vlbeit.engine.folder import RunFolder, write_errors
from vlbeit.engine.interrupt import Stopped, StopRequest
from vlbeit.engine.loop import Engine, FitPlan
from vlbeit.engine.optim import build_optimizer
from vlbeit.engine.processes import together
from vlbeit.engine.randomness import preserved_generators, seed_generators
from vlbeit.errors import DataError, Interrupted, UsageError
from vlbeit.models.checkpoint import Checkpoint, meta_errors, read_checkpoint, read_meta, save_checkpoint
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.towers import load_pretrained, tower_meta
from vlbeit.models.transfer import check_fits, transfer
from vlbeit.objectives.base import Objective
from vlbeit.task import Recipe
from vlbeit.types import Batch, DataSpec, Meta, Records

log = logging.getLogger(__name__)


def train(
    config: RunConfig, command: str = "", typed: Sequence[str] = (), profile: int = 0, *, alone: bool = True
) -> None:
    """Train a run from where it stands; what must come before it is trained first.

    Start-up order: this run's own state > `resume=` > `init=` > scratch. `command` is what to type to go on; `typed`
    are the words that made the config, some of which hold for the runs before it too (see `chain.missing_runs`).
    `profile`: so many steps of the run itself are traced. `alone`: no run of a sweep, which says what comes after it.

    Raises:
        UserError: anything that the user can mend, before any work where it can be known by then.
        Interrupted: asked to stop, by Ctrl-C or a scheduler's signal; the same command goes on.
    """
    command = command or f"run the same command again (run={config.run})"
    if asked_processes() > 1:
        command = f"by the same launcher, {command}"
    ours = logging.getLogger("vlbeit")  # ours alone: what libraries report is not for the user
    ours.setLevel(logging.INFO)
    ours.handlers = [logging.StreamHandler()]
    with StopRequest() as stop, _interrupted(command), stop.breaking_off():
        accelerator = _accelerator(config)  # makes the process group
        with together(RunFolder(config.run).say_intact), _interrupted(command):
            _train(config, accelerator, command, typed, profile)
            if alone:
                say(f"next: {suggest.after_training(config)}")


@contextmanager
def _interrupted(command: str) -> Iterator[None]:
    """A signal before the first step, or between the runs of a chain, is an interruption like one of training."""
    try:
        yield
    except Stopped as error:
        interrupted = Interrupted(f"stopped while nothing was being trained: nothing is lost; to go on: {command}")
        interrupted.agreed, interrupted.signal = False, error.number
        raise interrupted from None


def _train(config: RunConfig, accelerator: Accelerator, command: str, typed: Sequence[str], profile: int) -> None:
    """The runs before it that are missing, then the run."""
    config = adopt.with_its_tokenizer(config)
    preflight.check(config)
    before = chain.missing_runs(config, typed)
    for each in before:
        preflight.check(each)
    for each in [*before, config]:
        if chain.init_of(each) not in [run.run for run in before]:
            preflight.check_init(each)
    dist.on_main(lambda: chain.ensure_data(config))
    for earlier in before:
        words = f"stage={earlier.tower}" + (f" task={earlier.task.name}" if earlier.task else "")
        say(f"{earlier.run} is missing: training {words} first")
        _run(earlier, _accelerator(earlier), command)
    # the accelerator of an earlier run took the place of ours
    _run(config, _accelerator(config) if before else accelerator, command, profile)


def _run(config: RunConfig, accelerator: Accelerator, command: str, profile: int = 0) -> None:
    """Records, objective, engine; what can be checked without them is checked. The folder is written last."""
    recipe, folder, origin = chain.recipe_of(config), RunFolder(config.run), chain.state_origin(config)
    start = chain.init_of(config) if origin is None else None
    source = origin if origin is not None and origin.path != folder.path else None  # of a state that comes over
    checkpoint = None if start is None else read_checkpoint(start)
    records = open_records(config.data, recipe.kind, config.data.train_split)
    held_out = open_records(config.data, recipe.kind, config.data.val_split)
    meta = _meta(recipe, records, checkpoint, origin)
    with meta_errors((origin or folder).checkpoint):
        spec = recipe.data(records, meta, train=True)
    steps, steps_per_epoch = count_steps(config, epoch_length(spec.records))
    if origin is not None and origin.path == folder.path and origin.is_finished(steps):
        done = origin.last_step()
        asked = "" if done == steps else f", and {steps} are fewer"
        say(f"{folder.path} is finished: {done} steps{asked}. More steps= go on, overwrite=true starts anew")
        return
    _warn_of_warmup(config, steps)
    if origin is not None and (planned := origin.planned_steps()) not in (None, steps):
        say(f"note: {origin.path} was made for {planned} steps: the learning rate now follows the schedule of {steps}")
    objective = _with_weights(recipe, meta, checkpoint, origin, source)
    recipe.prepare(objective, {"train": records, "val": held_out}, accelerator)
    plan = FitPlan.from_config(
        config, steps=steps, steps_per_epoch=steps_per_epoch, metric=recipe.metric, resume_command=command
    )
    optimizer = build_optimizer(recipe.param_groups(objective, config.optim), config.optim)
    known = origin or (None if config.overwrite else folder)
    micro = _settle_micro_batch(config, known, spec, objective, accelerator)
    config = replace(config, steps=steps, micro_batch_size=micro)
    chain.recipe_of(config).check()  # what was found for auto may be too few samples for it
    plan = replace(plan, profile=profile, settings=container(config))
    stream = _stream(config, spec, config.global_batch_size, micro, config.data.workers)
    callbacks = Callbacks(
        evaluate=lambda model: evaluate_model(model, recipe, config, held_out, meta, accelerator),
        export=lambda state, path: save_checkpoint(path, state, objective.describe(), container(config), meta),
    )
    engine = Engine(objective, optimizer, stream, plan, accelerator, folder, callbacks)
    if source is not None:
        _prove(engine, source, config)
    recipe.evaluators(held_out, meta)  # what they refuse is better known now than after an epoch
    with ExitStack() as held:
        dist.on_main(lambda: _open_folder(held, folder, config, meta, source))
        _draw_first_batch(stream, folder, config, meta)
        each = f" in each of {dist.world_size()} processes" if dist.world_size() > 1 else ""
        batch = f"{config.global_batch_size} samples, {micro} at a time{each}"
        say(f"training {config.title} in {folder.path}: {steps} steps of {batch}")
        engine.fit()
        if unusable := stream.unusable():
            say(f"note: {unusable}")
    drawn = f", {folder.batch_file.name}" if folder.batch_file.exists() else ""
    say(f"wrote {folder.path}: checkpoint/, metrics.jsonl, evaluation.json{drawn}")


def _with_weights(
    recipe: Recipe, meta: Meta, checkpoint: Checkpoint | None, origin: RunFolder | None, source: RunFolder | None
) -> Objective:
    """The objective: of a run that begins from `init`'s checkpoint, of one that goes on from the state of `origin`."""
    config = recipe.config
    seed_generators(config.seed, "init")
    with meta_errors((origin or RunFolder(config.run)).checkpoint):
        objective = recipe.objective(meta)
    if origin is None:
        _start(recipe, objective, checkpoint, meta)
    else:
        say(f"going on from step {origin.last_step()} of {origin.path}")
        _take_up(objective, origin, source, config)
    return objective


def _accelerator(config: RunConfig) -> Accelerator:
    engine = config.engine
    return make_accelerator(config.device, config.precision, engine.trackers, config.run, engine.timeout)


def say(line: str) -> None:
    """Print on the main process."""
    if dist.is_main():
        print(line, flush=True)


def count_steps(config: RunConfig, samples: int) -> tuple[int, float]:
    """Optimizer steps of the run and of one pass over the samples."""
    per_epoch = samples / config.global_batch_size
    if config.steps is not None:
        return config.steps, per_epoch
    assert config.epochs is not None, "preflight refuses it"
    return max(1, int(config.epochs * per_epoch)), per_epoch


def _warn_of_warmup(config: RunConfig, steps: int) -> None:
    if steps <= config.optim.warmup_steps:
        say(
            f"note: all {steps} steps are warmup (optim.warmup_steps={config.optim.warmup_steps:g}): optim.lr is never "
            "reached, and little is learned; stop it and add optim.warmup_steps=0.1 overwrite=true: a tenth of them"
        )


def _settle_micro_batch(
    config: RunConfig, known: RunFolder | None, spec: DataSpec, objective: Objective, accelerator: Accelerator
) -> int:
    """`micro_batch_size`; for auto the one that keeps processes x size as in the `known` run, else the probed.

    Contrast and matching draw their candidates from a micro-batch of every process: other ones are told. Where batches
    are of one grid, the order of the samples hangs on the size: UsageError where it is not that of `known`'s state.
    """
    world = dist.world_size()

    def make_batch(size: int) -> Batch:
        return _stream(config, spec, size * world, size, workers=0).heaviest()

    processes, size = (0, 0) if known is None else known.stored_split()
    share, kept = max(1, config.global_batch_size // world), processes * size // world
    bound = known is not None and known.last_step() is not None and spec.layout.grids is not None and size > 0
    if config.micro_batch_size != "auto":
        micro = int(config.micro_batch_size)
    elif bound:
        micro = size
    elif kept * world != processes * size or not kept or share % kept:
        micro = probe_micro_batch(objective, make_batch, share, accelerator)
    elif kept > size and accelerator.device.type == "cuda":  # may be too much for fewer processes
        micro = probe_micro_batch(objective, make_batch, kept, accelerator)
    else:
        micro = kept
    if known is not None and bound and (micro != size or share % size):
        raise UsageError(
            f"{known.path} was trained with micro_batch_size={size}, on which the order of its samples hangs, since a "
            f"batch is of one patch grid: at another size some would come twice and others never. Give that one, and "
            f"processes whose number times {size} divides global_batch_size={config.global_batch_size}"
        )
    if known is not None and processes * size not in (0, world * micro):
        say(
            f"note: {known.path} was trained with {processes} x {size} samples at a time (processes x "
            f"micro_batch_size), now it is {world} x {micro}: what compares samples sees others, as contrast and "
            f"matching without stage.cache_gradients, mixup and batch norm; all else is the same"
        )
    return micro


def _stream(config: RunConfig, spec: DataSpec, batch_size: int, micro: int, workers: int) -> TrainLoader:
    return TrainLoader(
        spec,
        seed=config.seed,
        global_batch_size=batch_size,
        micro_batch_size=micro,
        workers=workers,
        pin_memory=torch.cuda.is_available() and config.device in ("auto", "cuda"),
        max_bad_fraction=config.data.max_bad_fraction,
    )


def evaluate_model(
    model: Any, recipe: Recipe, config: RunConfig, records: Records, meta: Meta, accelerator: Accelerator
) -> dict[str, float]:
    """The recipe's evaluators over the records."""
    spec = recipe.data(records, meta, train=False)
    evaluators = recipe.evaluators(records, meta)
    return run_evaluators(model, eval_loader(config, spec), evaluators, accelerator, len(spec.records))


def eval_loader(config: RunConfig, spec: DataSpec) -> EvalLoader:
    """Batches of at most 64 samples; those of a task of at most twice `micro_batch_size` where that is settled.

    Without gradients a sample needs less than half the memory that it needs in training: what trained can be evaluated.
    A stage keeps its batches, since contrast and matching are measured within one.
    """
    most = min(64, config.global_batch_size)
    if config.task is not None and config.micro_batch_size != "auto":
        most = min(most, 2 * config.micro_batch_size)
    return EvalLoader(
        spec,
        batch_size=most,
        workers=config.data.workers,
        max_bad_fraction=config.data.max_bad_fraction,
    )


def container(config: RunConfig) -> dict[str, Any]:
    """The config as plain values."""
    return yaml.safe_load(compose.to_yaml(config))


def _meta(recipe: Recipe, records: Records, checkpoint: Checkpoint | None, origin: RunFolder | None) -> Meta:
    """The meta of the run that is gone on with, else a new one, made on the main process."""
    if origin is not None:
        return read_meta(origin.checkpoint)
    inherited = {} if checkpoint is None else checkpoint.meta
    return dist.on_main(lambda: {**recipe.meta(records, inherited), **tower_meta(recipe.config, inherited)})


def _start(recipe: Recipe, objective: Objective, checkpoint: Checkpoint | None, meta: Meta) -> None:
    """Weights of a run that begins; `meta` is its own."""
    recipe.start(objective)
    encoder: Any = getattr(objective, "encoder", None)
    source = None if checkpoint is None else checkpoint.encoder_spec
    if isinstance(encoder, MoMEEncoder):
        for tower in load_pretrained(encoder, recipe.config.model, source):
            say(f"{tower}: pre-trained weights loaded")
    if checkpoint is None:
        say("starting from scratch")
        return
    assert source is not None, "preflight refuses a tokenizer"
    check_fits(source, encoder.spec, str(checkpoint.path))
    if told := adopt.other_taps(checkpoint, objective):
        say(f"note: {told}: the decoder begins with weights for the others")
    labels = adopt.labels_of(checkpoint, objective, meta, say) | recipe.labels_of_init()
    state = checkpoint.state
    if "answer" in checkpoint.description.get("heads", {}) and "answers" not in labels:
        say("its classifier of answers is left out: which they are, in its order, only task.init_answers=FILE can tell")
        state = {name: value for name, value in state.items() if not name.startswith("heads.answer.")}
    report = transfer(objective, state, source, encoder.spec, (labels, meta))
    say(f"starting from {checkpoint.path}: {report.line()}")
    there, here = checkpoint.normalize, recipe.config.data.normalize
    if there != here and source.image_size is not None:
        say(f"note: pictures were normalised as data.normalize={there} for these weights, and are as {here} here")


def _take_up(objective: Objective, origin: RunFolder, source: RunFolder | None, config: RunConfig) -> None:
    """The weights of the saved state, which the engine takes up whole later: `Recipe.prepare` works with them."""
    state = origin.last_state()
    assert state is not None, "preflight has found it"
    with nullcontext() if source is None else _fitting(source, config):
        read_weights(state, objective)


def _prove(engine: Engine, source: RunFolder, config: RunConfig) -> None:
    """Load the state that is to come over: before anything is written, it must be known to fit."""
    state = source.last_state()
    assert state is not None, "preflight has found it"
    with _fitting(source, config):
        engine.load_state(state)


@contextmanager
def _fitting(source: RunFolder, config: RunConfig) -> Iterator[None]:
    """Name the keys that differ where the state of another run does not fit this one."""
    state = source.last_state()
    try:
        yield
    except DataError as error:
        differing = compose.differing_keys(compose.from_yaml(source.config_file), config)
        keys = ", ".join(f"{key} {old} there, {new} here" for key, old, new in differing[:8])
        raise DataError(
            f"resume={source.path}: {state} does not fit this run ({keys or error}); give the keys as they are there"
        ) from error


def _open_folder(held: ExitStack, folder: RunFolder, config: RunConfig, meta: Meta, source: RunFolder | None) -> None:
    """The first thing that is written: the lock, which is `held`; an old run goes if it must, a state comes over, then
    config and meta.

    In this order, so that a run killed in between begins in the same way again.
    """
    held.enter_context(folder.locked())
    if config.overwrite:
        folder.clear()
    if source is not None:
        folder.fill_from(source)
    folder.write_config(container(config))
    for name, value in meta.items():
        with write_errors(folder.checkpoint):
            files.write_json(folder.checkpoint / f"{name}.json", value)


def _draw_first_batch(stream: TrainLoader, folder: RunFolder, config: RunConfig, meta: Meta) -> None:
    """batch0.png, where it is not there yet: what step 0 sees, drawn by the main process before it.

    Nobody trains for the picture: whatever goes wrong is a line of warning.
    """
    if not dist.is_main() or folder.batch_file.exists():
        return
    try:
        with preserved_generators():
            drawn = draw_batch(stream.first(MOST), config, meta)
            if drawn is not None:
                files.write_by(folder.batch_file, lambda path: drawn.save(path, format="PNG"))
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        log.warning("%s is not drawn (%s); the run goes on without it", folder.batch_file, reason)
