"""The one training loop. `Engine.fit` is the run, `Engine.train_step` the whole of one optimizer step.

A loss of the objective is weight * sum of terms / counts[name]. The engine adds the counts of all micro-batches and
processes of a step and divides by the number of processes, because DistributedDataParallel averages gradients: so a
step is the same at any micro-batch size and on any number of processes. What looks across samples (contrast and
matching, mixup, batch statistics) sees one micro-batch of every process, unless the objective surveys the step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vlbeit import dist
from vlbeit.engine.callbacks import Callbacks
from vlbeit.engine.checkpoint import read_state
from vlbeit.engine.device import to_device
from vlbeit.engine.environment import describe_environment
from vlbeit.engine.evaluate import evaluation_mode
from vlbeit.engine.folder import RunFolder, write_errors
from vlbeit.engine.interrupt import StopRequest
from vlbeit.engine.meter import Meter
from vlbeit.engine.optim import check_coverage, write_lr
from vlbeit.engine.plan import FitPlan
from vlbeit.engine.randomness import preserved_generators, seed_generators
from vlbeit.engine.saving import Saver
from vlbeit.engine.sinks import JsonLines, Sink, Terminal, Trackers
from vlbeit.engine.state import TrainingState
from vlbeit.engine.weights import Weights
from vlbeit.errors import DataError, Interrupted
from vlbeit.files import finite, write_json
from vlbeit.types import Batch


class Stream(Protocol):
    """Training data, addressed by the optimizer step."""

    def steps(self, start: int, stop: int) -> Iterator[list[Batch]]:
        """For every step from start up to stop: the micro-batches of this process, each with its `sample_id`."""
        ...


class Engine:
    """Trains an objective on a stream of batches; evaluates, saves and resumes it.

    The optimizer holds the objective's own groups (`optim.build_optimizer`), the accelerator comes from
    `device.make_accelerator`. Without a folder nothing is written and nothing resumed. The objective is moved (and
    under fp64 cast) in place.
    """

    def __init__(
        self,
        objective: nn.Module,
        optimizer: torch.optim.Optimizer,
        stream: Stream,
        plan: FitPlan,
        accelerator: Accelerator,
        folder: RunFolder | None = None,
        callbacks: Callbacks | None = None,
    ) -> None:
        check_coverage(objective, optimizer)
        self.dtype = torch.float64 if plan.precision == "fp64" else torch.float32
        self.objective = objective.to(accelerator.device, self.dtype if plan.precision == "fp64" else None)
        self.weights = Weights(self.objective, optimizer, accelerator, plan.ema_decay, plan.clip_grad)
        self.model, self.optimizer, self.ema = self.weights.model, self.weights.optimizer, self.weights.ema
        self.forward = torch.compile(self.model) if plan.compile else self.model
        self.stream, self.plan, self.accelerator, self.folder = stream, plan, accelerator, folder
        saves_parts = self.weights.sharded if plan.checkpoint == "auto" else plan.checkpoint == "sharded"
        self.saver = folder and Saver(folder, sharded=saves_parts, in_background=plan.async_save, timeout=plan.timeout)
        self.callbacks = callbacks or Callbacks()
        self.state = TrainingState()
        self.meter = Meter()
        self.sinks: list[Sink] = []

    def fit(self) -> TrainingState:
        """Train from the last saved state, or from the weights as they are, to `plan.steps`.

        Raises Interrupted after Ctrl-C or SIGTERM (the state is saved), DataError on a loss that is not finite.
        """
        self.restore()
        with preserved_generators(), StopRequest() as stop, ExitStack() as at_end:
            self._open_sinks(at_end)
            if self.saver is not None:
                at_end.callback(self.saver.close)
            stopping = False
            self.objective.train()
            self.meter.restart(self.state.samples)
            for micro_batches in self.stream.steps(self.state.step, self.plan.steps):
                self.train_step(micro_batches)
                stopping = stop.agreed(self.accelerator.device)
                self._run_clocks(stopping)
                if stopping:
                    break
            if self.saver is not None:
                self.saver.finish()
        if stopping and self.state.step < self.plan.steps:
            raise Interrupted(self._farewell())
        assert self.state.step >= self.plan.steps, f"the stream ended at step {self.state.step}"
        return self.state

    def train_step(self, micro_batches: list[Batch]) -> None:
        """One update of the weights from the micro-batches of this process."""
        step, plan, accelerator = self.state.step, self.plan, self.accelerator
        lr = plan.schedule(step)
        write_lr(self.optimizer, lr)
        micro_batches = self._surveyed(micro_batches)
        counts = self._counts(micro_batches)
        parts: list[dict[str, Tensor]] = []  # the losses of each micro-batch
        for index, batch in enumerate(micro_batches):
            last = index == len(micro_batches) - 1
            with nullcontext() if last else accelerator.no_sync(self.model):
                seed_generators(plan.seed, step, index, dist.rank())
                with accelerator.autocast():  # the prepared forward has it already, but not that of FSDP2
                    output = self.forward(self._on_device(batch), counts)
                self.weights.backward(torch.stack(list(output.losses.values())).sum(), last=last)
            parts.append({name: loss.detach() for name, loss in output.losses.items()})
            self.meter.add_logs(output)
        grad_norm = self.weights.clip()
        losses, norm = self._finite_losses(parts, grad_norm, micro_batches)
        self.optimizer.step()
        self.optimizer.zero_grad()
        seed_generators(plan.seed, step, "after")
        self.objective.after_step()
        if self.ema:  # last: it copies buffers, which processes have in common only now
            self.ema.update(self.objective)
        self.state.advance(micro_batches, dist.world_size())
        self.meter.add_step(losses, norm)

    def evaluate(self) -> dict[str, float]:
        """The numbers of `callbacks.evaluate`, on the averaged weights with EMA; training goes on undisturbed."""
        if self.callbacks.evaluate is None:
            return {}
        with self.weights.evaluated() as model, evaluation_mode(model), self.accelerator.autocast():
            return dist.broadcast_object(self.callbacks.evaluate(model))

    def restore(self) -> None:
        """Take up the folder's last saved state, if it has one, and forget what was written after it."""
        if self.folder is None:
            return
        if dist.is_main():
            with write_errors(self.folder.path):
                self.folder.path.mkdir(parents=True, exist_ok=True)
                self.folder.clean()
        dist.barrier()
        saved = self.folder.last_state()
        if saved is not None:
            self.load_state(saved)
        if dist.is_main():
            self.folder.cut_metrics(self.state.step)

    def load_state(self, saved: Path) -> None:
        """Take up a saved state; DataError where it is damaged or of another model."""
        self.state = read_state(saved, self.weights.trained())

    def _surveyed(self, micro_batches: list[Batch]) -> list[Batch]:
        """What the objective makes of all micro-batches of the step before it is asked for losses."""

        @torch.no_grad()
        def look(index: int) -> tuple[Any, ...]:
            seed_generators(self.plan.seed, self.state.step, index, dist.rank())
            with self.accelerator.autocast():  # as in training
                return self.forward(self._on_device(micro_batches[index]), {}).seen

        return self.objective.survey(micro_batches, look)

    def _counts(self, micro_batches: list[Batch]) -> dict[str, Tensor]:
        """Terms per loss of the whole step over all processes, divided by the number of processes."""
        parts = [self.objective.counts(batch) for batch in micro_batches]
        names = sorted(parts[0])
        if not names:
            return {}
        own = torch.stack([torch.stack([part[name].cpu() for part in parts]).sum() for name in names])
        counts = dist.sum_over_ranks(own.to(self.accelerator.device, self.dtype)) / dist.world_size()
        counts = torch.where(counts > 0, counts, 1)  # no terms at all: the loss is 0, not 0/0
        return dict(zip(names, counts.unbind(), strict=True))

    def _finite_losses(
        self, parts: list[dict[str, Tensor]], grad_norm: Tensor, micro_batches: list[Batch]
    ) -> tuple[dict[str, float], float]:
        """Losses of the step over all processes, and the gradient norm; DataError unless all are finite.

        One read of the device for all of them. Under fp16 the gradient may overflow: the scaler skips that step.
        """
        names = list(parts[0])
        own = torch.stack([torch.stack([part[name] for name in names]) for part in parts])
        total = dist.sum_over_ranks(own.sum(0)) / dist.world_size()
        *values, norm = torch.cat([total, grad_norm.to(total.dtype).reshape(1)]).tolist()
        losses = dict(zip(names, values, strict=True))
        checked = losses if self.plan.precision == "fp16" else losses | {"gradient norm": norm}
        wrong = [f"{name} is {value}" for name, value in checked.items() if not math.isfinite(value)]
        if wrong:
            # a gradient that overflows behind finite losses has no guilty batch: name all of them
            blameless = all(map(math.isfinite, values))
            own_ids = [
                str(sample_id)
                for batch, row in zip(micro_batches, own, strict=True)
                if blameless or not row.isfinite().all()
                for sample_id in batch["sample_id"]
            ]
            ids = [sample_id for every in dist.gather_objects(own_ids) for sample_id in every]
            raise DataError(
                f"step {self.state.step}: {', '.join(wrong)}; samples of the batch: {', '.join(ids)}. "
                "Look at these samples, or lower optim.lr, set optim.clip_grad, use precision=fp32"
            )
        return losses, norm

    def _run_clocks(self, stopping: bool) -> None:
        """Log, evaluate, export and save what is due after this step."""
        step, plan = self.state.step, self.plan
        evaluates = plan.evaluates_after(step) and self.callbacks.evaluate is not None
        saves = plan.saves_after(step) or stopping
        for sink in self.sinks:
            sink.step(step)
        if plan.logs_after(step) or evaluates or saves:
            self._write(self.meter.flush(self.state.samples) | {"lr": plan.schedule(step - 1)})
        results = self.evaluate() if evaluates else {}
        if evaluates:
            self._write({"evaluation": results})
        if self._is_new_best(results):
            self._export(results)
        if saves:
            self._save()
        if evaluates or saves:
            self.meter.restart(self.state.samples)  # what was not training does not count as its time

    def _is_new_best(self, results: dict[str, float]) -> bool:
        """Whether the weights of now are the ones to export: the best by the metric so far, or without one the last."""
        if not self.plan.metric or self.callbacks.evaluate is None:
            return self.state.step == self.plan.steps
        if not results:
            return False
        lower, name = self.plan.metric.startswith("-"), self.plan.metric.removeprefix("-")
        if name not in results:
            raise ValueError(f"metric {name} is not among the evaluation's numbers: {', '.join(results)}")
        return self.state.update_best(results[name], lower=lower)

    def _export(self, results: dict[str, float]) -> None:
        """Write the weights for users, and the numbers that belong to them."""
        if self.folder is None:
            return
        weights = self.weights.exported() if self.callbacks.export else {}
        if not dist.is_main():
            return
        with write_errors(self.folder.checkpoint):
            if self.callbacks.export:
                self.callbacks.export(weights, self.folder.checkpoint)
            if results:
                best = {"metric": self.plan.metric.removeprefix("-")} if self.plan.metric else {}
                numbers = finite({**results, **best, "step": self.state.step})
                write_json(self.folder.evaluation_file, numbers, indent=2)

    def _save(self) -> None:
        """Save the whole state."""
        if self.folder is None:
            return
        self.state.bad = sorted({i for ids in dist.gather_objects(self.state.bad) for i in ids})
        assert self.saver is not None
        self.saver.save(self.weights.trained(), self.state)

    def _on_device(self, batch: Batch) -> Batch:
        return to_device(batch, self.accelerator.device, torch.float64 if self.plan.precision == "fp64" else None)

    def _open_sinks(self, at_end: ExitStack) -> None:
        """File, terminal and trackers on the main process; closed whatever happens."""
        self.sinks = []
        if not dist.is_main() or self.state.step >= self.plan.steps:
            return
        self.sinks = [Terminal(self.state.step, self.plan.steps)]
        if self.folder is not None:
            device, processes = self.accelerator.device, dist.world_size()
            with write_errors(self.folder.environment_file):
                write_json(self.folder.environment_file, describe_environment(device, processes), indent=2)
            self.sinks.append(JsonLines(self.folder.metrics_file))
        if self.accelerator.log_with:
            self.sinks.append(Trackers(self.accelerator, "vlbeit"))
        for sink in self.sinks:
            at_end.callback(sink.close)

    def _write(self, values: dict[str, Any]) -> None:
        record = {"step": self.state.step, "time": round(time.time(), 3), **values}
        for sink in self.sinks:
            sink.write(record)

    def _farewell(self) -> str:
        where = f", state saved in {self.folder.path}" if self.folder else ""
        go_on = f"; to go on: {self.plan.resume_command}" if self.plan.resume_command else ""
        return f"stopped after step {self.state.step} of {self.plan.steps}{where}{go_on}"
