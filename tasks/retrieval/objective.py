"""The dual encoder of retrieval: each modality through its own experts, contrast alone (VLMo's fine-tuning).

Legend: B batch, T text tokens, E width of the vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vlbeit.models.encoder import MoMEEncoder, join
from vlbeit.models.heads import Heads
from vlbeit.objectives.base import Objective, logged
from vlbeit.objectives.contrastive import contrast_head, learned_logs
from vlbeit.objectives.global_contrast import GlobalContrast
from vlbeit.objectives.matching import Negatives, match_terms, paired
from vlbeit.types import Batch, Logs, StepOutput, Tokens


def retrieval_heads(dim: int, contrastive: str, matching: bool) -> Heads:
    """`contrast` for a loss of `vlbeit.objectives.contrastive`, and for matching `pooler` and `match`."""
    specs = {"contrast": contrast_head(dim, contrastive)}
    if matching:
        specs |= {name: {"kind": kind, "dim": dim} for name, kind in (("pooler", "pooler"), ("match", "match"))}
    return Heads(specs)


class RetrievalObjective(Objective):
    """Losses `itc` and, with a weight, `itm`.

    Args:
        encoder: with image and text experts; with fused ones and the heads `pooler` and `match` it also compares a
            text and a picture word by patch.
        heads: as of `retrieval_heads`.
        contrast: what is compared, over which batches; it draws negatives where there is a matching loss.
        matching_weight: of the matching loss; 0: what only the fused pass uses is kept as it came, frozen.
    """

    def __init__(
        self, encoder: MoMEEncoder, heads: Heads, contrast: GlobalContrast, matching_weight: float = 0.0
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = heads
        self.contrast = contrast
        self.matching_weight = matching_weight
        if not matching_weight:
            for name, parameter in self.named_parameters():
                if _of_fused_pass(name):
                    parameter.requires_grad_(False)

    @property
    def scale(self) -> float:
        """Factor of the cosines in the contrastive loss, 1 / temperature."""
        return float(self.heads["contrast"].logit_scale.detach().exp())

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

    def survey(self, batches: list[Batch], look: Callable[[int], tuple[Any, ...]]) -> list[Batch]:
        """Contrast and negatives of the whole step, where they are to be cached."""
        return self.contrast.survey(batches, look)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """`itc`: pairs; `itm`, if it is trained: one match a pair, and two mismatches where there are any."""
        pairs, device = len(batch["text_ids"]), batch["text_ids"].device
        counts = {"itc": torch.as_tensor(pairs, device=device)}
        if self.matching_weight:
            counts["itm"] = torch.as_tensor(pairs + 2 * self.contrast.with_negatives(batch), device=device)
        return counts

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> StepOutput:
        """Losses `itc` and perhaps `itm`; the same names with `_accuracy` in the logs."""
        encoder = self.encoder
        text = encoder(encoder.embed_text(batch["text_ids"], batch["text_keep"]))
        pair = self.heads["contrast"](text.x_BLD, encoder(encoder.embed_image(batch["image"])).x_BLD)
        if not counts:
            return StepOutput({}, {}, (pair,))
        terms_B, hits_B, negatives = self.contrast((pair,), batch)
        losses = {"itc": terms_B.sum() / counts["itc"]}
        logs = {"itc": logged(terms_B), "itc_accuracy": logged(hits_B), **learned_logs((pair,))}
        if self.matching_weight:
            assert negatives is not None, "the contrast draws them"
            itm, itm_logs = self._match(batch, negatives)
            losses["itm"] = self.matching_weight * itm.sum() / counts["itm"]
            logs |= itm_logs
        return StepOutput(losses, logs)

    def _match(self, batch: Batch, negatives: Negatives) -> tuple[Tensor, Logs]:
        """Terms and logs of true pairs, of texts with wrong pictures and of pictures with wrong texts."""
        ids, keep, image = paired(batch, negatives)
        logits = self.match_logits(ids, keep, self.encoder.embed_image(image))
        return match_terms(logits, negatives.there_B)

    def describe(self) -> dict[str, Any]:
        return {"encoder": self.encoder.spec.to_dict(), "heads": self.heads.specs}


def _of_fused_pass(name: str) -> bool:
    """Whether a parameter has a say only where a text and a picture are one sequence."""
    parts = name.split(".")
    return "fused" in parts or name.startswith(("heads.pooler.", "heads.match.")) or parts[-1] == "cross"
