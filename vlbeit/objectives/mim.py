"""Masked image modeling (BEiT, arXiv 2106.08254 section 2.3): predict the target of every masked patch.

Legend: B batch, N patches, M masked patches of the batch, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.heads import Heads
from vlbeit.objectives.base import Objective
from vlbeit.objectives.targets import Target
from vlbeit.types import Batch, StepOutput


class MIMObjective(Objective):
    """Encoder on the masked picture, head on the masked patches alone, a target made of the whole picture.

    Args:
        encoder: with a mask token.
        heads: `masked_patch`, `target.head_width` wide.
        target: what a patch stands for; frozen.
    """

    def __init__(self, encoder: MoMEEncoder, heads: Heads, target: Target) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = heads
        self.target = target

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """`mim`: masked patches of the batch."""
        return {"mim": batch["mask"].sum()}

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> StepOutput:
        """Loss `mim`; logs `mim` (mean term) and, for token targets, `accuracy` over masked patches."""
        prediction, mask_BN = self.masked_logits(batch)
        assert self.encoder.spec.grid is not None
        target = self.target(batch, self.encoder.spec.grid)[mask_BN]
        terms_M = self.target.terms(prediction, target)
        number = torch.as_tensor(len(terms_M), device=terms_M.device)
        logs = {"mim": (terms_M.detach().sum(), number)}
        hits_M = self.target.correct(prediction, target)
        if hits_M is not None:
            logs["accuracy"] = (hits_M.sum(), number)
        return StepOutput({"mim": terms_M.sum() / counts["mim"]}, logs)

    def masked_logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Head outputs on the masked patches, [M, V] in the order of `mask.nonzero()`, and the mask [B, N]."""
        tokens = self.encoder(self.encoder.embed_image(batch["image"], batch["mask"]))
        return self.heads["masked_patch"](tokens.x_BLD[:, 1:][batch["mask"]]), batch["mask"]

    def describe(self) -> dict[str, Any]:
        return {"encoder": self.encoder.spec.to_dict(), "heads": self.heads.specs, "target": self.target.describe()}
