"""What can be known before any work is done: every mistake that is found here costs nothing and changes nothing."""

from __future__ import annotations

import os
from dataclasses import replace

from vlbeit import chain, compose, dist
from vlbeit.config import RunConfig
from vlbeit.data.sources import check_kind, open_source
from vlbeit.engine.folder import RunFolder
from vlbeit.engine.optim import check_settings
from vlbeit.errors import DataError, UsageError
from vlbeit.models.checkpoint import read_head, spec_of
from vlbeit.models.transfer import check_fits


def check(config: RunConfig) -> None:
    """Raise UserError for whatever stands in the way of a run, but for the runs before it (`check_init`).

    Reads small files only, and writes nothing.
    """
    if config.steps is None and config.epochs is None:
        raise UsageError("how long? give steps= or epochs=")
    _check_batches(config)
    check_settings(config.optim)
    recipe = chain.recipe_of(config)
    recipe.check()
    check_kind(config.data, recipe.kind)
    chain.check_built_in(config)
    if not chain.data_is_missing(config):
        open_source(config.data).check()
    folder = RunFolder(config.run)
    _check_place(folder)
    _check_owner(folder)
    if not config.overwrite:
        _check_run(folder, config)
    if config.resume is not None:
        _check_resume(folder, config)


def check_init(config: RunConfig) -> None:
    """The encoder that the weights come from has this run's sizes. The vocabulary is compared when it is known."""
    init = chain.init_of(config)
    if init is None or chain.state_origin(config) is not None:
        return
    source = spec_of(read_head(init)["description"], init)
    if source is None:
        raise UsageError(f"init={init}: a tokenizer has no encoder to start from; see stage.tokenizer=")
    model = config.model
    target = replace(
        source,
        embed_dim=model.embed_dim,
        depth=model.depth,
        num_heads=model.num_heads,
        patch_size=model.patch_size,
        image_size=None,
        mlp_ratio=model.mlp_ratio,
        layer_scale=model.layer_scale,
        positions="absolute" if model.positions == "absolute" else "per_layer",
        text_positions=config.text.positions if chain.reads_text(config) else source.text_positions,
        mask_token=False,
        image_tower=model.image_tower.partition("@")[0],
        shared_expert=model.experts == "shared",
    )
    check_fits(source, target, init)


def _check_batches(config: RunConfig) -> None:
    world, micro = dist.world_size(), config.micro_batch_size
    if config.global_batch_size % (world * (1 if micro == "auto" else micro)):
        own = f"global_batch_size={config.global_batch_size} over {world} process{'es' * (world > 1)}"
        by = f"micro_batch_size={micro}" if world == 1 else f"{world} times micro_batch_size={micro}"
        raise UsageError(f"{own} is not a multiple of {by}: {fitting(config.global_batch_size, world, micro)}")


def fitting(batch: int, world: int, micro: int | str) -> str:
    """What to try where `batch` is no multiple of `world` processes times `micro`: the largest that works."""
    share, rest = divmod(batch, world)
    if rest or micro == "auto":
        unit = world * (1 if micro == "auto" else int(micro))
        return f"try global_batch_size={max(1, batch // unit) * unit}"
    return f"try micro_batch_size={next(size for size in range(min(int(micro), share), 0, -1) if share % size == 0)}"


def _check_place(folder: RunFolder) -> None:
    """The run folder can be made or written: the nearest place on its path that exists is a folder of ours."""
    path = folder.path.absolute()
    nearest = next(place for place in (path, *path.parents) if os.path.lexists(place))
    if not nearest.is_dir():
        raise UsageError(f"run={folder.path}: {nearest} is a file, not a folder; choose another run=")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise DataError(f"run={folder.path}: {nearest} is not writable; change its permissions or choose another run=")


def _check_owner(folder: RunFolder) -> None:
    """A folder with files where ours would go, and no run: nothing in it is ours to replace or remove."""
    ours = (folder.states, folder.checkpoint, folder.metrics_file, folder.evaluation_file)
    in_the_way = [path for path in ours if path.exists()]
    started = folder.exists() or folder.lock_file.exists()
    if in_the_way and not started:
        raise UsageError(f"run={folder.path} is no run, but holds {in_the_way[0].name}: choose another run=")


def _check_run(folder: RunFolder, config: RunConfig) -> None:
    """A run that is there already was made with the same config, and its last state is there."""
    if folder.config_file.exists():
        folder.stored_config()  # whether it is YAML at all, and what to do if not
        try:
            stored = compose.from_yaml(folder.config_file)
        except DataError as error:
            raise DataError(f"{error}: restore the file, or overwrite=true") from error
        differing = compose.differing_keys(stored, config)
        if differing:
            kinds = [each for each in differing if each[0].endswith(".name")] or differing  # the rest follows from them
            more = f", and {len(kinds) - 8} more" if len(kinds) > 8 else ""
            keys = ", ".join(f"{key} {old} there, {new} here" for key, old, new in kinds[:8]) + more
            raise UsageError(
                f"{folder.path} belongs to another config ({keys}): give the same keys, another run=, "
                f"run=NEW resume={folder.path}, or overwrite=true"
            )
    folder.last_state()


def _check_resume(folder: RunFolder, config: RunConfig) -> None:
    """The run that the state comes from has one, and is of the same kind; whether it fits, its weights will tell."""
    origin = RunFolder(str(config.resume))
    if config.overwrite and origin.path.absolute() == folder.path.absolute():
        raise UsageError("overwrite=true would remove the run that resume= names: choose another run=")
    stored = origin.stored_config()
    if stored is None or origin.last_state() is None:
        raise DataError(f"resume={origin.path}: no saved state there; name a run folder that has last.json")
    stage, task = compose.group_names(stored, str(origin.config_file))
    optimizer = (stored.get("optim") or {}).get("name")
    if optimizer != config.optim.name:
        raise UsageError(
            f"resume={origin.path} was trained with optim.name={optimizer}, this run has {config.optim.name}: "
            f"keep it, or init={origin.path} takes the weights alone"
        )
    if (stage, task) != (config.tower, config.task and config.task.name):
        raise UsageError(
            f"resume={origin.path} is a run of stage={stage}{f' task={task}' if task else ''}, this is {config.title}: "
            f"init={origin.path} takes its weights alone"
        )
