"""Stage and Task: what a recipe offers to `launch`. Interfaces; the work is done in the layers below.

A recipe is the one place, beside `launch`, that reads config: it turns it into an objective, data, evaluators
and parameter groups.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vlbeit.config import OptimConfig, RunConfig, Settings, require
from vlbeit.errors import UsageError
from vlbeit.types import DataSpec, Evaluator, Exportable, Meta, Predictor, Records

if TYPE_CHECKING:
    from accelerate import Accelerator

    from vlbeit.objectives.base import Objective


class Recipe(ABC):
    """What stages and tasks have in common."""

    Config: ClassVar[type[Settings]] = Settings  # its defaults are the published recipe
    kind: ClassVar[str]  # the kind of record it needs, a key of vlbeit.data.records.KINDS
    metric: ClassVar[str]  # the number of the evaluation that picks the best weights; "-name": lower is better
    resizes: ClassVar[tuple[str, ...]] = ("square",)  # values of data.resize that it can work with

    def __init__(self, config: RunConfig) -> None:
        what = "task" if config.task is not None else "stage"
        name = config.tower if config.task is None else config.task.name
        require(
            config.data.resize in self.resizes,
            f"data.resize={config.data.resize} is not for {what}={name}, which takes {', '.join(self.resizes)}",
        )
        self.config = config

    def check(self) -> None:  # noqa: B027  (most recipes need nothing of their own)
        """Raise UserError for what stands in the way of training and can be known before any work."""

    def needed_runs(self) -> dict[str, str]:
        """Runs, beside `init`, that must exist before this one: folder -> stage that makes it."""
        return {}

    def without(self, names: Sequence[str]) -> str:
        """What to do about a trained run that lacks these weights, which the settings of now need."""
        return "leave that out"

    def start(self, objective: Objective) -> None:  # noqa: B027  (most recipes start from `init` alone)
        """Load weights that do not come from `init`; called once, when a run starts and not when it goes on."""

    def prepare(  # noqa: B027  (most recipes have nothing to prepare)
        self, objective: Objective, splits: Mapping[str, Records], accelerator: Accelerator
    ) -> None:
        """What is made of the weights and the records once, before the first batch: features of a frozen tower, say.

        Called on every process whenever weights are in place: as a run starts, as it goes on (with those of its saved
        state), and before `vlbeit evaluate`. `splits` has the records that `data` gets, under "train" (not for
        `evaluate`) and "val". Weights of the tower and the global generators must be left as they are, and the outcome
        must hang on weights and records alone: then a run that was broken off goes on as if it had not been.
        """

    def labels_of_init(self) -> Meta:
        """What the rows of a classifier stand for that `init` brings without saying so, as the settings do: meta."""
        return {}

    @abstractmethod
    def meta(self, train: Records, inherited: Meta) -> Meta:
        """What the run learns from its training records; `inherited` is the meta of `init`'s run ({} without)."""

    @abstractmethod
    def objective(self, meta: Meta) -> Objective:
        """The freshly initialised objective."""

    @abstractmethod
    def data(self, records: Records, meta: Meta, *, train: bool) -> DataSpec:
        """How samples are made of the records: augmented for training, plain otherwise."""

    @abstractmethod
    def evaluators(self, records: Records, meta: Meta) -> Mapping[str, Evaluator]:
        """Named evaluators over the validation records."""

    def noted(self) -> dict[str, Any]:
        """What else a report must say about how its numbers or answers were made: JSON values."""
        return {}

    @abstractmethod
    def param_groups(self, objective: Objective, optim: OptimConfig) -> list[dict[str, Any]]:
        """Optimizer groups: `params`, `weight_decay`, `lr_scale`; every trainable parameter once."""


class Stage(Recipe):
    """A pre-training stage; its result feeds the next run."""

    previous: ClassVar[str | None] = None  # stage that `init=auto` starts from


class Task(Recipe):
    """A task on a pre-trained tower; its result is a number and a predictor."""

    stages: ClassVar[tuple[str, ...]]  # towers it takes, the first is the default
    built_in_start: ClassVar[str] = ""  # STAGE-TASK: on the built-in data a run of it comes before, not the stage's own
    pictures: ClassVar[int] = 1  # that its predictor takes at once; of more than one it gets a list

    @abstractmethod
    def predictor(self, objective: Objective, meta: Meta) -> Predictor:
        """A function of one image (and a question)."""

    def join(self, meta: Meta, others: Mapping[str, tuple[RunConfig, Meta, Objective]]) -> None:
        """From now on evaluate and submit together with `others`, by path. `meta` is this run's.

        Raises UsageError, as here, where the task cannot, or one of the others does not fit.
        """
        raise UsageError(f"task={self.config.task.name} cannot be evaluated together with other runs: leave --with out")

    def controls(self, records: Records, meta: Meta) -> Mapping[str, DataSpec]:
        """More that `vlbeit evaluate`, not training, shows to evaluators of their own: name -> data.

        The same samples with something taken away, such as their pictures: what is reached without it. Each
        evaluator's `report` gets its fellows that saw them. None here.
        """
        return {}

    def exported(self, objective: Objective, meta: Meta) -> Exportable:
        """What `vlbeit export` writes. Raises UsageError, as here, where the task offers nothing."""
        raise UsageError(
            f"task={self.config.task.name} offers nothing to export: its class has no method `exported`; "
            f"export the run that it started from, for its image features"
        )


def check_no_text(text: str | None, task: str) -> None:
    """Raise UsageError where the predictor of a task on pictures alone was given a text."""
    if text is not None:
        raise UsageError(f"a {task} run takes a picture alone: leave the question out")
