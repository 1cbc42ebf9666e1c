"""`vlbeit convert`: any checkpoint that can be read to a folder of ours, ours to timm, transformers and unilm."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import torch
from safetensors.torch import load_file

from vlbeit import files
from vlbeit.adopt import words_for
from vlbeit.config import one_of
from vlbeit.errors import DataError, UsageError
from vlbeit.models.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from vlbeit.models.convert import convert
from vlbeit.models.convert.image_part import TYPED, image_part
from vlbeit.models.convert.layout import Hints, State
from vlbeit.models.convert.timm import timm_arguments, timm_config, to_timm
from vlbeit.models.convert.transformers import architecture, to_transformers
from vlbeit.models.convert.unilm import is_segmentation, to_unilm
from vlbeit.models.presets import PRESETS
from vlbeit.models.report import collapsed
from vlbeit.models.vqkd import VQKD, VQKDSpec
from vlbeit.models.writing import write_tensors

TARGETS = ("vlbeit", "timm", "transformers", "unilm")
_FILE = {".safetensors": ("timm", "unilm"), ".pth": ("timm", "unilm"), ".pt": ("timm", "unilm")}


class Conversion(NamedTuple):
    """What was done, for people: `lines` of the report, `written` files, and the command to try `next`."""

    lines: list[str]
    written: list[Path]
    next: str


def run(
    source: str,
    out: Path,
    *,
    to: str = "vlbeit",
    hints: Hints | None = None,
    allow: Sequence[str] = (),
    overwrite: bool = False,
) -> Conversion:
    """Convert a run, checkpoint folder, or foreign file or folder.

    Args:
        source: its path or name.
        out: folder to write; for timm and unilm also a file (.safetensors, .pth).
        to: vlbeit | timm | transformers | unilm.
        hints: what a foreign file cannot tell of itself; None: nothing is said.
        allow: names, or patterns with `*`, that a foreign file may have in excess. What is converted is whole:
            tensors that are missing are refused all the same.
        overwrite: write where something lies already.

    Raises:
        UsageError: `out` is taken, or nothing of the source has a place in `to`.
        DataError: the source cannot be read, or not all of it is there.
    """
    one_of("--to", to, TARGETS)
    _check_out(Path(source), out, to, overwrite)
    found = read_checkpoint(source, hints, allow)
    _check_whole(found)
    taken = found.report.lines() if found.report.layout else []
    if to == "vlbeit":
        save_checkpoint(out, found.state, found.description, found.config, found.meta)
        written = [out / name for name in ("config.json", "model.safetensors", *(f"{key}.json" for key in found.meta))]
        return Conversion(taken, written, _training(found, out))
    written, following = _write(found, out, to)
    weights = next(file for file in written if file.suffix in _FILE)
    return Conversion([*taken, *_compared(found, weights, to)], written, following)


def read_size(text: str) -> tuple[int, int]:
    """Height and width in pixels of `224` or `224x96`. Raises UsageError."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isascii() and side.isdecimal() and int(side) for side in sides):
        raise UsageError(f"--image-size={text} is no size in pixels: 224, or for another shape HEIGHTxWIDTH as 224x96")
    return (int(sides[0]), int(sides[-1]))


def _check_out(source: Path, out: Path, to: str, overwrite: bool) -> None:
    """The place is free, or may be overwritten, and is of the right kind."""
    is_file = out.suffix in _FILE
    if is_file and to not in _FILE[out.suffix]:
        raise UsageError(f"{out}: --to {to} writes a folder; name one")
    if out.exists() and out.is_dir() == is_file:
        raise UsageError(f"{out} is a {'folder' if is_file else 'file'}: name another place")
    taken = out.exists() if is_file else out.is_dir() and any(out.iterdir())
    if taken and not overwrite:
        raise UsageError(f"{out} {'exists' if is_file else 'is not empty'}: name another place, or --overwrite")
    if taken and out.resolve() in (source.resolve(), (source / "checkpoint").resolve()):
        raise UsageError(f"{out} is what is converted: name another place")


def _check_whole(found: Checkpoint) -> None:
    """Nothing is missing: a folder without it could not be loaded, and no value is there to put in its place."""
    missing = found.report.missing
    if missing:
        raise DataError(
            f"{found.path} lacks {missing[0]} ({len(missing)} missing), and what is converted must be whole: get a "
            f"whole file, or take it with new values there by vlbeit.load({json.dumps(str(found.path))}, allow=[...])"
        )


def _write(found: Checkpoint, out: Path, to: str) -> tuple[list[Path], str]:
    """The files, and what to try with them."""
    classes = found.meta.get("classes", ())
    if to == "transformers":
        to_transformers(found.description, found.state, out, classes=classes, normalize=found.normalize)
        name = architecture(image_part(found.description, to))
        written = [out / file for file in ("config.json", "model.safetensors", "preprocessor_config.json")]
        made = f"{name}.from_pretrained({json.dumps(str(out))})"
        return written, _python(f"from transformers import {name}; print({made})")
    if to == "unilm":
        sent = to_unilm(found.description, found.state)
        file = out if out.suffix in _FILE else out / "model.pth"
        spec = found.encoder_spec
        place = shlex.quote(str(file))
        if is_segmentation(sent):
            following = (
                f"in microsoft/unilm beit/semantic_segmentation: tools/dist_test.sh CONFIG {place} 1 --eval mIoU"
            )
            return [write_tensors(file, sent, key="state_dict")], following
        script = "run_class_finetuning.py --finetune" if spec and spec.vocab_size is None else "run.py with load_path="
        return [write_tensors(file, sent)], f"in microsoft/unilm: python {script} {place}"
    sent = to_timm(found.description, found.state)
    if out.suffix in _FILE:
        name, arguments = timm_arguments(found.description, found.normalize)
        words = ", ".join(f"{key}={_literal(value)}" for key, value in arguments.items())
        made = f'timm.create_model("{name}", {words}, checkpoint_path={json.dumps(str(out))})'
        return [write_tensors(out, sent)], _python(f"import timm; print({made})")
    weights = write_tensors(out / "model.safetensors", sent)
    files.write_json(out / "config.json", timm_config(found.description, classes, found.normalize), indent=2)
    made = f"timm.create_model({json.dumps(f'local-dir:{out}')}, pretrained=True)"
    return [out / "config.json", weights], _python(f"import timm; print({made})")


def _compared(found: Checkpoint, weights: Path, to: str) -> list[str]:
    """What of the source went, found by reading the written file again: bit for bit, changed, new, or not at all.

    Raises DataError where a tensor there is another than was to be written.
    """
    spec = found.encoder_spec
    assert spec is not None
    hints = Hints(num_heads=spec.num_heads, image_size=spec.image_size, text_positions=spec.text_positions)
    back = convert(_read_back(weights), hints).state
    same = {n for n, value in found.state.items() if n in back and torch.equal(back[n], value)}
    changed = [name for name in found.state if name in back and name not in same]
    folded = TYPED if to != "unilm" and "encoder.type_embed.weight" in found.state else ()
    damaged = [name for name in changed if name not in folded]
    if damaged:
        raise DataError(
            f"{weights}: {damaged[0]} is not as it was written ({len(damaged)} tensors): is the disk sound?"
        )
    lines = [f"to {to}: {len(same)} tensors, bit for bit"]
    for word, names in (
        ("changed, what is added to every picture's tokens went in", changed),
        ("new there", [name for name in back if name not in found.state]),
        (f"not in {to}", [name for name in found.state if name not in back]),
    ):
        lines += [f"{word}: {line}" for line in collapsed(names)]
    return lines


def _read_back(weights: Path) -> State:
    if weights.suffix == ".safetensors":
        return load_file(weights)
    (state,) = torch.load(weights, map_location="cpu", weights_only=True, mmap=True).values()
    return cast(State, state)


def _training(found: Checkpoint, out: Path) -> str:
    """The training that begins with a converted checkpoint."""
    spec = found.encoder_spec
    if spec is None:
        words = ["stage=mim", f"stage.tokenizer={out}", "data=imagefolder", "data.root=DIR", *_grid_words(found)]
        return shlex.join(["vlbeit", "train", *words])
    recipe = ["stage=mim", "task=classification", "data=imagefolder"]
    if spec.vocab_size is not None:
        recipe = ["stage=vl", "task=vqa", "data=vqa_v2"]
    return shlex.join(["vlbeit", "train", *recipe, "data.root=DIR", f"init={out}", *words_for(spec)])


def _grid_words(found: Checkpoint) -> list[str]:
    """The size of pictures that gives a base model as many patches as a VQ-KD has positions; a dVAE takes any."""
    if VQKD.kind not in found.description:
        return []
    grid = VQKDSpec.from_dict(found.description[VQKD.kind]).encoder.grid
    assert grid is not None
    height, width = (side * PRESETS["base"].patch_size for side in grid)
    return ["model=base", f"data.image_size={height if height == width else f'[{height},{width}]'}"]


def _literal(value: object) -> str:
    """A Python literal in double quotes: the shell's stand around it."""
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _python(code: str) -> str:
    return f"python -c {shlex.quote(code)}"
