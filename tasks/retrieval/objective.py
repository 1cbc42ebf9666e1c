"""The dual encoder of retrieval: each modality through its own experts, contrast alone (VLMo's fine-tuning).

Legend: B batch, G global batch, T text tokens, D width, E width of the vectors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vlbeit import dist
from vlbeit.models.encoder import MoMEEncoder, join
from vlbeit.models.heads import Heads
from vlbeit.objectives.base import Objective
from vlbeit.objectives.contrastive import contrastive_terms
from vlbeit.types import Batch, StepOutput, Tokens


def retrieval_heads(dim: int, matching: bool) -> Heads:
    """`contrast`, and for matching `pooler` and `match`."""
    specs: dict[str, dict[str, Any]] = {"contrast": {"kind": "contrast", "dim": dim}}
    if matching:
        specs |= {name: {"kind": kind, "dim": dim} for name, kind in (("pooler", "pooler"), ("match", "match"))}
    return Heads(specs)


class RetrievalObjective(Objective):
    """Losses `itc` and, with a weight, `itm`.

    Args:
        encoder: with image and text experts; with fused ones and the heads `pooler` and `match` it also compares a
            text and a picture word by patch.
        heads: as of `retrieval_heads`.
        matching_weight: of the matching loss; 0: what only the fused pass uses is kept as it came, frozen.
    """

    def __init__(self, encoder: MoMEEncoder, heads: Heads, matching_weight: float = 0.0) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = heads
        self.matching_weight = matching_weight
        if not matching_weight:
            for name, parameter in self.named_parameters():
                if _of_fused_pass(name):
                    parameter.requires_grad_(False)

    @property
    def matches(self) -> bool:
        """Whether it has a matching head."""
        return "match" in self.heads

    def image_vectors(self, image_BCHW: Tensor) -> Tensor:
        """Pictures [B, 3, height, width] -> unit vectors [B, E]."""
        return self.heads["contrast"].embed_image(self.encoder(self.encoder.embed_image(image_BCHW)).x_BLD)

    def text_vectors(self, ids_BT: Tensor, keep_BT: Tensor | None = None) -> Tensor:
        """Texts [B, T] -> unit vectors [B, E]."""
        return self.heads["contrast"].embed_text(self.encoder(self.encoder.embed_text(ids_BT, keep_BT)).x_BLD)

    def match_logits(self, ids_BT: Tensor, keep_BT: Tensor | None, pictures: Tokens) -> Tensor:
        """Texts and as many embedded pictures -> logits [B, 2] of mismatch and match, by the fused experts."""
        both = self.encoder(join(self.encoder.embed_text(ids_BT, keep_BT), pictures))
        return self.heads["match"](self.heads["pooler"](both.x_BLD))

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """`itc`: pairs."""
        return {"itc": torch.as_tensor(len(batch["text_ids"]), device=batch["text_ids"].device)}

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> StepOutput:
        """Loss `itc`; logs `itc` and `itc_accuracy`."""
        text_BE = self.text_vectors(batch["text_ids"], batch["text_keep"])
        image_BE = self.image_vectors(batch["image"])
        terms_B, logits_BG, _ = contrastive_terms(text_BE, image_BE, self.heads["contrast"].logit_scale.exp())
        own_B = torch.arange(len(terms_B), device=terms_B.device) + dist.rank() * len(terms_B)
        number = self.counts(batch)["itc"]
        logs = {
            "itc": (terms_B.detach().sum(), number),
            "itc_accuracy": ((logits_BG.argmax(1) == own_B).sum(), number),
        }
        return StepOutput({"itc": terms_B.sum() / counts["itc"]}, logs)

    def describe(self) -> dict[str, Any]:
        return {"encoder": self.encoder.spec.to_dict(), "heads": self.heads.specs}


def _of_fused_pass(name: str) -> bool:
    """Whether a parameter has a say only where a text and a picture are one sequence."""
    parts = name.split(".")
    return "fused" in parts or name.startswith(("heads.pooler.", "heads.match.")) or parts[-1] == "cross"
