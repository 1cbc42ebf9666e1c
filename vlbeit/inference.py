"""What a trained run is for: numbers over a split, answers for one image."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from vlbeit import adopt, chain, compose, evaluation_file, going_on, suggest
from vlbeit.config import RunConfig
from vlbeit.data import drawing
from vlbeit.data.records import open_named
from vlbeit.data.sources import open_records, open_source
from vlbeit.engine.device import choose_device, make_accelerator
from vlbeit.engine.evaluate import run_evaluators
from vlbeit.errors import DataError, UsageError
from vlbeit.launch import eval_loader, say
from vlbeit.models.checkpoint import Checkpoint, meta_errors, read_checkpoint
from vlbeit.models.spec import EncoderSpec
from vlbeit.objectives.base import Objective
from vlbeit.task import Recipe, Task
from vlbeit.types import DataSpec, Evaluator, Meta, Predictor, Records

if TYPE_CHECKING:
    from accelerate import Accelerator


class Trained:
    """A run read back: its config, recipe and objective with the exported weights.

    Weights without a config, of others or converted, become a run of the task that `words` name.
    """

    def __init__(self, path: str | Path, words: Iterable[str] = ()) -> None:
        """`words` change keys of the run's config, such as `data.root=DIR`. Raises UserError, naming the file."""
        words = list(words)
        going_on.check_exported(path)
        self.checkpoint: Checkpoint = read_checkpoint(path)
        self.is_run = bool(self.checkpoint.config)  # else weights of others, or converted ones
        self.config: RunConfig = (
            compose.override(_config(self.checkpoint), words)
            if self.is_run
            else adopt.config_for(self.checkpoint, words)
        )
        self.recipe: Recipe = chain.recipe_of(self.config)
        self.meta: Meta = self.checkpoint.meta if self.is_run else adopt.meta_for(self.recipe, self.checkpoint)
        with meta_errors(self.checkpoint.path):
            self.objective: Objective = self.recipe.objective(self.meta)
        if self.is_run:
            _load_all(self.recipe, self.objective, self.checkpoint, words)
        else:
            adopt.take_weights(self.objective, self.checkpoint, self.meta, say)
        self.objective.eval()
        self.members: dict[str, Trained] = {}  # that answer together with this one, by path

    def join(self, path: str, others: Sequence[str]) -> None:
        """Evaluate and submit from now on together with other runs, each counted once; `path` is this one's.

        Raises UserError for one that cannot be read, is named twice, or does not fit.
        """
        if not others:
            return
        task = task_of(self, path)
        members = {other: Trained(other) for other in others}
        if len({each.checkpoint.path.resolve() for each in (self, *members.values())}) <= len(others):
            raise UsageError(f"--with {' --with '.join(others)}: a run is named twice; each counts once")
        self.members = members
        task.join(self.meta, {name: (each.config, each.meta, each.objective) for name, each in self.members.items()})

    @property
    def spec(self) -> EncoderSpec:
        """The encoder's, as the objective has it."""
        encoder: Any = self.objective.encoder
        return encoder.spec


class Evaluation(NamedTuple):
    """What `evaluate` found, and where it wrote it."""

    numbers: dict[str, float]
    tables: list[evaluation_file.Table]  # by class, by type, ...
    written: list[Path]  # by the main process; the numbers first
    replaced: bool  # an evaluation that may have been of other words
    following: str  # the command to try next
    intervals: Mapping[str, Sequence[float]] = MappingProxyType({})  # 95 %, of some of the numbers
    over: str = ""  # what the intervals were drawn over: pictures, questions
    samples: int = 0  # of the split; 0: not told


def evaluate(path: str, words: Iterable[str] = (), others: Sequence[str] = ()) -> Evaluation:
    """Numbers of a run over its validation split; writes evaluation.json, and details where there are any.

    With `words` that change what is measured it writes evaluation-DATA-SPLIT.json (other data) or
    evaluation-changed.json instead: evaluation.json is the number that the run is known by. With `others`, runs whose
    answers are averaged with this one's, it is evaluation-ensemble.json.
    """
    words = list(words)
    run = Trained(path, words)
    run.join(path, others)
    config = run.config
    stored = _config(run.checkpoint) if run.is_run else config
    if config.data == stored.data:
        chain.ensure_data(config)
    else:
        open_source(config.data).check()
    accelerator = make_accelerator(config.device, config.precision)
    records = open_records(config.data, run.recipe.kind, config.data.val_split)
    run.recipe.prepare(run.objective, {"val": records}, accelerator)
    evaluators = run.recipe.evaluators(records, run.meta)
    numbers = _shown(run, run.recipe.data(records, run.meta, train=False), evaluators, accelerator)
    suffix = _suffix(stored, config) + ("-ensemble" if others else "")
    folder = folder_of(run, path)
    replaced = suffix != "" and (folder / f"evaluation{suffix}.json").exists()
    if run.is_run:
        following = suggest.after_evaluation(replace(config, run=str(folder)))  # that it was trained in may be gone
    else:
        sizes = [f"data={config.data.name}", *adopt.words_for(run.spec)]
        following = suggest.after_adoption(path, words, sizes)
    found = Evaluation(numbers, [], [], replaced, following, samples=len(records))
    known = {**numbers, **_origin(run, records, words if suffix else [])} if accelerator.is_main_process else {}
    if known:  # now, since the controls may take as long again, and be stopped
        found = _kept(found, known, folder, suffix, evaluation_file.collect(evaluators, {}))
    controls = _controls(run, records, accelerator)
    if known and controls:
        found = _kept(found, known, folder, suffix, evaluation_file.collect(evaluators, controls))
    return found


def _origin(run: Trained, records: Records, words: Sequence[str]) -> dict[str, Any]:
    """Of an evaluation what was evaluated and how; `words` where they changed what the run is known by."""
    data = run.config.data
    return {
        "split": data.val_split,
        **run.recipe.noted(),
        **({"words": list(words)} if words else {}),
        "metric": run.recipe.metric.removeprefix("-"),
        "data": {
            "name": data.name,
            "split": data.val_split,
            "samples": len(records),
            "fingerprint": evaluation_file.fingerprint(records, run.recipe.kind),
        },
    }


def _kept(
    found: Evaluation, known: Mapping[str, Any], folder: Path, suffix: str, findings: evaluation_file.Findings
) -> Evaluation:
    """The evaluation with its findings, written."""
    written = evaluation_file.write(folder, suffix, known, findings)
    intervals, over = findings.values.get("interval", {}), findings.values.get("interval_over", "")
    return found._replace(tables=findings.tables, written=written, intervals=intervals, over=over)


def _controls(run: Trained, records: Records, accelerator: Accelerator) -> dict[str, dict[str, Evaluator]]:
    """What a task shows besides, seen and computed: control -> evaluators."""
    controls = run.recipe.controls(records, run.meta) if isinstance(run.recipe, Task) else {}
    seen: dict[str, dict[str, Evaluator]] = {}
    for name, spec in controls.items():
        say(f"the same {len(records)} samples as a control: {name} (task.controls=false leaves it out)")
        seen[name] = dict(run.recipe.evaluators(records, run.meta))
        _shown(run, spec, seen[name], accelerator)
    return seen


def _shown(
    run: Trained, spec: DataSpec, evaluators: Mapping[str, Evaluator], accelerator: Accelerator
) -> dict[str, float]:
    """The numbers of evaluators that were shown the samples."""
    return run_evaluators(run.objective, eval_loader(run.config, spec), evaluators, accelerator, len(spec.records))


def pipeline(path: str | Path, device: str = "auto") -> Predictor:
    """A function of an image (and a question) from a task's run: `pipeline("runs/vl-vqa")(image, "how many dogs?")`.

    device: auto | cpu | cuda | mps. Raises UsageError for a run of a stage, which has nothing to answer with, and for
    a device that is not there.
    """
    run = Trained(path)
    task = task_of(run, path)
    return task.predictor(run.objective.to(choose_device(device)), run.meta)


def predict(
    path: str, image: Path | Sequence[Path], question: str | None = None, *, top: int = 5, out: Path | None = None
) -> Sequence[tuple[Any, ...]]:
    """The rows of a task's predictor, best first, for one picture, or as many as the task takes at once.

    With `out` the picture with the result drawn on it.

    Raises DataError, before the run is read, for a picture that cannot be read; UsageError for a task that draws
    nothing, and for an `out` that is no picture file.
    """
    images = [image] if isinstance(image, Path) else list(image)
    pictures = [open_named(each) for each in images]
    if out is not None:
        drawing.check_picture_file(out)
        check_out(out, *images)
    run = Trained(path)
    task = task_of(run, path)
    if len(pictures) != task.pictures:
        wanted = "one picture" if task.pictures == 1 else f"{task.pictures} pictures and a statement"
        typed = "picture.jpg" if task.pictures == 1 else 'left.jpg right.jpg "both pictures show a dog"'
        raise UsageError(f"task={run.config.task.name} takes {wanted}: vlbeit predict {path} {typed}")
    picture = pictures[0] if task.pictures == 1 else pictures
    predictor: Any = task.predictor(run.objective.to(choose_device("auto")), run.meta)
    if out is None:
        return predictor(picture, question, top=top)
    if not hasattr(predictor, "draw"):
        raise UsageError(
            f"--out {out}: task={run.config.task.name} has nothing to draw, its result is a table: leave --out out; "
            f"`vlbeit inspect attention {path} {images[0]}` shows where its tower looks"
        )
    rows, drawn = predictor.draw(picture, question, top=top)
    drawing.write_picture(out, drawn)
    return rows


def _config(checkpoint: Checkpoint) -> RunConfig:
    """The config that the checkpoint carries."""
    return compose.from_values(checkpoint.config, str(checkpoint.path / "config.json"))


def folder_of(run: Trained, path: str) -> Path:
    """Where the numbers go: into the run, or beside the weights of a checkpoint folder of ours."""
    if not run.is_run:
        return adopt.folder_for(path, run.config)
    return run.checkpoint.path.parent if run.checkpoint.path.name == "checkpoint" else run.checkpoint.path


def _suffix(stored: RunConfig, config: RunConfig) -> str:
    """What sets the files of an evaluation apart that is not the one the run is known by."""
    keys = [key for key, _, _ in compose.differing_keys(stored, config)]
    if any(key.startswith("data.") for key in keys):
        split = config.data.val_split
        return f"-{config.data.name}-{Path(config.data.root).name if split == '.' else split}"
    return "-changed" if keys else ""


def task_of(run: Trained, path: Any) -> Task:
    """The task of a run. Raises UsageError for one of a stage."""
    if not isinstance(run.recipe, Task):
        raise UsageError(f"{path} is a run of stage={run.config.tower}: train a task on it, such as task=vqa")
    return run.recipe


def _load_all(recipe: Recipe, objective: Objective, checkpoint: Checkpoint, words: Sequence[str]) -> None:
    own, given = objective.state_dict(), checkpoint.state
    wrong = sorted(own.keys() ^ given.keys()) or [n for n, v in own.items() if v.shape != given[n].shape]
    if wrong and words:
        remedy = recipe.without(sorted(own.keys() - given.keys()))
        raise UsageError(f"{checkpoint.path}: its weights do not fit a model with {' '.join(words)}; {remedy}")
    if wrong:
        file = checkpoint.path / "model.safetensors"
        raise DataError(f"{file} does not fit its config.json: {wrong[0]}; copy the folder again")
    objective.load_state_dict(given)


def check_out(out: Path, *inputs: Path) -> None:
    """Whether `--out` can be written, else UsageError or DataError: better known before the work than after it.

    `inputs`: files that are read and must stay as they are.
    """
    folder = next(place for place in out.absolute().parents if place.exists())
    if out.is_dir() or not folder.is_dir():
        wrong = f"{out} is a folder" if out.is_dir() else f"{folder} is a file"
        raise UsageError(f"--out {out}: {wrong}; name another file")
    for given in inputs:
        if out.exists() and given.exists() and out.samefile(given):
            raise UsageError(f"--out {out}: it is {given}, which is read and would be replaced; name another file")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(f"--out {out}: {folder} is not writable; name another file")
