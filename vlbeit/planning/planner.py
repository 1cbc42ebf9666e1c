"""The plan of a run: its length, operations and memory, from its config and a batch that stands in for its data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from vlbeit import chain, compose, registry
from vlbeit.config import RunConfig
from vlbeit.data.order import epoch_length
from vlbeit.data.packing import SAMPLED, count_rows
from vlbeit.data.sources import open_records
from vlbeit.data.text import choose_tokenizer, tokenizer_of_run
from vlbeit.engine.speed import peak_of
from vlbeit.errors import UsageError, UserError
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.objectives.base import Objective
from vlbeit.planning import memory, stand_in, trace
from vlbeit.preflight import fitting
from vlbeit.task import Recipe
from vlbeit.types import Batch, Meta, Records

GIB = 2**30
_PROBED = (2, 4)  # micro-batches whose costs tell those of all others: contrast needs two
USUAL = "A100-SXM4"  # the device that is meant where --peak is not given
_USUAL_FP64 = 19.5  # TFLOP/s, of its matrix units, which cuBLAS takes by itself (data sheet)
_LABELS = {"vqa": 3129, "segmentation": 150, "detection": 80}


class Machine(NamedTuple):
    """What the run is planned for."""

    devices: int = 1
    gib: float = 80.0  # memory of a device
    shard: str = "ddp"  # ddp | fsdp
    peak: float | None = None  # TFLOP/s of a device in the run's precision; None: those of `USUAL`
    utilisation: float = 0.4  # share of the peak that is reached

    def check(self) -> None:
        """Raise UsageError for what no machine is."""
        sizes = [self.gib] if self.peak is None else [self.gib, self.peak]
        if self.devices < 1 or not (all(0 < size < math.inf for size in sizes) and 0 < self.utilisation <= 1):
            raise UsageError("--devices, --memory and --peak must be positive, --utilisation must lie in (0, 1]")
        if self.shard not in ("ddp", "fsdp"):
            raise UsageError(f"--shard {self.shard} is neither ddp nor fsdp")

    def peak_at(self, precision: str) -> float:
        """TFLOP/s of a device at this precision: as given, else of `USUAL`, whose fp64 has no entry in the table."""
        if self.peak is not None:
            return self.peak
        flops = peak_of(USUAL, precision, tf32=False)  # as torch multiplies in fp32 unless it is told otherwise
        return _USUAL_FP64 if flops is None else flops / 1e12


class Assumed(NamedTuple):
    """What only data would tell."""

    samples: int | None = None  # records of the training split, for epochs; where texts are packed, the rows
    labels: int | None = None  # classes or answers of the head

    def check(self) -> None:
        """Raise UsageError for what no data set has."""
        for name, count in self._asdict().items():
            if count is not None and count < 1:
                raise UsageError(f"--{name} {count}: give 1 or more")


class Plan(NamedTuple):
    """The numbers; sizes in bytes, operations in FLOPs. None where nobody has said how long an epoch is."""

    title: str
    steps: int | None
    epochs: float | None
    samples: int | None
    tokens: int | None
    tokens_per_sample: int
    parameters: int
    trained: int
    forward: float  # FLOPs of a sample, with the pass before the step where gradients are cached
    backward: float
    total: float | None  # FLOPs of the run
    micro_batch: int | None  # the largest that fits; None where none does
    accumulation: int | None
    memory: memory.Memory  # at that micro-batch, or at the smallest where none fits
    activations_per_sample: float
    seconds: float | None
    machine: Machine
    peak: float  # TFLOP/s of a device
    precision: str
    epoch_of: str  # what --samples counts
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        nested = {"memory": {**self.memory._asdict(), "total": self.memory.total}, "machine": self.machine._asdict()}
        return {**self._asdict(), **nested}


def plan(words: Sequence[str], machine: Machine, assumed: Assumed | None = None) -> Plan:
    """The plan of the run that `vlbeit train WORDS` would be.

    Raises UsageError for words that do not go together, and where a task cannot be planned without its data.
    """
    assumed = assumed or Assumed()
    machine.check()
    assumed.check()
    config = compose.compose(words).config
    _check_batches(config, machine)
    assumed, counted = _counted(config, assumed)
    measured = _measure(config, assumed)
    standing = _standing(measured.objective, config, machine)
    micro, accumulation = _settled(config, machine, standing.total + measured.constant, measured.slope)
    looked = measured.cost.looked if accumulation != 1 else 0  # a single micro-batch is the whole step
    forward, backward = (cost / max(_PROBED) for cost in (measured.cost.forward + looked, measured.cost.backward))
    steps = _steps(config, assumed.samples)
    samples = None if steps is None else steps * config.global_batch_size
    total = None if samples is None else (forward + backward) * samples
    parameters, peak = list(measured.objective.parameters()), machine.peak_at(config.precision)
    return Plan(
        title=config.title,
        steps=steps,
        epochs=None if assumed.samples is None or samples is None else samples / assumed.samples,
        samples=samples,
        tokens=None if samples is None else samples * measured.tokens,
        tokens_per_sample=measured.tokens,
        parameters=sum(parameter.numel() for parameter in parameters),
        trained=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        forward=forward,
        backward=backward,
        total=total,
        micro_batch=micro,
        accumulation=accumulation,
        memory=standing._replace(activations=round(measured.constant + measured.slope * (micro or 1))),
        activations_per_sample=measured.slope,
        seconds=None if total is None else total / (machine.devices * peak * 1e12 * machine.utilisation),
        machine=machine,
        peak=peak,
        precision=config.precision,
        epoch_of="rows that the texts are packed into" if _packs(config) else "records of the training split",
        notes=counted + measured.notes,
    )


def _counted(config: RunConfig, assumed: Assumed) -> tuple[Assumed, list[str]]:
    """With the records of the training split, where nobody has told them and the data lies here, and a note on it."""
    data = config.data
    far = any("://" in member for member in data.mix) if data.mix else not Path(data.root).expanduser().exists()
    if assumed.samples is not None or far:
        return assumed, []
    try:
        records = open_records(data, chain.recipe_of(config).kind, data.train_split)
        count = _packed_rows(config, records) if _packs(config) else epoch_length(records)
    except UserError as error:
        return assumed, [] if data.mix else [f"its data were not counted: {error}"]
    if _packs(config):
        about = "" if len(records) <= SAMPLED else f", as {SAMPLED:,} of them tell"
        told = f"the {count:,} rows that the {len(records):,} texts of {data.train_split} are packed into{about}"
        return assumed._replace(samples=count), [f"samples: {told}"]
    return assumed._replace(samples=count), [f"samples: the {count:,} records of {data.train_split} that lie here"]


def _packs(config: RunConfig) -> bool:
    """Whether samples are rows of several texts."""
    return bool(getattr(config.stage, "pack", False))


def _packed_rows(config: RunConfig, records: Records) -> int:
    """As training would pack them: by the tokenizer of the run that it starts from, else by `text.tokenizer`."""
    name, start = config.text.tokenizer, chain.init_of(config)
    inherited = None if start is None else tokenizer_of_run(Path(start))
    if inherited is None and name not in ("clip", "wordpiece") and not Path(name).expanduser().is_dir():
        raise UsageError(f"text.tokenizer={name} is not at hand to pack them; --samples tells the rows")
    return count_rows(records, choose_tokenizer(config.text, lambda: records.column("text"), inherited))


def _check_batches(config: RunConfig, machine: Machine) -> None:
    micro = config.micro_batch_size
    each = 1 if micro == "auto" else int(micro)
    if config.global_batch_size % (machine.devices * each):
        over = f"global_batch_size={config.global_batch_size} over --devices {machine.devices}"
        by = "" if micro == "auto" else f" in parts of micro_batch_size={micro}"
        tried = fitting(config.global_batch_size, machine.devices, micro)
        raise UsageError(f"{over}{by} leaves a rest: {tried}")


class _Measured(NamedTuple):
    """What the objective and its batches tell."""

    objective: Objective
    cost: trace.Cost  # of a micro-batch of the largest of `_PROBED`
    constant: float  # bytes of activations whatever the micro-batch, such as weights in half precision
    slope: float  # bytes of activations of a sample
    tokens: int
    notes: list[str]


@contextmanager
def without_data(config: RunConfig, labels: int | None = None) -> Iterator[tuple[RunConfig, Recipe, Meta, list[str]]]:
    """A recipe whose data stand in for the real ones: config, recipe, meta, and what was assumed."""
    labels = labels or _LABELS.get("" if config.task is None else config.task.name, 1000)
    source = stand_in.source(labels, config.text.max_length)
    with TemporaryDirectory() as cache, registry.instead("data", source):  # packed texts write their stream
        config = replace(config, data=replace(config.data, cache=cache))
        recipe = chain.recipe_of(config)
        yield config, recipe, *stand_in.meta(config, recipe, labels)


def batches_of(config: RunConfig, recipe: Recipe, meta: Meta) -> list[Batch]:
    """A micro-batch of each size of `_PROBED`, texts at their longest, by the run's own transforms."""
    length = config.text.max_length
    longest = max(_PROBED) * length if getattr(config.stage, "pack", False) else length - 2  # packed: of full rows
    try:
        spec = recipe.data(stand_in.records(recipe.kind, max(_PROBED), longest), meta, train=True)
        samples = [spec.transform(spec.records[index]) for index in range(max(_PROBED))]
    except (UserError, LookupError, OSError) as error:  # it reads more of its data than its records and classes
        raise UsageError(f"{config.title} cannot be planned without its data ({error})") from error
    return [spec.collate(samples[:count]) for count in _PROBED]


def _measure(config: RunConfig, assumed: Assumed) -> _Measured:
    with without_data(config, assumed.labels) as (config, recipe, meta, notes):
        batches = batches_of(config, recipe, meta)
    objective = trace.on_meta(partial(_built, recipe, meta))
    costs, told = _costs(config, recipe, meta, objective, batches)
    slope = _slope(costs)
    constant = max(0.0, costs[0].saved - slope * min(_PROBED))
    notes += told
    if config.model.grad_checkpointing:
        slope += _block(config, meta, batches)
        notes.append("activations: those at the checkpoints, and of one block, recomputed")
    return _Measured(objective, costs[-1], constant, slope, _tokens(batches[0], objective), notes)


def _standing(objective: Objective, config: RunConfig, machine: Machine) -> memory.Memory:
    return memory.standing(
        objective,
        config.optim,
        devices=machine.devices,
        sharded=machine.shard == "fsdp",
        average=config.engine.ema_decay > 0,
        bytes_each=8 if config.precision == "fp64" else 4,
    )


def _built(recipe: Recipe, meta: Meta) -> Objective:
    return recipe.objective(meta)


def _costs(
    config: RunConfig, recipe: Recipe, meta: Meta, objective: Objective, batches: list[Batch]
) -> tuple[list[trace.Cost], list[str]]:
    """What the batches cost, traced where the objective can be, else run; and a note where it was run."""
    autocast = torch.bfloat16 if config.precision in ("bf16", "fp16") else None
    if config.precision == "fp64":
        objective.double()
        batches = [_double(batch) for batch in batches]
    with suppress(*trace.VALUES_WANTED):
        return trace.trace(objective, batches, autocast), []
    real = recipe.objective(meta).train()
    costs = [trace.measure(real.double() if config.precision == "fp64" else real, batch, autocast) for batch in batches]
    return costs, ["its objective asks for values: a few empty samples were run to count"]


def _double(batch: Batch) -> Batch:
    return {
        name: value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in batch.items()
    }


def _slope(costs: list[trace.Cost]) -> float:
    """Bytes of activations that one sample more keeps."""
    return (costs[1].saved - costs[0].saved) / (_PROBED[1] - _PROBED[0])


def _block(config: RunConfig, meta: Meta, batches: list[Batch]) -> float:
    """Bytes of activations of a sample in one block, where nothing is recomputed: those of all over the depth."""
    plain = replace(config, model=replace(config.model, grad_checkpointing=False))
    recipe = chain.recipe_of(plain)
    costs, _ = _costs(plain, recipe, meta, trace.on_meta(partial(_built, recipe, meta)), batches)
    return _slope(costs) / config.model.depth


def _settled(config: RunConfig, machine: Machine, constant: float, slope: float) -> tuple[int | None, int | None]:
    """The micro-batch, as `micro_batch_size=auto` would find it, or as given; and how many make a step."""
    own = config.global_batch_size // machine.devices
    sizes = [size for size in range(1, own + 1) if own % size == 0]
    if config.micro_batch_size != "auto":
        sizes = [size for size in sizes if size == config.micro_batch_size]
    micro = memory.largest_fitting(sizes, constant, slope, machine.gib * GIB * (1 - memory.RESERVE))
    return micro, None if micro is None else own // micro


def _steps(config: RunConfig, samples: int | None) -> int | None:
    if config.steps is not None:
        return config.steps
    if samples is None or config.epochs is None:
        return None
    return max(1, math.floor(config.epochs * samples / config.global_batch_size))


def _tokens(batch: Batch, objective: Objective) -> int:
    """Patches, their [CLS] and words of one sample, the words at their longest."""
    encoder = getattr(objective, "encoder", None)
    grid = encoder.spec.grid if isinstance(encoder, MoMEEncoder) else None
    pictures = sum(name.startswith("image") and value.ndim == 4 for name, value in _tensors(batch))
    patches = pictures * (grid[0] * grid[1] + 1) if grid else 0
    return patches + (batch["text_ids"].shape[1] if "text_ids" in batch else 0)


def _tensors(batch: Batch) -> list[tuple[str, torch.Tensor]]:
    return [(name, value) for name, value in batch.items() if isinstance(value, torch.Tensor)]
