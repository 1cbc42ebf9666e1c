"""The classification objective: mean of the patches, cross-entropy, pictures mixed on the way in.

Legend: B batch, V classes, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor

from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.heads import Heads
from vlbeit.objectives.base import Objective
from vlbeit.types import Batch, StepOutput


class ClassificationObjective(Objective):
    """Image pass without the final norm, mean of the patches, cross-entropy with label smoothing (BEiT, 2106.08254).

    Args:
        encoder: with the image expert and no final norm.
        heads: `classification`.
        smoothing: share of the target spread over all classes.
        mixup: mixes pictures and targets in training, from numpy's generator, which the engine seeds.
    """

    def __init__(self, encoder: MoMEEncoder, heads: Heads, smoothing: float = 0.1, mixup: Mixup | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = heads
        self.smoothing = smoothing
        self.mixup = mixup

    def class_logits(self, batch: Batch) -> Tensor:
        """`image` [B, 3, height, width] -> logits [B, classes]."""
        tokens = self.encoder(self.encoder.embed_image(batch["image"]))
        return self.heads["classification"](tokens.x_BLD)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """`classification`: pictures of the batch."""
        return {"classification": torch.as_tensor(len(batch["image"]), device=batch["image"].device)}

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> StepOutput:
        """Loss `classification` against `label` [B]; logs it, and `accuracy` where nothing is mixed."""
        number = self.counts(batch)["classification"]
        label_B = batch["label"]
        if self.training and self.mixup is not None:
            image, target_BV = self._mixed(batch["image"], label_B, self.mixup)
            logits_BV = self.class_logits({**batch, "image": image})
            terms_B = F.cross_entropy(logits_BV, target_BV.to(logits_BV.dtype), reduction="none")
            logs = {}  # the accuracy on mixed pictures means nothing
        else:
            logits_BV = self.class_logits(batch)
            terms_B = F.cross_entropy(logits_BV, label_B, reduction="none", label_smoothing=self.smoothing)
            logs = {"accuracy": ((logits_BV.detach().argmax(1) == label_B).sum(), number)}
        loss = terms_B.sum()
        return StepOutput(
            {"classification": loss / counts["classification"]}, {"classification": (loss.detach(), number), **logs}
        )

    @staticmethod
    def _mixed(image: Tensor, label_B: Tensor, mixup: Mixup) -> tuple[Tensor, Tensor]:
        """Pictures mixed with one another, and targets [B, classes]. The last of an odd number stays as it is."""
        even = len(image) // 2 * 2
        image = image.clone()  # timm mixes in place; the batch is not ours to change
        parts = []
        if even:
            image[:even], target = mixup(image[:even], label_B[:even])
            parts.append(target)
        if even < len(image):
            off = mixup.label_smoothing / mixup.num_classes
            one_hot = F.one_hot(label_B[even:], mixup.num_classes).float()
            parts.append(one_hot * (1 - mixup.label_smoothing) + off)
        return image, torch.cat(parts)

    def describe(self) -> dict[str, Any]:
        return {"encoder": self.encoder.spec.to_dict(), "heads": self.heads.specs}
