"""The numbers of a run: how long, how saved, how seeded; and the clocks that follow from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlbeit.config import RunConfig
from vlbeit.engine.schedule import Schedule, make_schedule


@dataclass(frozen=True)
class FitPlan:
    """Everything that `Engine` is told by value."""

    steps: int
    schedule: Schedule
    seed: int = 0
    precision: str = "fp32"  # as the accelerator was made
    clip_grad: float | None = None
    ema_decay: float = 0.0  # 0: off
    compile: bool = False
    steps_per_epoch: float = math.inf
    evaluate_every: int = 0  # steps; 0: at the end of every epoch
    save_every: int = 500
    log_every: int = 20
    metric: str = ""  # the number of the evaluation that picks the exported weights; "-name": lower is better
    resume_command: str = ""  # printed when the run is stopped
    max_skipped: int = 0  # steps in a row that may be skipped because they are not finite
    profile: int = 0  # steps that torch's profiler traces, once the first are done; 0: none
    settings: Mapping[str, Any] = field(default_factory=dict)  # the config: hyperparameters of trackers
    checkpoint: str = "auto"  # how states are saved: whole | sharded; auto: sharded where the weights are
    async_save: bool = False  # training goes on while a state is written
    timeout: float = 600.0  # seconds that a process waits for the others

    @classmethod
    def from_config(
        cls, config: RunConfig, *, steps: int, steps_per_epoch: float, metric: str, resume_command: str
    ) -> FitPlan:
        """The plan that a run's config asks for."""
        return cls(
            steps=steps,
            schedule=make_schedule(config.optim, steps),
            seed=config.seed,
            precision=config.precision,
            clip_grad=config.optim.clip_grad,
            ema_decay=config.engine.ema_decay,
            compile=config.compile,
            steps_per_epoch=steps_per_epoch,
            evaluate_every=config.engine.evaluate_every,
            save_every=config.engine.save_every,
            log_every=config.engine.log_every,
            metric=metric,
            resume_command=resume_command,
            max_skipped=config.engine.max_skipped,
            checkpoint=config.engine.checkpoint,
            async_save=config.engine.async_save,
            timeout=config.engine.timeout,
        )

    def evaluates_after(self, step: int) -> bool:
        """Whether an evaluation is due after `step` steps: by the clock, and always at the end."""
        if step == self.steps:
            return True
        if self.evaluate_every:
            return step % self.evaluate_every == 0
        return step // self.steps_per_epoch > (step - 1) // self.steps_per_epoch

    def logs_after(self, step: int) -> bool:
        """Whether a line of metrics is due after `step` steps."""
        return step % self.log_every == 0 or step == self.steps

    def saves_after(self, step: int) -> bool:
        """Whether the state is saved after `step` steps: by the clock, and always at the end."""
        return step % self.save_every == 0 or step == self.steps

    def farewell(self, step: int, path: Path | None) -> str:
        """What a run that is stopped after `step` steps says last."""
        where = f", state saved in {path}" if path else ""
        go_on = f"; to go on: {self.resume_command}" if self.resume_command else ""
        return f"stopped after step {step} of {self.steps}{where}{go_on}"
