"""The VQA objective: image and question joined, a pooled text [CLS], one sigmoid per answer.

Legend: B batch, L all tokens, D width, V answers.
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
from vlbeit.types import Batch, StepOutput


def answer_heads(dim: int, num_answers: int) -> dict[str, dict[str, Any]]:
    """Specs of the two heads, for `Heads`."""
    return {
        "pooler": {"kind": "pooler", "dim": dim},
        "answer": {"kind": "vqa", "dim": dim, "num_answers": num_answers},
    }


class VQAObjective(Objective):
    """Soft targets in, binary cross-entropy summed over answers and averaged over questions out (VLMo, 2111.02358).

    Where a block owns a fused expert, its text and image experts take no part in the joint pass: they are kept, so that
    the run still encodes texts and images alone, and frozen.

    Args:
        encoder: with image and text experts.
        heads: `pooler` and `answer`, as of `answer_heads`.
    """

    def __init__(self, encoder: MoMEEncoder, heads: Heads) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = heads
        freeze_idle_experts(encoder)

    def answer_logits(self, batch: Batch) -> Tensor:
        """`image` [B, 3, height, width], `text_ids` and `text_keep` [B, T] -> logits [B, V]."""
        text = self.encoder.embed_text(batch["text_ids"], batch["text_keep"])
        both = self.encoder(join(text, self.encoder.embed_image(batch["image"])))
        return self.heads["answer"](self.heads["pooler"](both.x_BLD))

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """`vqa`: questions of the batch."""
        return {"vqa": torch.as_tensor(len(batch["text_ids"]), device=batch["text_ids"].device)}

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> StepOutput:
        """Loss `vqa` against `target` [B, V]; logs `vqa` and `score`, the target of the answer chosen, by questions."""
        logits_BV, target_BV = self.answer_logits(batch), batch["target"]
        loss = F.binary_cross_entropy_with_logits(logits_BV, target_BV.to(logits_BV.dtype), reduction="sum")
        chosen_B1 = logits_BV.detach().argmax(dim=-1, keepdim=True)
        number = self.counts(batch)["vqa"]
        logs = {"vqa": (loss.detach(), number), "score": (target_BV.gather(1, chosen_B1).sum(), number)}
        return StepOutput({"vqa": loss / counts["vqa"]}, logs)

    def describe(self) -> dict[str, Any]:
        return {"encoder": self.encoder.spec.to_dict(), "heads": self.heads.specs}
