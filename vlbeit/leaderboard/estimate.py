"""The score that a server would give, predicted without it: official accuracy over images held out of training.

The interval is a bootstrap over images: questions about one image are right and wrong together, so that drawing
questions one by one would make it too narrow. What it does not hold, the bias, is said in words.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vlbeit import adopt, chain, compose, files, inference, table
from vlbeit.bootstrap import Interval, statistic_interval
from vlbeit.config import DataConfig, RunConfig
from vlbeit.data.overlap import shared_images
from vlbeit.data.sources import open_records
from vlbeit.data.vqa_v2_splits import SOURCES
from vlbeit.errors import DataError, UsageError
from vlbeit.leaderboard.published import NAMES
from vlbeit.models.checkpoint import read_checkpoint, read_head
from vlbeit.types import Records

HELD_OUT = "rest_val"  # the part of val that published runs keep out of training
FILE = "estimate.json"
FEW = 30  # images below which an interval over them is too narrow


class Score(NamedTuple):
    """Official accuracy in percent of one kind of question, and the middle 95 % of its bootstrap over images."""

    value: float
    interval: Interval | None  # None: of one image, whose spread nobody knows
    questions: int
    images: int


class Estimate(NamedTuple):
    """A predicted row of the leaderboard."""

    split: str
    scores: Mapping[str, Score]  # overall and the answer types that occur
    questions: int
    images: int
    bias: list[str]  # what the interval does not hold, one sentence each
    written: Path

    def rows(self) -> list[tuple[str, ...]]:
        """For a table: name, predicted, interval, questions."""
        return [
            (name, f"{score.value:.2f}", _shown(score.interval), str(score.questions))
            for name, score in self.scores.items()
        ]

    def as_json(self) -> dict[str, Any]:
        """What estimate.json holds."""
        return {
            "predicted": {name: score.value for name, score in self.scores.items()},
            "interval": {name: score.interval and list(score.interval) for name, score in self.scores.items()},
            "interval_over": "images",
            "split": self.split,
            "questions": self.questions,
            "images": self.images,
            "bias": self.bias,
        }


def estimate(path: str, words: Sequence[str] = (), split: str | None = None) -> Estimate | None:
    """Evaluate a VQA run on a held-out part and write estimate.json beside the evaluation; None but on rank 0.

    Args:
        words: change keys of the run's config, such as `data.root=DIR`.
        split: the held-out part; None: `rest_val` of data that knows it (vqa_v2, scenes), else its validation split.

    Raises:
        UsageError: no VQA run, or it was trained on images of that part.
        DataError: the part is missing or damaged, or has no answers.
    """
    config, stored, fixed = _configs(path, words)
    split, held, bias = _open_held_out(config, split)
    bias += _check_training(path, config, stored, split, held)
    bias += _standing_bias(config, stored, split, held)
    evaluation = inference.evaluate(path, [*words, f"data.val_split={split}", *fixed])
    if not evaluation.written:
        return None
    details = next(file for file in evaluation.written if file.name.startswith("vqa_details"))
    rows = json.loads(details.read_text(encoding="utf-8"))
    scores = predicted_scores(held, {int(row["question_id"]): float(row["score"]) for row in rows})
    overall = scores["overall"]
    bias += _too_few_images(scores)
    found = Estimate(split, scores, overall.questions, overall.images, bias, details.with_name(FILE))
    files.write_json(found.written, found.as_json(), indent=2)
    return found


def predicted_scores(records: Records, scored: Mapping[int, float]) -> dict[str, Score]:
    """Percent over all and by answer type, drawn by image, of question id -> score in [0, 1]; others do not count."""
    columns = (records.column(name) for name in ("question_id", "image_id", "answer_type"))
    rows = [(scored[int(key)], image, kind) for key, image, kind in zip(*columns, strict=True) if int(key) in scored]
    if not rows:
        raise DataError("no question of this part was scored: it has no human answers")
    places = {image: place for place, image in enumerate(dict.fromkeys(image for _, image, _ in rows))}
    found = {}
    for name in NAMES:
        chosen = [(score, places[image]) for score, image, kind in rows if name in ("overall", kind)]
        if chosen:
            values_Q, images_Q = np.array([score for score, _ in chosen]), [place for _, place in chosen]
            sums_N2 = np.zeros((len(places), 2))  # of every image: points and questions
            np.add.at(sums_N2, images_Q, np.stack([values_Q, np.ones(len(chosen))], axis=1))
            images = len(set(images_Q))
            interval = _interval(sums_N2) if images > 1 else None
            found[name] = Score(round(100 * float(values_Q.mean()), 2), interval, len(chosen), images)
    return found


def _too_few_images(scores: Mapping[str, Score]) -> list[str]:
    few = [f"{name} ({score.images})" for name, score in scores.items() if score.images < FEW]
    about = f"below about {FEW} the interval is too narrow, and one has none"
    return [f"less certain than it looks, of few images: {', '.join(few)}; {about}"] if few else []


def _shown(interval: Interval | None) -> str:
    return "-" if interval is None else table.between(interval)


def _interval(sums_N2: np.ndarray) -> Interval:
    def percent(sums_R2: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):  # a draw without such a question has no score and is left out
            return 100 * sums_R2[:, 0] / sums_R2[:, 1]

    low, high = statistic_interval(sums_N2, percent)
    return round(low, 2), round(high, 2)


def _configs(path: str, words: Iterable[str]) -> tuple[RunConfig, RunConfig, list[str]]:
    """The config with and without the words, and words that leave out what an estimate has no use for."""
    values = read_head(path)["config"]
    if values:
        stored = compose.from_values(values, f"{path}: the config of its checkpoint")
        config = compose.override(stored, words)
    else:  # weights of others
        stored = config = adopt.config_for(read_checkpoint(path), list(words))
    if chain.recipe_of(config).kind != "vqa":
        raise UsageError(f"{path} answers no questions: an estimate needs a run of task=vqa")
    return config, stored, ["task.controls=false"] if hasattr(config.task, "controls") else []


def _open_held_out(config: RunConfig, split: str | None) -> tuple[str, Records, list[str]]:
    """The held-out part and its records; a line where it is not the one that is meant for it."""
    data, said = config.data, []
    if split is None and data.name in SOURCES:
        split = HELD_OUT
    elif split is None:
        split = data.val_split
        said.append(f"either way: data={data.name} has no part {HELD_OUT}; this is data.val_split={split}")
    try:
        return split, open_records(data, "vqa", split), said
    except DataError as error:
        raise DataError(f"{error}; or name another part, --split NAME") from error


def _check_training(path: str, config: RunConfig, stored: RunConfig, split: str, held: Records) -> list[str]:
    """Refuse images that were trained on; a line where that cannot be known."""
    trained = stored.data
    if trained.name == config.data.name:  # perhaps moved since
        trained = replace(trained, root=config.data.root)
    try:
        seen = _shared(trained, trained.train_split, held)
    except DataError as error:
        return [f"the training split {trained.train_split} cannot be read, so that images of {split} may have been "
                f"trained on ({error})"]  # fmt: skip
    if seen:
        raise UsageError(
            f"{path} was trained on {seen} of the {len(set(held.column('image_id')))} images of {split} "
            f"(data.train_split={trained.train_split}): what it scores there predicts nothing; name a part that it has "
            f"not seen by --split, or train on data.train_split=train+trainable_val, which leaves {HELD_OUT} out"
        )
    return []


def _standing_bias(config: RunConfig, stored: RunConfig, split: str, held: Records) -> list[str]:
    """What makes the prediction lean, in the words of somebody who would not be fooled by it."""
    data, settings = stored.data, stored.task
    lines = [
        f"either way: {split} of {config.data.name} has other images and annotators than a test; the interval is that "
        "of drawing other images from the same place"
    ]
    if chain.init_of(stored) is not None:
        lines.append(
            "too high, if pre-training saw these images"
            + (": COCO's captions and Visual Genome hold pictures of val" if data.name == "vqa_v2" else "")
        )
    if _counted_in(getattr(settings, "vocabulary_splits", None) or [data.train_split], split):
        lines.append("a little too high: the answer vocabulary was counted over these questions too")
    elif getattr(settings, "answers", "own") not in ("own", "auto"):
        lines.append(
            f"perhaps a little too high: who made task.answers={settings.answers} may have counted these answers"
        )
    if data.val_split == split or _overlaps(data, held):
        lines.append("a little too high: the weights that were kept are those that did best on these images")
    if "val" not in data.train_split:
        lines.append("a little too low for a run that is trained on val as well before it is sent")
    lines.append("the server rounds in its own way: expect a difference of up to 0.1")
    return lines


def _counted_in(splits: Sequence[str], split: str) -> bool:
    """Whether the vocabulary's splits hold the questions of a part of val."""
    names = {part for each in splits for part in str(each).split("+")}
    return bool(names & {split, "val", "val2014", "trainval"})


def _overlaps(data: DataConfig, held: Records) -> bool:
    try:
        return bool(_shared(data, data.val_split, held))
    except DataError:
        return False


def _shared(data: DataConfig, split: str, held: Records) -> int:
    """Images of a split that are held out as well."""
    return shared_images(open_records(data, "vqa", split), held)
