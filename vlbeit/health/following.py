"""What to type after a report: the training that its findings allow, else the same inspection again."""

from __future__ import annotations

import shlex
from pathlib import Path

from vlbeit.config import DataConfig
from vlbeit.data.answers import MIN_COUNT
from vlbeit.data.following import BEIT, VLMO, next_command

from .report import Report, Wanted

_ANSWERS = "answers.json"  # the vocabulary that `vlbeit prepare vqa_v2` wrote


def following(report: Report) -> str:
    """The next command."""
    codes = {finding.code for finding in report.unsafe}
    if codes == {"empty-vocabulary"}:
        return _inspection(report, report.tables["vocabulary"]["proposed"])
    if codes:
        return f"correct these, then {_inspection(report, report.wanted.min_count)}"
    data = report.wanted.data
    if "vocabulary" in report.tables:
        return _training_on_answers(report)
    asked = [name for name, facts in report.tables["splits"].items() if "questions" in facts]
    if asked:  # no answers to train on
        place = [f"data={data.name}", f"data.root={data.root}"]
        return _joined(f"vlbeit submit RUN --split {asked[0]}", [*place, *_words(data)])
    words, name = _stage(report)
    return _joined(next_command(words, Path(data.root), name), _words(data))


def _stage(report: Report) -> tuple[str, str]:
    """What trains on pictures and texts without answers: its words, and the end of the run's name."""
    data, splits = f"data={report.wanted.data.name}", report.tables["splits"].values()
    if report.wanted.data.name == "nlvr2":
        return f"stage=vl task=nlvr2 init={VLMO} {data}", "nlvr2"
    if not any("texts" in facts for facts in splits):
        return f"stage=tokenizer {data}", "tokenizer"
    if any(facts["pictures"] for facts in splits):
        return f"stage=vl init={VLMO} {data}", "vl"
    return f"stage=mlm init={BEIT} stage.pack=true {data}", "mlm"


def _training_on_answers(report: Report) -> str:
    data = report.wanted.data
    if data.name == "scenes":  # whose recipe has a vocabulary, and before which whatever is missing is trained
        return _joined("vlbeit train stage=vl task=vqa data=scenes", [f"data.root={data.root}", *_words(data)])
    command = next_command(f"stage=vl task=vqa init={VLMO} data={data.name}", Path(data.root), "vqa")
    answers, min_count = Path(data.root).expanduser() / _ANSWERS, report.tables["vocabulary"]["proposed"]
    if answers.is_file():
        return _joined(command, [f"task.answers={answers}", *_words(data)])
    return _joined(command, [*_words(data), *([f"task.min_count={min_count}"] if min_count != MIN_COUNT else [])])


def _words(data: DataConfig) -> list[str]:
    """Keys of the data that are not their defaults."""
    typed = [(key, getattr(data, key), getattr(DataConfig, key)) for key in ("train_split", "val_split", "images")]
    words = [f"data.{key}={value}" for key, value, default in typed if value != default]
    return [*words, *([f"data.columns=[{','.join(data.columns)}]"] if data.columns else [])]


def _inspection(report: Report, min_count: int) -> str:
    """The same inspection, with this min_count."""
    data = report.wanted.data
    options = [
        ("--train-split", data.train_split, DataConfig.train_split),
        ("--val-split", data.val_split, DataConfig.val_split),
        ("--columns", ",".join(data.columns), ""),
        ("--images", data.images, ""),
        ("--min-count", str(min_count), str(MIN_COUNT)),
        ("--max-length", str(report.wanted.max_length), str(Wanted._field_defaults["max_length"])),
    ]
    typed = [word for name, value, default in options if value != default for word in (name, value)]
    typed += [f"--{name}" for name in ("thorough", "strict") if getattr(report.wanted, name)]
    return shlex.join(["vlbeit", "inspect", "data", data.root, "--data", data.name, *typed])


def _joined(command: str, words: list[str]) -> str:
    return " ".join([command, *map(shlex.quote, words)])
