"""Pre-trained networks of other libraries in the place of our patch and word embeddings.

`vlbeit.models.networks` has a module per library: images give a feature map, texts a vector per token. A linear adapter
`proj` brings those to the encoder's width. What a network is built of is kept as `facts` (JSON values) in the spec and
in the run's meta, so that a checkpoint needs neither a hub nor the folder that the network came from.

Legend: B batch, C width of the network, N patches, T text tokens, D width of the encoder.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from vlbeit import hub
from vlbeit.config import LIBRARIES, ModelConfig, RunConfig, foreign_tower, require
from vlbeit.errors import UsageError
from vlbeit.models.spec import EncoderSpec
from vlbeit.types import Meta

Facts = dict[str, Any]
IMAGE_TOWER = "patch_embed.tower"
TEXT_TOWER = "text_embed.tower"
_OFFLINE = "without network it takes cached weights, a local path, or @none for random ones"


class TowerPatches(nn.Module):
    """A foreign image tower and its adapter, where `PatchEmbed` stands else.

    `facts` may say how the pictures that come in are normalised (`input_mean`, `input_std`): they are then brought to
    the network's own `mean` and `std`. Raises UsageError where it cannot be built for the size of the spec.
    """

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        assert spec.image_size is not None
        height, width = spec.image_size
        with _named(f"model.image_tower={spec.image_tower}", f"data.image_size={height}x{width}"):
            facts = _completed("image", spec.image_tower, spec.towers.get("image", {}))
            self.tower = _build("image", spec.image_tower, facts, spec.image_size)
            map_BCyx = _freeze_unused(self.tower, torch.zeros(1, 3, height, width))
        self.trained = spec.train_towers
        _freeze(self, self.trained)
        self.facts = {**facts, "grid": list(map_BCyx.shape[2:])}
        self.proj = nn.Linear(map_BCyx.shape[1], spec.embed_dim)
        mean, std = torch.tensor(facts["mean"]), torch.tensor(facts["std"])
        input_mean, input_std = (torch.tensor(facts.get(f"input_{name}", facts[name])) for name in ("mean", "std"))
        self.register_buffer("scale", (input_std / std)[:, None, None], persistent=False)
        self.register_buffer("shift", ((input_mean - mean) / std)[:, None, None], persistent=False)

    def forward(self, image_BCHW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """[B, 3, height, width] -> [B, N, D] and the grid (rows, columns)."""
        map_BCyx = self.features(image_BCHW)
        return self.proj(map_BCyx.flatten(2).transpose(1, 2)), (map_BCyx.shape[-2], map_BCyx.shape[-1])

    def features(self, image_BCHW: Tensor) -> Tensor:
        """[B, 3, height, width], normalised as the run does -> the network's own map [B, C, rows, columns]."""
        with nullcontext() if self.trained else torch.no_grad():
            return self.tower(self.own_image(image_BCHW))

    def train(self, mode: bool = True) -> TowerPatches:
        """A frozen tower stays in evaluation."""
        super().train(mode)
        _freeze(self, self.trained)
        return self

    def own_image(self, image_BCHW: Tensor) -> Tensor:
        """The pictures of the run as the network was trained on them."""
        return image_BCHW * self.scale + self.shift


class TowerWords(nn.Module):
    """A foreign text tower and its adapter, where `TextEmbed` stands else."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        with _named(f"model.text_tower={spec.text_tower}"):
            self.facts = _completed("text", spec.text_tower, spec.towers.get("text", {}))
            self.tower = _build("text", spec.text_tower, self.facts, spec.vocab_size)
            x_BTC = _freeze_unused(self.tower, torch.zeros(1, 2, dtype=torch.long))
        self.trained = spec.train_towers
        _freeze(self, self.trained)
        self.proj = nn.Linear(x_BTC.shape[-1], spec.embed_dim)

    def forward(self, ids_BT: Tensor, keep_BT: Tensor | None = None) -> Tensor:
        """[B, T] -> [B, T, D]; False in `keep_BT` marks padding."""
        with nullcontext() if self.trained else torch.no_grad():
            x_BTC = self.tower(ids_BT, keep_BT)
        return self.proj(x_BTC)

    def train(self, mode: bool = True) -> TowerWords:
        """A frozen tower stays in evaluation."""
        super().train(mode)
        _freeze(self, self.trained)
        return self


def tower_meta(config: RunConfig, inherited: Meta) -> Meta:
    """`towers`, by modality, as a run's meta keeps them; {} where both are our own.

    A tower that the run before has too is taken from its meta (`inherited`): its source may be gone by now.
    Raises UsageError for a tower that is not to be had, or takes only shorter texts than `text.max_length`.
    """
    known, towers = inherited.get("towers", {}), {}
    for modality, value in (("image", config.model.image_tower), ("text", config.model.text_tower)):
        tower = foreign_tower(value)
        if tower is None:
            continue
        facts = known.get(modality, {})
        with _named(f"model.{modality}_tower={value}"):
            facts = facts if facts.get("network") == tower.network else _completed(modality, value, {})
        longest = facts.get("longest") or config.text.max_length
        require(
            config.text.max_length <= longest,
            f"text.max_length={config.text.max_length} is longer than the {longest} tokens of model.text_tower={value}",
        )
        towers[modality] = facts
    return {"towers": towers} if towers else {}


def load_pretrained(encoder: nn.Module, model: ModelConfig, source: EncoderSpec | None = None) -> list[str]:
    """Give the encoder's foreign towers their pre-trained weights; returns the keys of those that got them.

    A tower that `source`, the encoder that the run starts from, has too is left alone: its weights come from there.
    Raises UsageError where the weights are not to be had.
    """
    spec: Any = encoder.spec
    parts = (("image", IMAGE_TOWER, spec.image_size), ("text", TEXT_TOWER, spec.vocab_size))
    loaded = []
    for modality, place, size in parts:
        own, value = getattr(spec, f"{modality}_tower"), getattr(model, f"{modality}_tower")
        tower = foreign_tower(value)
        if own == "own" or tower is None or tower.weights == "none":
            continue
        if source is not None and getattr(source, f"{modality}_tower") == own:
            continue
        with _named(f"model.{modality}_tower={value}", "no weights", _OFFLINE):
            pretrained = _build(modality, value, spec.towers[modality], size, tower.weights)
            encoder.get_submodule(place).load_state_dict(pretrained.state_dict())
        loaded.append(f"model.{modality}_tower={value}")
    return loaded


def image_network(value: str, size: tuple[int, int], setting: str) -> tuple[nn.Module, Facts]:
    """A pre-trained image network of another library, by its name, and its facts, `mean` and `std` among them.

    It gives a map [B, C, rows, columns] of pictures normalised by those. Raises UsageError, which begins with the
    `setting`, KEY=VALUE, where it cannot be had.
    """
    with _named(setting, "", _OFFLINE.partition(", or @none")[0]):
        facts = _completed("image", value, {})
        tower = foreign_tower(value)
        assert tower is not None
        return _build("image", value, facts, size, tower.weights), facts


def resized(state: dict[str, Tensor], source: EncoderSpec, size: tuple[int, int]) -> dict[str, Tensor]:
    """The weights of `source`'s foreign image tower, under the names of an objective, for another picture size."""
    prefix = f"encoder.{IMAGE_TOWER}."
    tower = _build("image", source.image_tower, source.towers["image"], source.image_size)
    tower.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    tower.resize(size)
    return {f"{prefix}{name}": value for name, value in tower.state_dict().items()}


def _network(modality: str, value: str) -> tuple[Any, str, str]:
    """Class, name and weights of a foreign tower."""
    tower = foreign_tower(value)
    assert tower is not None and tower.library in LIBRARIES[modality], value
    library = import_module(f"vlbeit.models.networks.{tower.library}")  # takes seconds: only where it is used
    return getattr(library, f"{modality.capitalize()}Network"), tower.name, tower.weights


def _build(modality: str, value: str, facts: Facts, size: Any, weights: str = "none") -> Any:
    network, name, _ = _network(modality, value)
    return network(name, facts, size, weights)


def _completed(modality: str, value: str, facts: Facts) -> Facts:
    """Facts as they are, or with what the library says where they do not name the network yet."""
    network, name, weights = _network(modality, value)
    if "network" in facts:
        return facts
    return {"network": value.partition("@")[0], **network.describe(name, weights), **facts}


@contextmanager
def _named(setting: str, part: str = "", remedy: str = "") -> Iterator[None]:
    """Whatever a library raises, and there is much that it may, becomes one line that names the setting, KEY=VALUE."""
    try:
        with hub.asked():
            yield
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        line = ": ".join(filter(None, (setting, part, reason)))
        raise UsageError(f"{line}; {remedy}" if remedy else line) from error


def _freeze(part: Any, trained: bool) -> None:
    """With `trained=False` no parameter of the tower learns, and nothing in it is random or collects statistics."""
    if not trained:
        part.tower.requires_grad_(False).eval()


def _freeze_unused(tower: nn.Module, *inputs: Tensor) -> Tensor:
    """The output of one pass; parameters that it does not hang on, such as a head's, are frozen."""
    tower.eval()
    with torch.enable_grad():
        out = tower(*inputs)
        trainable = [parameter for parameter in tower.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(out.sum(), trainable, allow_unused=True)
    for parameter, gradient in zip(trainable, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
    tower.train()
    return out.detach()
