"""Classification by the names of the classes alone: a picture belongs to the name whose text is nearest (CLIP).

Legend: B batch, T text tokens, V classes, E width that pictures and texts share.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from vlbeit import hub
from vlbeit.config import ModelConfig, foreign_tower
from vlbeit.data.collate import collate
from vlbeit.data.text import Tokenizer
from vlbeit.errors import DataError, UsageError

_TEXTS = 64  # at a time


class Pair(Protocol):
    """What brings pictures and texts into one space."""

    def width(self, objective: Any) -> int | None:
        """E; None where the objective's weights have nothing to compare with."""
        ...

    def embed_image(self, objective: Any, image_BCHW: Tensor) -> Tensor:
        """Unit vectors [B, E]."""
        ...

    def embed_text(self, objective: Any, texts: Sequence[str]) -> Tensor:
        """Unit vectors [texts, E]."""
        ...

    def scale(self, objective: Any) -> float:
        """Factor of their products, 1 / temperature."""
        ...


class ContrastPair:
    """The contrastive head of a vl run: each modality through its own experts to the top, then a projection (VLMo)."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def width(self, objective: Any) -> int | None:
        """D; None where the head is as `blank` left it: no weights came for it."""
        head = objective.heads["contrast"]
        return head.image.out_features if bool(head.image.weight.any()) else None

    def embed_image(self, objective: Any, image_BCHW: Tensor) -> Tensor:
        encoder = objective.encoder
        return objective.heads["contrast"].embed_image(encoder(encoder.embed_image(image_BCHW)).x_BLD)

    def embed_text(self, objective: Any, texts: Sequence[str]) -> Tensor:
        encoder, device = objective.encoder, objective.encoder.cls_token.device
        batch = collate([{"text_ids": self.tokenizer(text)} for text in texts])
        tokens = encoder(encoder.embed_text(batch["text_ids"].to(device), batch["text_keep"].to(device)))
        return objective.heads["contrast"].embed_text(tokens.x_BLD)

    def scale(self, objective: Any) -> float:
        return float(objective.heads["contrast"].logit_scale.exp())

    @staticmethod
    def blank(head: Any) -> None:
        """Weights 0, which no trained head has: so it is known whether some came."""
        with torch.no_grad():
            head.image.weight.zero_()
            head.text.weight.zero_()


class OpenClipPair:
    """Both towers of one open_clip model, with its own projections and its own reading of texts."""

    def __init__(self, model: ModelConfig) -> None:
        tower = foreign_tower(model.text_tower)
        assert tower is not None
        self.tower = tower

    @staticmethod
    def fits(model: ModelConfig) -> bool:
        """Whether both towers are those of one model, with weights."""
        tower = foreign_tower(model.image_tower)
        same = model.image_tower == model.text_tower
        return same and tower is not None and tower.library == "open_clip" and tower.weights != "none"

    def width(self, objective: Any) -> int | None:
        return int(objective.encoder.spec.towers["text"]["config"]["embed_dim"])

    def embed_image(self, objective: Any, image_BCHW: Tensor) -> Tensor:
        patches = objective.encoder.patch_embed
        return patches.tower.embed(patches.own_image(image_BCHW))

    def embed_text(self, objective: Any, texts: Sequence[str]) -> Tensor:
        words = objective.encoder.text_embed
        return words.tower.embed(list(texts), words.facts)

    def scale(self, objective: Any) -> float:
        return float(objective.pair_scale)

    def trained_scale(self) -> float:
        """Read from the model itself, since the towers do not have it. UsageError where it is not to be had."""
        from vlbeit.models.networks.open_clip import logit_scale

        try:
            with hub.asked():
                return logit_scale(self.tower.name, self.tower.weights)
        except Exception as error:  # whatever the library raises
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UsageError(f"model.text_tower={self.tower.network}: no weights: {reason}") from error


@torch.no_grad()
def class_vectors(embed: Callable[[Sequence[str]], Tensor], names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Unit vectors [V, E]: of every name the mean over the templates, as CLIP and open_clip average them."""
    texts = [template.replace("{}", name) for name in names for template in templates]
    parts = [embed(texts[start : start + _TEXTS]).float() for start in range(0, len(texts), _TEXTS)]
    vectors_VE = torch.cat(parts).unflatten(0, (len(names), len(templates))).mean(1)
    return F.normalize(vectors_VE, dim=1)


def zero_shot_logits(image_BE: Tensor, class_VE: Tensor, scale: float) -> Tensor:
    """[B, V]: `scale` times the cosines, in full precision also under autocast: those of 8 bits would tie."""
    with torch.autocast(image_BE.device.type, enabled=False):
        return scale * image_BE @ class_VE.to(image_BE.dtype).T


def class_names(classes: Sequence[str], file: str) -> list[str]:
    """Words for the classes: of `task.names`, else the classes themselves with spaces for underscores.

    The file is JSON, a list in the order of the labels or an object class -> name, or text with a name a line.
    Raises DataError where it cannot be read, UsageError where it has not a name for every class.
    """
    if not file:
        return [name.replace("_", " ") for name in classes]
    names = _read(Path(file).expanduser())
    if isinstance(names, dict):
        if lacking := [name for name in classes if name not in names]:
            raise UsageError(f"task.names={file} has no name for {len(lacking)} classes, such as {lacking[0]!r}")
        return [str(names[name]) for name in classes]
    if len(names) != len(classes):
        raise UsageError(f"task.names={file} has {len(names)} names, the data {len(classes)} classes: one a class")
    return [str(name) for name in names]


def _read(file: Path) -> Any:
    try:
        text = file.read_text(encoding="utf-8")
        values = json.loads(text) if file.suffix == ".json" else [line for line in text.splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"task.names={file} cannot be read: {error}") from error
    if not isinstance(values, list | dict):
        raise DataError(f"task.names={file} holds neither a list of names nor an object class -> name")
    return values
