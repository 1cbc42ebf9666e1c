"""Device and precision: the accelerator, batches on their way to it, and the micro-batch that fits."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    FullyShardedDataParallelPlugin,
    InitProcessGroupKwargs,
    LoggerType,
)
from torch import Tensor, nn

from vlbeit import dist
from vlbeit.engine.randomness import preserved_generators, seed_generators
from vlbeit.errors import DataError, UsageError
from vlbeit.registry import nearest
from vlbeit.types import Batch

log = logging.getLogger(__name__)

PLACE = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what each of several processes must be told
_EXTRAS = ("tensorboard", "wandb", "trackio")  # trackers that come with an extra of vlbeit
CPU_MICRO_BATCH = 32  # more at a time is not faster on a CPU


def make_accelerator(
    device: str = "auto",
    precision: str = "fp32",
    trackers: Sequence[str] = (),
    folder: str | Path = ".",
    timeout: float = 600.0,
) -> Accelerator:
    """The accelerator of a run, and with it the process group that torchrun, srun or `accelerate launch` asked for.

    device: auto | cpu | cuda | mps. precision: fp64 | fp32 | bf16 | fp16. Trackers write below `folder`/trackers.
    timeout: seconds that a process waits for the others in one exchange. FSDP2 and DeepSpeed come from the environment
    that `accelerate launch` makes of its config file.
    """
    device = choose_device(device)
    _check_place(device)
    _check_precision(precision, device)
    _check_trackers(trackers)
    _check_launch()
    # accelerate keeps one state per process and refuses another precision; a run may follow another in one process
    AcceleratorState._reset_state(reset_partial_state=True)
    with _meeting(timeout):
        accelerator = Accelerator(
            cpu=device == "cpu" and not _wants_deepspeed(),  # told to use the CPU, accelerate forgets DeepSpeed
            mixed_precision=precision if precision in ("bf16", "fp16") else "no",
            log_with=list(trackers) or None,
            project_dir=str(Path(folder) / "trackers") if trackers else None,
            # buffers stay equal because every process computes the same; objectives reduce what differs in after_step
            kwargs_handlers=[
                DistributedDataParallelKwargs(broadcast_buffers=False),
                InitProcessGroupKwargs(timeout=timedelta(seconds=timeout)),
            ],
        )
    if _wants_fsdp():
        _settle_fsdp(accelerator)
    return accelerator


def prepare(
    objective: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """`accelerator.prepare`, without torch's word to accelerate that a setting will have another name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
        return accelerator.prepare(objective, optimizer)


def _settle_fsdp(accelerator: Accelerator) -> None:
    """FSDP2 as the engine needs it: parameters of full precision, of which autocast makes what is computed with.

    A policy of bf16 would cast what goes into the forward too, counts included, which must be exact; so the numbers
    are those of DistributedDataParallel. A single process shards nothing.
    """
    state = accelerator.state
    if accelerator.num_processes > 1 and state.distributed_type == DistributedType.MULTI_CPU:
        # accelerate knows FSDP on accelerators alone; torch's works on CPUs just as well
        state.distributed_type = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin()
    if state.distributed_type == DistributedType.FSDP:
        state.fsdp_plugin.mixed_precision_policy = None
        state.fsdp_plugin.cpu_ram_efficient_loading = False  # every process has made the weights, equal by the seed


def _wants_fsdp() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def _wants_deepspeed() -> bool:
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def _check_place(device: str) -> None:
    """Refuse ranks that are missing or no numbers, and a process whose GPU is not there."""
    rank, local, _ = (_number(name, 0) for name in ("RANK", "LOCAL_RANK", "MASTER_PORT"))
    world = asked_processes()
    if rank >= world:
        raise UsageError(f"RANK={rank} of WORLD_SIZE={world}: ranks are counted from 0; set both")
    missing = [name for name in PLACE if name not in os.environ]
    if missing and (world > 1 or "LOCAL_RANK" in os.environ):  # either has accelerate look for other processes
        given = f"WORLD_SIZE={world}" if world > 1 else f"LOCAL_RANK={local}"
        unset = "" if world > 1 else "; for one process alone unset LOCAL_RANK"
        raise UsageError(
            f"{given} without {', '.join(missing)}: start the processes by torchrun, srun or `accelerate "
            f"launch`, or set {', '.join(PLACE)}; the two last say where all of them reach process 0{unset}"
        )
    if device == "cuda" and world > 1 and local >= torch.cuda.device_count():
        raise UsageError(
            f"LOCAL_RANK={local}, and this process sees {torch.cuda.device_count()} GPU: start as many processes a "
            "machine as it has, or let LOCAL_RANK be the number of the GPU among those that the process sees"
        )


@contextmanager
def _meeting(timeout: float) -> Iterator[None]:
    """Tell in one line that the processes of a run have not found each other, or that their port is not free."""
    try:
        yield
    except torch.distributed.DistError as error:
        if "EADDRINUSE" in str(error):
            raise UsageError(
                f"MASTER_PORT={os.environ.get('MASTER_PORT')} is in use on this machine, where the {asked_processes()} "
                "processes of this run are to meet: set MASTER_PORT to a free port, the same for all of them"
            ) from error
        place = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        reason = (str(error).splitlines() or ["?"])[0].rstrip(".")
        raise DataError(
            f"the {asked_processes()} processes of this run have not met at {place} within engine.timeout="
            f"{timeout:g} s ({reason}): one has ended, or does not reach that address; nothing was "
            "changed: run the same command again"
        ) from error


def asked_processes() -> int:
    """How many processes were asked for: known before they have met, as `dist.world_size` is not."""
    return _number("WORLD_SIZE", 1)


def _number(name: str, default: int) -> int:
    """A variable of the environment that whoever starts several processes sets."""
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise UsageError(f"{name}={text} in the environment is not a number from 0 on: set it as torchrun does, or not")
    return int(text)


def _check_launch() -> None:
    """Refuse what of accelerate's config would train something else than what was asked for; tell what it left out."""
    if not _wants_fsdp():
        if _started_alone():
            log.warning(
                "note: `accelerate launch` was asked for several processes and has started one: where there are not "
                "several GPUs it starts the others by MPI alone. `torchrun --nproc_per_node N -m vlbeit train ...` "
                "starts them"
            )
        return
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UsageError("FSDP of the first version is not supported: set fsdp_version: 2 in accelerate's config")
    if os.environ.get("FSDP_ACTIVATION_CHECKPOINTING", "false").lower() == "true":
        raise UsageError(
            "fsdp_activation_checkpointing would draw other drop paths in the backward pass: set it to false in "
            "accelerate's config, and model.grad_checkpointing=true"
        )


def _started_alone() -> bool:
    """Whether `accelerate launch`, asked for several processes, has started this one by itself, without a rank."""
    of_mpi = any(f"{library}_SIZE" in os.environ for library in ("PMI", "OMPI_COMM_WORLD", "MV2_COMM_WORLD"))
    launched = all(name in os.environ for name in ("ACCELERATE_MIXED_PRECISION", "MASTER_PORT"))
    return launched and not of_mpi and not any(name in os.environ for name in ("WORLD_SIZE", "LOCAL_RANK"))


def choose_device(device: str) -> str:
    """`auto` resolved; UsageError where the device is not there."""
    mps = torch.backends.mps.is_available()
    if device == "auto":
        # several processes without CUDA: accelerate would start them unconnected unless told that they use the CPU
        alone = asked_processes() == 1
        return "cuda" if torch.cuda.is_available() else "mps" if mps and alone else "cpu"
    if device not in ("cpu", "cuda", "mps"):
        raise UsageError(f"device={device} is not one of auto, cpu, cuda, mps")
    if (device == "cuda" and not torch.cuda.is_available()) or (device == "mps" and not mps):
        raise UsageError(f"device={device}: torch {torch.__version__} finds none here; use device=auto")
    return device


def to_device(batch: Batch, device: torch.device, dtype: torch.dtype | None = None) -> Batch:
    """The batch with its tensors on the device; floating ones cast to `dtype` if given."""
    return {
        name: value.to(device, dtype if value.is_floating_point() else None, non_blocking=True)
        if isinstance(value, Tensor)
        else value
        for name, value in batch.items()
    }


def batch_dtype(objective: nn.Module) -> torch.dtype | None:
    """float64 for an objective in double precision; None: batches keep their own type."""
    parameter = next(objective.parameters(), None)
    return torch.float64 if parameter is not None and parameter.dtype == torch.float64 else None


def probe_micro_batch(
    objective: nn.Module, make_batch: Callable[[int], Batch], per_process: int, accelerator: Accelerator
) -> int:
    """Largest divisor of `per_process` (samples of one process in one step) that one forward and backward can hold.

    CUDA: found by trying, with room kept for the optimizer; `make_batch(n)` gives n samples like those of training.
    Elsewhere running out of memory cannot be caught: the largest divisor up to 32. All processes get the same answer.
    """
    divisors = [size for size in range(per_process, 0, -1) if per_process % size == 0]
    if accelerator.device.type != "cuda":
        return next(size for size in divisors if size <= CPU_MICRO_BATCH)
    for size in divisors:
        if all(dist.gather_objects(fits(objective, make_batch(size), accelerator))):
            return size
    raise DataError("not even one sample fits into the device's memory: take a smaller model, image or text.max_length")


def fits(objective: nn.Module, batch: Batch, accelerator: Accelerator) -> bool:
    """Whether one forward and backward runs in the device's memory beside the optimizer's moments and an average.

    Leaves no gradient, buffer or random state changed. Every process tries for itself, since one that has run out of
    memory would leave the others waiting: what an objective gathers of other processes is not counted.
    """
    objective.to(accelerator.device)
    buffers = {name: buffer.clone() for name, buffer in objective.named_buffers()}
    reserved: list[Tensor] = []
    try:
        with dist.alone(), preserved_generators():
            seed_generators("probe")
            reserved = [torch.empty_like(p) for p in objective.parameters() if p.requires_grad for _ in range(3)]
            with accelerator.autocast():
                batch = to_device(batch, accelerator.device, batch_dtype(objective))
                counts = {name: count.to(accelerator.device) for name, count in objective.counts(batch).items()}
                loss = torch.stack(list(objective(batch, counts).losses.values())).sum()
            loss.backward()
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        objective.zero_grad(set_to_none=True)
        reserved.clear()
        for name, buffer in objective.named_buffers():
            buffer.copy_(buffers[name])
        if accelerator.device.type == "cuda":
            torch.cuda.empty_cache()


def _check_precision(precision: str, device: str) -> None:
    if precision == "fp16" and device != "cuda":
        raise UsageError(f"precision=fp16 needs CUDA, and this run is on {device}: use precision=bf16")
    if precision == "fp64" and device == "mps":
        raise UsageError("precision=fp64 is not to be had on mps: use device=cpu")


def _check_trackers(trackers: Sequence[str]) -> None:
    available = [str(tracker) for tracker in get_available_trackers()]
    known = sorted({str(each.value) for each in LoggerType} - {"all"})
    for tracker in trackers:
        if tracker not in known:
            raise UsageError(f"engine.trackers={tracker} is unknown: {nearest(tracker, known)}")
        if tracker not in available:
            package = f"'vlbeit[{tracker}]'" if tracker in _EXTRAS else f"the package of {tracker}"
            raise UsageError(f"engine.trackers={tracker} is not installed here: pip install {package}")
