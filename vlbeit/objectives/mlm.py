"""Masked language modeling on text alone (VLMo's second stage).

Legend: B batch, T text tokens, M masked tokens of the batch, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.heads import Heads
from vlbeit.objectives.base import Objective
from vlbeit.types import Batch, StepOutput

IGNORED = -100


def masked_word_terms(head: nn.Module, x_BTD: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and hit of every word that is to be predicted, [M] each; the head sees those tokens alone."""
    chosen = labels_BT != IGNORED
    logits_MV = head(x_BTD[chosen])
    labels_M = labels_BT[chosen]
    return F.cross_entropy(logits_MV, labels_M, reduction="none"), logits_MV.argmax(-1) == labels_M


class MLMObjective(Objective):
    """Predict masked words from the rest of their text, text expert only; packed texts do not see each other.

    Args:
        encoder: with a text part.
        heads: `mlm`.
    """

    def __init__(self, encoder: MoMEEncoder, heads: Heads) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = heads

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """`mlm`: masked tokens of the batch."""
        return {"mlm": (batch["mlm_labels"] != IGNORED).sum()}

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> StepOutput:
        """Loss `mlm`; logs `mlm` and `accuracy` over masked tokens."""
        segments_BT = batch.get("text_segments")
        tokens = self.encoder(self.encoder.embed_text(batch["mlm_ids"], batch["text_keep"], segments_BT))
        terms_M, hits_M = masked_word_terms(self.heads["mlm"], tokens.x_BLD, batch["mlm_labels"])
        number = torch.as_tensor(len(terms_M), device=terms_M.device)
        logs = {"mlm": (terms_M.detach().sum(), number), "accuracy": (hits_M.sum(), number)}
        return StepOutput({"mlm": terms_M.sum() / counts["mlm"]}, logs)

    def describe(self) -> dict[str, Any]:
        return {"encoder": self.encoder.spec.to_dict(), "heads": self.heads.specs}
