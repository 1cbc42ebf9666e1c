"""The NLVR2 objective: the statement is read with each of the two pictures, and both results are judged together.

Legend: B batch, T text tokens, L all tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlbeit.models.encoder import MoMEEncoder, join
from vlbeit.models.heads import Heads
from vlbeit.objectives.base import Objective
from vlbeit.objectives.joint import freeze_idle_experts
from vlbeit.types import Batch, StepOutput, Tokens

TOKEN_TYPES = 3  # text, left picture, right picture
UNKNOWN = -1  # label of a statement of which nobody said whether it is true


def pair_heads(dim: int) -> dict[str, dict[str, Any]]:
    """Specs of the two heads, for `Heads`."""
    return {"pooler": {"kind": "pooler", "dim": dim}, "pair": {"kind": "pair", "dim": dim}}


class NLVR2Objective(Objective):
    """Cross-entropy of false and true over statements (VLMo, arXiv 2111.02358).

    Two joint passes, the left picture with token type 1, the right one with type 2; the pooled text tokens of both,
    side by side, go through the head. Experts that these passes never use are frozen.

    Args:
        encoder: with image and text experts, and `TOKEN_TYPES` token types.
        heads: `pooler` and `pair`, as of `pair_heads`.
    """

    def __init__(self, encoder: MoMEEncoder, heads: Heads) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = heads
        freeze_idle_experts(encoder)

    def pair_logits(self, batch: Batch) -> Tensor:
        """`image_0`, `image_1` [B, 3, height, width], `text_ids`, `text_keep` [B, T] -> logits [B, 2]: false, true."""
        left, right = (self._joined(batch, side) for side in (0, 1))
        keep_BL = None if left.keep_BL is None else torch.cat([left.keep_BL, right.keep_BL])
        # one pass over both halves: a row knows nothing of the others, and types were added with the embedding
        both = self.encoder(Tokens(torch.cat([left.x_BLD, right.x_BLD]), keep_BL, left.spans))
        left_BD, right_BD = self.heads["pooler"](both.x_BLD).unflatten(0, (2, -1))
        return self.heads["pair"](torch.cat([left_BD, right_BD], dim=-1))

    def _joined(self, batch: Batch, side: int) -> Tokens:
        text = self.encoder.embed_text(batch["text_ids"], batch["text_keep"])
        return join(text, self.encoder.embed_image(batch[f"image_{side}"], type_id=1 + side))

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """`nlvr2`: statements with a label."""
        return {"nlvr2": (batch["label"] != UNKNOWN).sum()}

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> StepOutput:
        """Loss `nlvr2` against `label` [B]; logs `nlvr2` and `accuracy` by statements."""
        logits_B2, label_B = self.pair_logits(batch), batch["label"]
        loss = F.cross_entropy(logits_B2, label_B, ignore_index=UNKNOWN, reduction="sum")
        number = self.counts(batch)["nlvr2"]
        right = (logits_B2.detach().argmax(dim=-1) == label_B).sum()
        logs = {"nlvr2": (loss.detach(), number), "accuracy": (right, number)}
        return StepOutput({"nlvr2": loss / counts["nlvr2"]}, logs)

    def describe(self) -> dict[str, Any]:
        return {"encoder": self.encoder.spec.to_dict(), "heads": self.heads.specs}
