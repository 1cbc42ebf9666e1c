"""The one training loop. `Engine.fit` is the run, `Engine.train_step` the whole of one optimizer step.

A loss of the objective is weight * sum of terms / counts[name]. The engine adds the counts of all micro-batches and
processes of a step and divides by the number of processes, because DistributedDataParallel averages gradients: so a
step is the same at any micro-batch size and on any number of processes. What looks across samples (contrast and
matching, mixup, batch statistics) sees one micro-batch of every process, unless the objective surveys the step.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vlbeit import dist
from vlbeit.engine.best import export, is_new_best
from vlbeit.engine.callbacks import Callbacks
from vlbeit.engine.checkpoint import read_state
from vlbeit.engine.counts import counts_of_step
from vlbeit.engine.device import to_device
from vlbeit.engine.evaluate import evaluation_mode
from vlbeit.engine.folder import RunFolder
from vlbeit.engine.guard import check_skipping, check_step, kept_buffers, put_back, skip
from vlbeit.engine.interrupt import Stopped, StopRequest, listening
from vlbeit.engine.meter import Meter
from vlbeit.engine.optim import check_coverage, write_lr
from vlbeit.engine.plan import FitPlan
from vlbeit.engine.profile import part
from vlbeit.engine.randomness import preserved_generators, seed_generators
from vlbeit.engine.saving import Saver
from vlbeit.engine.sinks import Sink
from vlbeit.engine.speed import speed_on
from vlbeit.engine.state import TrainingState, first_named
from vlbeit.engine.stream import Stream
from vlbeit.engine.watching import open_sinks
from vlbeit.engine.weights import Weights
from vlbeit.errors import Interrupted
from vlbeit.types import Batch


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
        check_skipping(accelerator, plan.max_skipped)
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
        self.saved_at: int | None = None  # step of the last saved state
        self.meter = Meter(speed_on(accelerator.device, plan.precision, compiled=plan.compile))
        self.sinks: list[Sink] = []

    def fit(self) -> TrainingState:
        """Train from the last saved state, or from the weights as they are, to `plan.steps`.

        Raises Interrupted after Ctrl-C, SIGTERM, SIGUSR1 or SIGUSR2 (the state is saved), DataError on a step that is
        not finite and not to be skipped.
        """
        self.restore()
        makes_up = self._lacks_evaluation() or self._lacks_export()
        if self.state.step >= self.plan.steps and not makes_up:
            return self.state
        with preserved_generators(), listening() as stop, stop.breaking_off(False), ExitStack() as at_end:
            self.sinks = open_sinks(self.accelerator, self.plan, self.state.step, self.folder, at_end)
            if self.saver is not None:
                at_end.callback(self.saver.close)
            self.objective.train()
            self.meter.restart(self.state.samples)
            steps = self.stream.steps(self.state.step, self.plan.steps)
            if makes_up:
                self._make_up(stop)
            while self.state.step < self.plan.steps:
                micro_batches = self._next(steps, stop)
                if stop.agreed(self.accelerator.device):
                    self._halt(stop)
                self.train_step(micro_batches)
                self._run_clocks(stop)
            if self.saver is not None:
                self.saver.finish()
        return self.state

    def train_step(self, micro_batches: list[Batch]) -> None:
        """One update of the weights from the micro-batches of this process."""
        step, plan, accelerator = self.state.step, self.plan, self.accelerator
        write_lr(self.optimizer, plan.schedule(step))
        buffers = kept_buffers(self.objective) if plan.max_skipped else {}
        tokens = [self.objective.tokens(batch) for batch in micro_batches]
        micro_batches = self._surveyed(micro_batches)
        counts = counts_of_step(self.objective, micro_batches, accelerator.device, self.dtype)
        parts: list[dict[str, Tensor]] = []  # the losses of each micro-batch
        for index, batch in enumerate(micro_batches):
            last = index == len(micro_batches) - 1
            measured = self.meter.speed.forward_and_backward(tokens[index])
            with nullcontext() if last else accelerator.no_sync(self.model), measured:
                seed_generators(plan.seed, step, index, dist.rank())
                with part("forward"), accelerator.autocast():  # the prepared forward has it, but not that of FSDP2
                    output = self.forward(self._on_device(batch), counts)
                with part("backward"):
                    self.weights.backward(torch.stack(list(output.losses.values())).sum(), last=last)
            parts.append({name: loss.detach() for name, loss in output.losses.items()})
            self.meter.add_logs(output)
        grad_norm = self.weights.clip()
        checked = check_step(parts, grad_norm, micro_batches, scaled=plan.precision == "fp16")
        if checked.wrong:
            skip(checked, self.state, plan.max_skipped)
            self._forget(buffers)
        else:
            self._update()
            self.meter.add_step(checked.losses, checked.grad_norm)
        self.state.advance(micro_batches, dist.world_size())

    def _update(self) -> None:
        """The new weights, and what follows from them."""
        with part("update"):
            self.optimizer.step()
            self.optimizer.zero_grad()
            seed_generators(self.plan.seed, self.state.step, "after")
            self.objective.after_step()
            if self.ema:  # last: it copies buffers, which processes have in common only now
                self.ema.update(self.objective)
        self.state.skipped_in_row = 0

    def _forget(self, buffers: dict[str, Tensor]) -> None:
        """Leave a step as if it had not been: no gradient, buffers as they were."""
        self.optimizer.zero_grad()
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.update()
        put_back(self.objective, buffers)
        self.meter.skip_step()

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
        folder = self.folder
        dist.on_main(folder.clean)
        saved = folder.last_state()
        if saved is not None:
            self.load_state(saved)
        lacking = self._lacks_evaluation()
        dist.on_main(lambda: folder.cut_metrics(self.state.step, owes_evaluation=lacking))

    def load_state(self, saved: Path) -> None:
        """Take up a saved state; DataError where it is damaged or of another model."""
        self.state = read_state(saved, self.weights.trained())
        self.saved_at = self.state.step

    def _surveyed(self, micro_batches: list[Batch]) -> list[Batch]:
        """What the objective makes of all micro-batches of the step before it is asked for losses."""
        buffers: dict[str, Tensor] = {}  # running statistics learn from a micro-batch once, as it is trained on

        @torch.no_grad()
        def look(index: int) -> tuple[Any, ...]:
            buffers.update(buffers or kept_buffers(self.objective))
            seed_generators(self.plan.seed, self.state.step, index, dist.rank())
            with self.accelerator.autocast():  # as in training
                return self.forward(self._on_device(micro_batches[index]), {}).seen

        surveyed = self.objective.survey(micro_batches, look)
        if buffers:
            put_back(self.objective, buffers)
        return surveyed

    def _next(self, steps: Iterator[list[Batch]], stop: StopRequest) -> list[Batch]:
        """The micro-batches of the next step; empty where this process was asked to stop meanwhile."""
        with part("wait for data"), self.meter.speed.waiting(), suppress(Stopped), stop.breaking_off():
            return next(steps)
        return []

    def _run_clocks(self, stop: StopRequest) -> None:
        """Log, evaluate, export and save what is due after this step."""
        step, plan = self.state.step, self.plan
        evaluates = plan.evaluates_after(step) and self.callbacks.evaluate is not None
        saves = plan.saves_after(step)
        with self.meter.paused():  # a trace may be written
            for sink in self.sinks:
                sink.step(step)
        if plan.logs_after(step) or evaluates or saves:
            self._write_means()
        if evaluates:
            self._evaluate(stop)
        else:
            self._export_best({})
        if saves:
            self._save()
        if evaluates or saves:
            self.meter.restart(self.state.samples)  # what was not training does not count as its time

    def _write_means(self) -> None:
        rates = [group["lr"] for group in self.optimizer.param_groups]
        lr = {"lr": self.plan.schedule(self.state.step - 1), "lr_groups": {"lowest": min(rates), "highest": max(rates)}}
        self._write(self.meter.flush(self.state.samples) | lr)

    def _evaluate(self, stop: StopRequest) -> None:
        """Evaluate and export; what a signal breaks off is made up for when the run goes on.

        The last evaluation is not broken off: then the run is finished.
        """
        stop.finishes = self.state.step >= self.plan.steps
        try:
            results = self.evaluate()
        except Stopped:
            return
        self.state.evaluated = self.state.step
        self._write({"evaluation": results})
        self._export_best(results)

    def _make_up(self, stop: StopRequest) -> None:
        """The evaluation that a saved state owes and that is due, or that weights for users need."""
        if self.callbacks.evaluate is not None:
            self._evaluate(stop)
        else:
            self._export_best({})
        if self.folder is not None and not self.state.owes_evaluation:
            dist.on_main(self.folder.pay_evaluation)

    def _halt(self, stop: StopRequest) -> None:
        """Log and save what is not yet, and raise Interrupted."""
        if not self.meter.is_empty:
            self._write_means()
        if self.saved_at != self.state.step:
            self._save()
        if self.saver is not None:
            self.saver.finish()
        interrupted = Interrupted(self.plan.farewell(self.state.step, self.folder.path if self.folder else None))
        interrupted.signal = stop.number
        raise interrupted

    def _export_best(self, results: dict[str, float]) -> None:
        """Write the weights for users where they are the best so far; every process must call."""
        evaluates = self.callbacks.evaluate is not None
        if not is_new_best(self.plan, self.state, results, evaluates=evaluates) or self.folder is None:
            return
        weights = self.weights.exported() if self.callbacks.export else {}
        folder, step = self.folder, self.state.step
        dist.on_main(lambda: export(folder, self.callbacks, weights, results, self.plan.metric, step))

    def _save(self) -> None:
        """Save the whole state."""
        if self.folder is None:
            return
        self.saved_at = self.state.step
        self.state.bad = first_named([], *dist.gather_objects(self.state.bad))
        assert self.saver is not None
        self.saver.save(self.weights.trained(), self.state)

    def _lacks_evaluation(self) -> bool:
        """Whether what the saved state owes is due: by the clock, since the run now ends with it, or since it was made
        up before, of which the state does not know."""
        step, plan = self.state.step, self.plan
        if self.folder is None or self.callbacks.evaluate is None or not self.state.owes_evaluation:
            return False
        return step >= plan.steps or plan.evaluates_after(step) or self.folder.is_paid()

    def _lacks_export(self) -> bool:
        """Whether all steps are made and no weights for users written: a run was stopped, and its `steps` lowered."""
        if self.folder is None or self.callbacks.export is None or self.state.step < self.plan.steps:
            return False
        return not dist.on_main(self.folder.is_exported)

    def _on_device(self, batch: Batch) -> Batch:
        return to_device(batch, self.accelerator.device, torch.float64 if self.plan.precision == "fp64" else None)

    def _write(self, values: dict[str, Any]) -> None:
        record = {"step": self.state.step, "time": round(time.time(), 3), **values}
        for sink in self.sinks:
            sink.write(record)
