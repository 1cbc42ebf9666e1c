"""`vlbeit convert`: any checkpoint that can be read to a folder of ours, ours to timm, transformers and unilm."""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save

from vlbeit import files
from vlbeit.config import DataConfig, one_of
from vlbeit.errors import DataError, UsageError
from vlbeit.models.checkpoint import checkpoint_folder, read_checkpoint, save_checkpoint
from vlbeit.models.convert import convert
from vlbeit.models.convert.beside import read_beside
from vlbeit.models.convert.image_part import image_part
from vlbeit.models.convert.layout import Hints, State
from vlbeit.models.convert.timm import timm_config, to_timm
from vlbeit.models.convert.transformers import architecture, to_transformers
from vlbeit.models.convert.unilm import to_unilm
from vlbeit.models.presets import PRESETS
from vlbeit.models.report import LoadReport
from vlbeit.models.spec import EncoderSpec
from vlbeit.models.weights import read_weights
from vlbeit.types import Meta

TARGETS = ("vlbeit", "timm", "transformers", "unilm")
_FILE = {".safetensors": ("timm", "unilm"), ".pth": ("timm", "unilm"), ".pt": ("timm", "unilm")}


class Source(NamedTuple):
    """A checkpoint to be converted; `report` has the lines about what was taken from a foreign file."""

    path: Path
    description: dict[str, Any]
    config: dict[str, Any]
    meta: Meta
    state: State
    report: list[str]

    @property
    def normalize(self) -> str:
        """`data.normalize` of its run, or what its file tells."""
        told = self.description.get("normalize", DataConfig.normalize)
        return self.config.get("data", {}).get("normalize", told)

    @property
    def spec(self) -> EncoderSpec | None:
        """Of its encoder; None for a tokenizer."""
        values = self.description.get("encoder")
        return None if values is None else EncoderSpec.from_dict(values)


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
    overwrite: bool,
) -> Conversion:
    """Convert a run, checkpoint folder, or foreign file or folder.

    Args:
        source: its path.
        out: folder to write; for timm and unilm also a file (.safetensors, .pth).
        to: vlbeit | timm | transformers | unilm.
        hints: what a foreign file cannot tell of itself.
        allow: patterns of names that may be missing or without a place.
        overwrite: write where something lies already.

    Raises:
        UsageError: `out` is taken, or nothing of the source has a place in `to`.
        DataError: the source cannot be read, or not all of it is there.
    """
    one_of("--to", to, TARGETS)
    path = _located(source)
    _check_out(path, out, to, overwrite)
    found = _read(path, hints or Hints(), allow)
    if to == "vlbeit":
        save_checkpoint(out, found.state, found.description, found.config, found.meta)
        written = [out / name for name in ("config.json", "model.safetensors", *(f"{key}.json" for key in found.meta))]
        return Conversion(found.report, written, _training(found, out))
    sent, written, following = _write(found, out, to)
    return Conversion([*found.report, *_compared(found, sent, to)], written, following)


def _located(source: str) -> Path:
    path = Path(source)
    if not path.exists():
        raise DataError(f"{source}: no such file or folder: name a checkpoint, or a run of `vlbeit runs`")
    return path


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


def _read(path: Path, hints: Hints, allow: Sequence[str]) -> Source:
    """A checkpoint of ours, or a foreign one in our terms, its report checked."""
    if _is_ours(path):
        own = read_checkpoint(path)
        return Source(path, own.description, own.config, own.meta, own.state, [])
    hints, classes = read_beside(path, hints)
    converted = convert(read_weights(path, allow=allow), hints)
    names = list(converted.state)
    report = LoadReport(names, [], converted.sources, converted.missing, converted.unexpected)
    report.check(str(path), allow=allow)
    meta: Meta = {"classes": list(classes)} if classes else {}
    lines = [f"{path} is a checkpoint of {converted.layout}", *report.lines()]
    return Source(path, converted.description, {}, meta, converted.state, lines)


def _is_ours(path: Path) -> bool:
    if path.is_file():
        return False
    try:
        config = checkpoint_folder(path) / "config.json"
    except DataError:
        return False
    text = config.read_text(encoding="utf-8", errors="replace")
    return all(f'"{key}"' in text for key in ("description", "meta", "sha256"))


def _write(found: Source, out: Path, to: str) -> tuple[State, list[Path], str]:
    """The tensors that went, the files, and what to try with them."""
    classes = found.meta.get("classes", ())
    if to == "transformers":
        sent = to_transformers(found.description, found.state, out, classes=classes, normalize=found.normalize)
        name = architecture(image_part(found.description, to))
        written = [out / file for file in ("config.json", "model.safetensors", "preprocessor_config.json")]
        return sent, written, _python(f"from transformers import {name}; print({name}.from_pretrained({str(out)!r}))")
    if to == "unilm":
        sent = to_unilm(found.description, found.state)
        file = out if out.suffix in _FILE else out / "model.pth"
        spec = found.spec
        script = "run_class_finetuning.py --finetune" if spec and spec.vocab_size is None else "run.py with load_path="
        return sent, [_save(sent, file)], f"in microsoft/unilm: python {script} {shlex.quote(str(file))}"
    sent = to_timm(found.description, found.state)
    config = timm_config(found.description, classes, found.normalize)
    if out.suffix in _FILE:
        arguments = {"num_classes": config["num_classes"], **config["model_args"]}
        words = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        made = f"timm.create_model({config['architecture']!r}, {words}, checkpoint_path={str(out)!r})"
        return sent, [_save(sent, out)], _python(f"import timm; print({made})")
    weights = _save(sent, out / "model.safetensors")
    files.write_json(out / "config.json", config, indent=2)
    made = f"timm.create_model({f'local-dir:{out}'!r}, pretrained=True)"
    return sent, [out / "config.json", weights], _python(f"import timm; print({made})")


def _save(state: State, file: Path) -> Path:
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    if file.suffix == ".safetensors":
        return files.write_bytes(file, save(tensors, metadata={"format": "pt"}))
    buffer = io.BytesIO()
    torch.save({"model": tensors}, buffer)
    return files.write_bytes(file, buffer.getvalue())


def _compared(found: Source, sent: State, to: str) -> list[str]:
    """What of the source went, found by reading back what was written: bit for bit, changed, new, or not at all."""
    spec = found.spec
    assert spec is not None
    hints = Hints(num_heads=spec.num_heads, image_size=spec.image_size, text_positions=spec.text_positions)
    back = convert(sent, hints).state
    same = [n for n, value in found.state.items() if n in back and torch.equal(back[n], value)]
    changed = [name for name in found.state if name in back and name not in set(same)]
    lines = [f"to {to}: {len(same)} tensors, bit for bit"]
    for word, names in (
        ("changed, what is added to every picture's tokens went in", changed),
        ("new there", [name for name in back if name not in found.state]),
        (f"not in {to}", [name for name in found.state if name not in back]),
    ):
        lines += [f"{word}: {line}" for line in _collapsed(names)]
    return lines


def _collapsed(names: Iterable[str]) -> list[str]:
    """Names that differ in a number alone as one, with how many they are."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", name), []).append(name)
    return [found[0] if len(found) == 1 else f"{pattern} ({len(found)})" for pattern, found in groups.items()]


def _training(found: Source, out: Path) -> str:
    """The training that begins with a converted checkpoint."""
    place, spec = shlex.quote(str(out)), found.spec
    if spec is None:
        return f"vlbeit train stage=mim stage.tokenizer={place} data=imagefolder data.root=DIR"
    words = [f"model={_preset(spec)}", f"init={place}"]
    if spec.vocab_size is None:
        return f"vlbeit train stage=mim task=classification {' '.join(words)} data=imagefolder data.root=DIR"
    return f"vlbeit train stage=vl task=vqa {' '.join(words)} data=vqa_v2 data.root=DIR"


def _preset(spec: EncoderSpec) -> str:
    """The published size with these numbers; else the base one, its numbers changed."""
    keys = ("embed_dim", "depth", "num_heads", "patch_size")
    ours = {key: getattr(spec, key) for key in keys}
    for preset in PRESETS.values():
        if ours == {key: getattr(preset, key) for key in keys}:
            return preset.name
    base = PRESETS["base"]
    return " ".join(["base", *(f"model.{key}={value}" for key, value in ours.items() if value != getattr(base, key))])


def _python(code: str) -> str:
    return f"python -c {shlex.quote(code)}"
