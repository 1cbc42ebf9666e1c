"""The `checkpoint/` folder that users load: weights, what they are, and what the run learned from its data.

config.json         what the parts are, the run's config, the SHA-256 of the weights; written last
model.safetensors   every weight of the objective: encoder.*, heads.*, ...
answers.json, classes.json, tokenizer.json      one file per key of the meta

Files and folders of others (`vlbeit.models.foreign`) are read into the same `Checkpoint`, without config and meta.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vlbeit import __version__, files
from vlbeit.config import DataConfig
from vlbeit.errors import DataError, UsageError
from vlbeit.models import fetch
from vlbeit.models.convert.labels import labels_beside
from vlbeit.models.convert.layout import Hints
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.foreign import from_state, is_foreign, read_description, read_foreign
from vlbeit.models.heads import KINDS, Heads
from vlbeit.models.image_tokenizer import ImageTokenizer
from vlbeit.models.known import KNOWN
from vlbeit.models.model import Model
from vlbeit.models.report import LoadReport
from vlbeit.models.spec import EncoderSpec
from vlbeit.models.tokenizer_kinds import build_tokenizer, kind_of
from vlbeit.models.writing import write_tensors
from vlbeit.types import Meta

FORMAT = 1


@dataclass
class Checkpoint:
    """A checkpoint as read from disk. One of others has no config ({}), and of the meta the class names at most."""

    path: Path
    description: dict[str, Any]
    config: dict[str, Any]
    meta: Meta
    state: dict[str, Tensor]
    report: LoadReport = field(default_factory=LoadReport)

    @property
    def encoder_spec(self) -> EncoderSpec | None:
        """The encoder's spec; None for a tokenizer."""
        return spec_of(self.description, self.path)

    @property
    def normalize(self) -> str:
        """`data.normalize` of its pictures."""
        told = self.description.get("normalize", DataConfig.normalize)
        return (self.config.get("data") or {}).get("normalize", told)


def save_checkpoint(
    folder: str | Path,
    state: dict[str, Tensor],
    description: dict[str, Any],
    config: dict[str, Any],
    meta: Meta,
) -> Path:
    """Write a checkpoint folder; every file is replaced atomically, config.json last with the weights' hash."""
    folder = Path(folder)
    path = write_tensors(folder / "model.safetensors", state)
    for name, value in meta.items():
        files.write_json(folder / f"{name}.json", value)
    files.write_json(
        folder / "config.json",
        {
            "format": FORMAT,
            "vlbeit": __version__,
            "description": description,
            "config": config,
            "meta": sorted(meta),
            "sha256": files.sha256(path),
        },
        indent=1,
    )
    return folder


def checkpoint_folder(path: str | Path) -> Path:
    """The `checkpoint/` folder of a run, or the folder itself. Raises DataError where there is none."""
    path = Path(path)
    for folder in (path / "checkpoint", path):
        if (folder / "config.json").is_file():
            return folder
    if not path.exists():
        raise DataError(f"{path}: no such run or checkpoint; `vlbeit runs` lists the runs here")
    raise DataError(f"{path}: holds no checkpoint/config.json; has the run finished its first evaluation?")


def locate(source: str | Path) -> tuple[Path, Hints]:
    """Where a checkpoint lies, and what is known of it beside its tensors.

    A path, or the name of a published checkpoint or of a repository of the hub (`org/name`), which is fetched if need
    be. Raises as `vlbeit.models.fetch.locate`, and UsageError for a file of a checkpoint of ours; a path that is not
    there is for the reader to refuse.
    """
    name, path = str(source), Path(source).expanduser()
    within_a_folder = path.parent != Path() and (path.parts[0] == "runs" or Path(path.parts[0]).exists())
    if isinstance(source, Path) or path.exists() or (within_a_folder and name not in KNOWN):
        _refuse_part_of_ours(path)
        return path, Hints()
    known = Hints(**KNOWN[name].hints) if name in KNOWN else Hints()
    return fetch.locate(name, report=lambda line: print(line, file=sys.stderr)), known


def _refuse_part_of_ours(path: Path) -> None:
    """Weights of ours are nothing without the config.json beside them, which says what they are."""
    config = path.parent / "config.json"
    if path.is_file() and path.name == "model.safetensors" and config.is_file() and not is_foreign(path.parent):
        raise UsageError(f"{path} is a part of the checkpoint {path.parent}: name the folder")


def read_head(path: str | Path) -> dict[str, Any]:
    """`config.json` of a run or checkpoint folder, no weights; of a checkpoint of others, what would stand there.

    Raises DataError naming the file.
    """
    place, hints = locate(path)
    if is_foreign(place):
        description = read_description(place, hints)
        return {"format": FORMAT, "description": description, "config": {}, "meta": [], "sha256": ""}
    file = checkpoint_folder(place) / "config.json"
    try:
        head = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot read the checkpoint ({error}); copy the folder again") from error
    kinds = {"format": int, "description": dict, "config": dict, "meta": list, "sha256": str}
    wrong = [key for key, kind in kinds.items() if not isinstance(head, dict) or not isinstance(head.get(key), kind)]
    if wrong:
        raise DataError(f"{file} is no checkpoint of vlbeit: it lacks {', '.join(wrong)}; name another folder")
    if head["format"] > FORMAT:
        raise DataError(f"{file}: format {head['format']} is newer than this vlbeit reads ({FORMAT}): update vlbeit")
    return head


def spec_of(description: dict[str, Any], origin: str | Path) -> EncoderSpec | None:
    """The encoder's spec of a checkpoint's description; None for a tokenizer. DataError where it is damaged."""
    values = description.get("encoder")
    try:
        return None if values is None else EncoderSpec.from_dict(values)
    except (TypeError, ValueError, AttributeError, UsageError) as error:
        raise DataError(f"{origin}/config.json: the encoder is not described rightly ({error})") from error


def read_checkpoint(path: str | Path, hints: Hints | None = None, allow: Sequence[str] = ()) -> Checkpoint:
    """Read a run or checkpoint folder (its weights' hash is compared), or a file or folder of others.

    Args:
        hints: what the tensors of a foreign file cannot tell.
        allow: names, or patterns with `*`, that a foreign file may lack or have in excess.

    Raises:
        DataError: it cannot be read, or lacks something; names the file.
        UsageError: a hint is needed, or given for a run of ours, which needs none.
    """
    place, known = locate(path)
    if is_foreign(place):
        found = read_foreign(place, known if hints is None else hints.over(known), allow)
        return Checkpoint(place, found.description, {}, labels_beside(place), found.state, found.report)
    if hints is not None:
        checkpoint_folder(place)
        raise UsageError(f"{path} is a checkpoint of vlbeit, which says all of itself: leave num_heads= and such out")
    folder, head = checkpoint_folder(place), read_head(place)
    meta = read_meta(folder, head["meta"])
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise DataError(f"{weights} is missing: copy the folder again")
    if files.sha256(weights) != head["sha256"]:
        raise DataError(f"{weights} differs from the hash in config.json: damaged, or half copied; copy it again")
    state = load_file(weights)
    return Checkpoint(folder, head["description"], head["config"], meta, state, LoadReport(loaded=list(state)))


def read_meta(folder: Path, names: Iterable[str] | None = None) -> Meta:
    """The meta in a `checkpoint/` folder, also before its first weights: the named files, else all there are."""
    if names is None:
        names = sorted(path.stem for path in folder.glob("*.json") if path.name != "config.json")
    meta = {}
    for file in (folder / f"{name}.json" for name in names):
        try:
            meta[file.stem] = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{file} cannot be read ({error}): copy the folder again") from error
    return meta


@contextmanager
def meta_errors(folder: Path) -> Iterator[None]:
    """Name the file of a key of the meta that is asked for and is not in the folder."""
    try:
        yield
    except KeyError as error:
        file = folder / f"{error.args[0]}.json"
        if file.exists():
            raise
        raise DataError(f"{file} is missing, and the run needs it: restore it from a copy of the run") from error


def load(
    source: str | Path | Mapping[str, Any],
    *,
    num_heads: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    text_positions: int | None = None,
    early_layers: int | None = None,
    normalize: str | None = None,
    allow: Sequence[str] = (),
) -> Model:
    """Load a trained model: every expert and head that its weights have. Nothing named in a file is imported or run.

    Says on standard error, and in `model.report`, what became of the tensors.

    Args:
        source: a run or checkpoint folder, a file or folder of others (their layout is recognised), the name of a
            published checkpoint (`vlbeit models`) or of a repository of the hub, or a state dict.
        num_heads: of a model with absolute positions that is no published size.
        image_size: side in pixels or (height, width), where the position table does not tell it.
        text_positions: longest text of a VLMo table, where it is not the published 196.
        early_layers: after how many blocks BEiT v2's patch aggregation taps; None: three below the top, as published.
        normalize: half | imagenet: how its pictures are normalised; None: as usual for the layout. Fine-tuned files of
            BEiT v1 (half) and v2 (imagenet) look the same: half is taken, but for published names, which tell.
        allow: names, or patterns with `*`, that a foreign file may lack or have in excess.

    Raises:
        DataError: it cannot be read, is in no known layout, or lacks something; one line that names it.
        UsageError: one of the arguments above is needed, or contradicts the tensors.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    given = Hints(num_heads, size, text_positions, early_layers, normalize)
    if isinstance(source, Mapping):
        converted = from_state(source, given, allow)
        found = Checkpoint(Path("state dict"), converted.description, {}, {}, converted.state, converted.report)
    else:
        found = read_checkpoint(source, None if given == Hints() else given, allow)
    model = _built(found)
    print(f"{found.path}: {model.report.line()}", file=sys.stderr)
    return model


def _built(found: Checkpoint) -> Model:
    spec = found.encoder_spec
    known = {n: s for n, s in found.description.get("heads", {}).items() if s.get("kind") in KINDS}
    with without_initial_values(spec, found.report):
        encoder = None if spec is None else MoMEEncoder(spec)
        heads = Heads(known)
    tokenizer, prefix_of_it = _tokenizer(found.description)
    built = (("encoder.", encoder), ("heads.", heads), (prefix_of_it, tokenizer))
    parts: dict[str, nn.Module] = {prefix: module for prefix, module in built if module is not None}
    taken = {name for prefix, module in parts.items() for name in _fill(module, found, prefix)}
    # what a run of ours has beyond these, such as the head of a plug-in
    report = replace(found.report, loaded=[name for name in found.report.loaded if name in taken])
    report.unexpected = [*report.unexpected, *found.state]
    return Model(
        encoder,
        heads,
        tokenizer,
        found.meta,
        found.config,
        found.normalize,
        report,
        description=found.description,
        origin=found.path,
        parts=parts,
    )


def _tokenizer(description: dict[str, Any]) -> tuple[ImageTokenizer | None, str]:
    """The image tokenizer that a checkpoint is, or that a mim run carries along, and what its names begin with."""
    for part, before in ((description, ""), (description.get("target", {}), "target.")):
        kind = kind_of(part)
        if kind is not None:
            return build_tokenizer(part), f"{before}{kind}."
    return None, ""


def without_initial_values(spec: EncoderSpec | None, report: LoadReport) -> AbstractContextManager[Any]:
    """Modules are built without drawing weights, which takes seconds, where the file has them all.

    A foreign tower has buffers that no file keeps: it is built as ever.
    """
    own = spec is None or spec.image_tower == spec.text_tower == "own"
    return torch.device("meta") if own and not report.missing else nullcontext()


def _fill(module: nn.Module, found: Checkpoint, prefix: str) -> set[str]:
    """The weights below `prefix`; what the report calls missing was allowed to be, and keeps its initial values.

    They are copied, since they may be mapped from the file or the caller's, and leave `found.state` one by one: it is
    never there twice. Returns their names in the checkpoint.
    """
    own = {f"{prefix}{name}": value.dtype for name, value in module.state_dict().items()}
    missing = sorted(own.keys() - found.state.keys() - set(found.report.missing))
    if missing:
        raise DataError(f"{found.path}/model.safetensors: lacks {missing[0]} ({len(missing)} tensors)")
    taken = own.keys() & found.state.keys()
    given = {name.removeprefix(prefix): found.state.pop(name).to(own[name], copy=True) for name in taken}
    module.load_state_dict(given, strict=False, assign=True)
    module.eval()
    return taken
