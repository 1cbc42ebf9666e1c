"""The words of the command line: `key=value`, as Hydra writes values, with the quotes that users leave out."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from vlbeit.errors import UsageError

# What people of timm, transformers and the reference code type -> the key here. Named in messages, never accepted.
ALIASES = {
    "lr": "optim.lr",
    "learning_rate": "optim.lr",
    "min_lr": "optim.min_lr",
    "opt": "optim.name",
    "opt_betas": "optim.betas",
    "warmup_epochs": "optim.warmup_steps",
    "weight_decay": "optim.weight_decay",
    "wd": "optim.weight_decay",
    "layer_decay": "optim.layer_decay",
    "clip_grad": "optim.clip_grad",
    "max_grad_norm": "optim.clip_grad",
    "batch_size": "global_batch_size",
    "per_device_train_batch_size": "micro_batch_size",
    "update_freq": "micro_batch_size",
    "grad_accum_steps": "micro_batch_size",
    "gradient_accumulation_steps": "micro_batch_size",
    "num_train_epochs": "epochs",
    "max_steps": "steps",
    "input_size": "data.image_size",
    "img_size": "data.image_size",
    "image_size": "data.image_size",
    "data_path": "data.root",
    "data_root": "data.root",
    "dataset": "data",
    "num_workers": "data.workers",
    "drop_path": "model.drop_path",
    "layer_scale_init_value": "model.layer_scale",
    "model_ema_decay": "engine.ema_decay",
    "save_ckpt_freq": "engine.save_every",
    "amp_dtype": "precision",
    "amp": "precision",
    "fp16": "precision",
    "bf16": "precision",
    "torchcompile": "compile",
    "output_dir": "run",
    "finetune": "init",
    "pretrained": "init",
    "checkpoint": "init",
    "auto_resume": "resume",
    "normalize_targets": "task.targets",  # its name in release 0.1
    "resume_from_checkpoint": "resume",
}


class Word(NamedTuple):
    """One `key=value` of the command line."""

    key: str
    value: Any  # parsed: number, text, list, dict, bool or None
    text: str  # as typed


def parse(words: Iterable[str]) -> list[Word]:
    """Read `key=value` words; raises `UsageError` for anything else."""
    return [_parse(*_split(word)) for word in words]


def expand(words: Sequence[str]) -> list[tuple[list[str], str]]:
    """All combinations of the words with swept values (`optim.lr=1e-3,3e-4`), each with a suffix that names them."""
    parser = OverridesParser.create()
    columns: list[list[tuple[str, str]]] = []
    for word in words:
        key, text = _split(word)
        try:
            override = parser.parse_override(word)
        except HydraException:  # not a sweep: a value that needs quotes, which `parse` gives it
            columns.append([(word, "")])
            continue
        if override.is_sweep_override():
            last = key.rpartition(".")[2]
            values = [str(value) for value in override.sweep_string_iterator()]
            columns.append([(f"{key}={value}", "-" + re.sub(r"[^\w.+-]+", "_", last + value)) for value in values])
        else:
            columns.append([(f"{key}={text}", "")])
    return [
        ([word for word, _ in choice], "".join(suffix for _, suffix in choice))
        for choice in itertools.product(*columns)
    ]


def unknown_key(key: str, keys: Iterable[str], hint: str) -> UsageError:
    """The error for a key that does not exist: names what was probably meant, then how to list all keys."""
    keys = list(keys)
    last = key.rpartition(".")[2]
    lasts = {name.rpartition(".")[2]: name for name in reversed(keys)}
    close = [name for name in keys if name.rpartition(".")[2] == last]
    if key in ALIASES or last in ALIASES:
        close = [ALIASES.get(key) or ALIASES[last]]
    close = close or difflib.get_close_matches(key, keys, n=2, cutoff=0.75)
    close = close or [lasts[name] for name in difflib.get_close_matches(last, list(lasts), n=1)]
    guess = f"did you mean {' or '.join(close[:3])}? " if close else ""
    return UsageError(f"unknown key {key!r}: {guess}{hint}")


def _split(word: str) -> tuple[str, str]:
    """Key and value of a word, both as typed."""
    if any("\ud800" <= letter <= "\udfff" for letter in word):  # bytes that Python could not decode
        raise UsageError(f"{word!r} is not UTF-8: rename the file or folder")
    if word.startswith("-"):
        if close := difflib.get_close_matches(word, ("--dry-run", "--multirun", "--profile", "--help"), 1, 0.8):
            raise UsageError(f"{word} is not an option: did you mean {close[0]}?")
        name, _, value = word.lstrip("-").partition("=")
        name = ALIASES.get(name.replace("-", "_"), name)
        raise UsageError(f"{word} is not an option: settings are written key=value, here {name}={value or 'VALUE'}")
    key, equals, text = word.partition("=")
    if not equals:
        raise UsageError(f"{word!r} is not key=value, such as stage=mim or optim.lr=1e-3")
    if key == "hydra/launcher":
        raise UsageError(f"{word}: runs go into a queue with --multirun")
    if not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", key):
        raise UsageError(f"{word!r}: {key!r} is not a key; keys are written section.name=value")
    return key, text


def _parse(key: str, text: str) -> Word:
    parser = OverridesParser.create()
    try:
        return Word(key, parser.parse_override(f"{key}={_quoted(text)}").value(), text)
    except HydraException as error:
        if text.startswith("[") and text.endswith("]"):  # a list of paths, perhaps, with signs of Hydra's grammar
            items = re.findall(r"(?:\{[^{}]*\}|[^,])+", text[1:-1])
            if len(items) and not any(sign in text[1:-1] for sign in "[]'\""):
                return Word(key, [item.strip() for item in items], text)
        raise UsageError(f"{key}={text} cannot be read: {str(error).splitlines()[0]}") from error


def _quoted(text: str) -> str:
    """The value with quotes around it where Hydra's grammar would read `= , ( )` and the like as its own signs."""
    wrapped = len(text) > 1 and (text[0], text[-1]) in {("[", "]"), ("{", "}"), ("'", "'"), ('"', '"')}
    if wrapped or re.fullmatch(r"[\w/+.$%*@?|: -]*", text, re.ASCII):
        return text
    return QuotedString(text=text, quote=Quote.single).with_quotes()
