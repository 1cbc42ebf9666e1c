"""The `checkpoint/` folder that users load: weights, what they are, and what the run learned from its data.

config.json         what the parts are, the run's config, the SHA-256 of the weights; written last
model.safetensors   every weight of the objective: encoder.*, heads.*, ...
answers.json, classes.json, tokenizer.json      one file per key of the meta
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from vlbeit import __version__, files
from vlbeit.errors import DataError, UsageError
from vlbeit.models.convert import convert
from vlbeit.models.convert.dvae import join_pair
from vlbeit.models.encoder import MoMEEncoder, join
from vlbeit.models.heads import KINDS, Heads
from vlbeit.models.image_tokenizer import ImageTokenizer
from vlbeit.models.spec import EncoderSpec
from vlbeit.models.tokenizer_kinds import build_tokenizer, kind_of
from vlbeit.types import Meta, Tokens

FORMAT = 1
_HUB_NAMES = ("model.safetensors", "pytorch_model.bin")


@dataclass
class Checkpoint:
    """A checkpoint folder as read from disk."""

    path: Path
    description: dict[str, Any]
    config: dict[str, Any]
    meta: Meta
    state: dict[str, Tensor]

    @property
    def encoder_spec(self) -> EncoderSpec | None:
        """The encoder's spec; None for a tokenizer."""
        return spec_of(self.description, self.path)


@dataclass
class Model:
    """A trained encoder with the heads found beside it, in evaluation mode on the CPU."""

    encoder: MoMEEncoder | None
    heads: Heads
    tokenizer: ImageTokenizer | None
    meta: Meta
    config: dict[str, Any]

    @torch.no_grad()
    def encode(
        self, image: Tensor | None = None, text_ids: Tensor | None = None, text_keep: Tensor | None = None
    ) -> Tokens:
        """Any of the three passes: final, normalised tokens, text first when both are given.

        Args:
            image: [B, 3, height, width], normalised as in training.
            text_ids: [B, T]; text_keep: [B, T], False on padding.

        Raises:
            ValueError: neither is given, or the encoder lacks the part.
        """
        if self.encoder is None:
            raise ValueError("this checkpoint has no encoder: it is a tokenizer, `model.tokenizer`")
        parts = []
        if text_ids is not None:
            parts.append(self.encoder.embed_text(text_ids, text_keep))
        if image is not None:
            parts.append(self.encoder.embed_image(image))
        if not parts:
            raise ValueError("encode() needs an image, text_ids or both")
        return self.encoder(join(*parts) if len(parts) > 1 else parts[0])


def save_checkpoint(
    folder: str | Path,
    state: dict[str, Tensor],
    description: dict[str, Any],
    config: dict[str, Any],
    meta: Meta,
) -> Path:
    """Write a checkpoint folder; every file is replaced atomically, config.json last with the weights' hash."""
    folder = Path(folder)
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    path = files.write_bytes(folder / "model.safetensors", save(weights, metadata={"format": "pt"}))
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


def is_foreign(path: str | Path) -> bool:
    """Whether weights from elsewhere lie there: a file, DALL-E's two files, or a folder of transformers."""
    path = Path(path)
    config = path / "config.json"
    of_transformers = config.is_file() and '"model_type"' in config.read_text(encoding="utf-8", errors="replace")
    return path.is_file() or (path / "encoder.pkl").is_file() or of_transformers


def _foreign_weights(path: Path) -> dict[str, Tensor]:
    if (path / "encoder.pkl").is_file():
        parts = [_foreign_weights(file) for name in ("encoder", "decoder") if (file := path / f"{name}.pkl").is_file()]
        return parts[0] if len(parts) == 1 else join_pair(*parts)
    file = next((path / name for name in _HUB_NAMES if (path / name).is_file()), path)
    if file.suffix == ".safetensors":
        return load_file(file)
    values = torch.load(file, map_location="cpu", weights_only=True)
    return values.get("model", values)


def read_head(path: str | Path) -> dict[str, Any]:
    """`config.json` of a run or checkpoint folder, no weights. Raises DataError naming the file."""
    if is_foreign(path):
        return {"description": read_checkpoint(path).description, "config": {}, "meta": []}
    file = checkpoint_folder(path) / "config.json"
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


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a run or checkpoint folder; the weights' hash is compared. Raises DataError naming the file."""
    if is_foreign(path):
        found = convert(_foreign_weights(Path(path)))
        return Checkpoint(Path(path), found.description, {}, {}, found.state)
    folder, head = checkpoint_folder(path), read_head(path)
    meta = read_meta(folder, head["meta"])
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise DataError(f"{weights} is missing: copy the folder again")
    if files.sha256(weights) != head["sha256"]:
        raise DataError(f"{weights} differs from the hash in config.json: damaged, or half copied; copy it again")
    return Checkpoint(folder, head["description"], head["config"], meta, load_file(weights))


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


def load(path: str | Path) -> Model:
    """Load a run or checkpoint folder: encoder, heads, meta and config. Nothing named in the file is imported."""
    found = read_checkpoint(path)
    spec = found.encoder_spec
    encoder = None if spec is None else MoMEEncoder(spec)
    known = {n: s for n, s in found.description.get("heads", {}).items() if s.get("kind") in KINDS}
    heads = Heads(known)
    tokenizer, prefix_of_it = _tokenizer(found.description)
    for prefix, module in (("encoder.", encoder), ("heads.", heads), (prefix_of_it, tokenizer)):
        if module is not None:
            _fill(module, found, prefix)
    return Model(encoder, heads, tokenizer, found.meta, found.config)


def _tokenizer(description: dict[str, Any]) -> tuple[ImageTokenizer | None, str]:
    """The tokenizer that a checkpoint is, or that a mim run carries along, and what its weights' names begin with."""
    for part, before in ((description, ""), (description.get("target", {}), "target.")):
        kind = kind_of(part)
        if kind is not None:
            return build_tokenizer(part), f"{before}{kind}."
    return None, ""


def _fill(module: nn.Module, found: Checkpoint, prefix: str) -> None:
    own = set(module.state_dict())
    state = {name.removeprefix(prefix): v for name, v in found.state.items() if name.startswith(prefix)}
    missing = sorted(own - set(state))
    if missing:
        raise DataError(f"{found.path}/model.safetensors: lacks {prefix}{missing[0]} ({len(missing)} tensors)")
    module.load_state_dict({name: state[name] for name in own})
    module.eval()
