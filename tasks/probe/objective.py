"""A frozen tower and one linear classifier per layer, all trained at once on features that were computed before.

Legend: B batch, D width, F width of all features side by side, V classes, E width that pictures and texts share.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.features import layer_features, tower_features, tower_width
from vlbeit.models.heads import Heads
from vlbeit.objectives.base import Objective
from vlbeit.types import Batch, StepOutput

from .zero_shot import OpenClipPair, Pair

EMBEDDING = "image_embedding"


class ProbeObjective(Objective):
    """Cross-entropy of every layer's classifier; the classifiers do not touch each other, nor the tower.

    Args:
        encoder: frozen here.
        heads: a `linear_probe` per probed layer, named `layer_1`, `layer_2`, ... and `tower` as `probe_heads` does, and
            perhaps `contrast`, frozen.
        pair: what makes vectors of pictures and texts that can be compared; None: nothing does.
    """

    best: Tensor
    pair_scale: Tensor

    def __init__(self, encoder: MoMEEncoder, heads: Heads, pair: Pair | None = None) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.heads = heads
        self.pair = pair
        self.probed = [name for name, spec in heads.specs.items() if spec["kind"] == "linear_probe"]
        self.widths = [int(heads.specs[name]["dim"]) for name in self.probed]
        if "contrast" in heads:
            heads["contrast"].requires_grad_(False)
        # place in `probed` of the layer that predicts: the best one of the last evaluation
        self.register_buffer("best", torch.tensor(len(self.probed) - 1))
        if isinstance(pair, OpenClipPair):  # else the contrastive head has it
            self.register_buffer("pair_scale", torch.ones(()))

    @property
    def columns(self) -> list[tuple[str, int]]:
        """Names and widths of the features, as `features` puts them side by side."""
        columns = list(zip(self.probed, self.widths, strict=True))
        width = None if self.pair is None else self.pair.width(self)
        return columns if width is None else [*columns, (EMBEDDING, width)]

    def features(self, image_BCHW: Tensor) -> Tensor:
        """[B, 3, height, width] -> [B, F]: every probed layer, and where there is one the vector beside texts."""
        blocks = [int(name.removeprefix("layer_")) - 1 for name in self.probed if name != "tower"]
        parts = layer_features(self.encoder, image_BCHW, blocks)
        if "tower" in self.probed:
            parts.append(tower_features(self.encoder, image_BCHW))
        if self.pair is not None and self.pair.width(self) is not None:
            parts.append(self.pair.embed_image(self, image_BCHW))
        return torch.cat([part.float() for part in parts], dim=1)

    def logits(self, features_BF: Tensor) -> list[Tensor]:
        """Class logits [B, V] of every probed layer, in full precision also under autocast: they cost nothing."""
        parts = features_BF[:, : sum(self.widths)].split(self.widths, dim=1)
        with torch.autocast(features_BF.device.type, enabled=False):
            return [self.heads[name](part) for name, part in zip(self.probed, parts, strict=True)]

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """`probe`: pictures of the batch."""
        return {"probe": torch.as_tensor(len(batch["label"]), device=batch["label"].device)}

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> StepOutput:
        """Loss `probe`, the sum over the layers; logs `accuracy` of the deepest one and `probe`, the mean over all."""
        label_B, number = batch["label"], self.counts(batch)["probe"]
        logits = self.logits(batch["features"])
        terms = torch.stack([F.cross_entropy(logits_BV, label_B, reduction="sum") for logits_BV in logits])
        hits = (logits[-1].detach().argmax(1) == label_B).sum()
        logs = {"probe": (terms.detach().mean(), number), "accuracy": (hits, number)}
        return StepOutput({"probe": terms.sum() / counts["probe"]}, logs)

    @torch.no_grad()
    def standardize(self, mean_F: Tensor, deviation_F: Tensor) -> None:
        """Let every classifier see features of mean 0 and deviation 1."""
        of_layers = sum(self.widths)
        means, deviations = (part[:of_layers].split(self.widths) for part in (mean_F, deviation_F))
        for name, mean, deviation in zip(self.probed, means, deviations, strict=True):
            self.heads[name].mean.copy_(mean)
            self.heads[name].scale.copy_(1 / deviation.clamp_min(1e-6))

    def describe(self) -> dict[str, Any]:
        return {"encoder": self.encoder.spec.to_dict(), "heads": self.heads.specs}


def probe_heads(encoder: MoMEEncoder, blocks: list[int], num_classes: int) -> dict[str, dict[str, Any]]:
    """Specs of a classifier for the foreign tower, if there is one, and for every block (0-based)."""
    dims = {f"layer_{block + 1}": 2 * encoder.spec.embed_dim for block in blocks}
    foreign = tower_width(encoder)
    if foreign is not None:
        dims["tower"] = foreign
    return {name: {"kind": "linear_probe", "dim": dim, "num_classes": num_classes} for name, dim in dims.items()}
