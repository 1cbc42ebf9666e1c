"""Vision-language pre-training (VLMo, arXiv 2111.02358 section 3.2): contrast + matching + masked words.

Legend: B batch, M masked tokens, T text tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlbeit.models.encoder import MoMEEncoder, join, split
from vlbeit.models.heads import Compared, Heads
from vlbeit.objectives.base import Objective, logged
from vlbeit.objectives.contrastive import ContrastRule, learned_logs
from vlbeit.objectives.global_contrast import GlobalContrast
from vlbeit.objectives.matching import Negatives, match_terms, paired
from vlbeit.objectives.mlm import IGNORED, masked_word_terms
from vlbeit.types import Batch, Logs, StepOutput


class VLObjective(Objective):
    """Three losses on one batch of pairs: `itc`, `itm` and `mlm` at `mlm_weight`.

    Args:
        encoder: image, text and fused experts.
        heads: `contrast`, `contrast_fused`, `pooler`, `match`, `mlm`.
        mlm_weight: 0.25 in VLMo.
        contrast: what is compared, over which batches, and how a negative is drawn.
    """

    def __init__(
        self, encoder: MoMEEncoder, heads: Heads, mlm_weight: float = 0.25, contrast: GlobalContrast | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = heads
        self.mlm_weight = mlm_weight
        self.contrast = contrast or GlobalContrast(ContrastRule())

    def survey(self, batches: list[Batch], look: Callable[[int], tuple[Any, ...]]) -> list[Batch]:
        """Contrast and negatives of the whole step, where they are to be cached."""
        return self.contrast.survey(batches, look)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """`itc`: pairs, `itm`: three times as many (one positive, two negatives where any is), `mlm`: masked tokens."""
        labels_BT = batch["mlm_labels"]
        pairs, device = len(labels_BT), labels_BT.device
        terms = pairs + 2 * self.contrast.with_negatives(batch)
        return {
            "itc": torch.as_tensor(pairs, device=device),
            "itm": torch.as_tensor(terms, device=device),
            "mlm": (labels_BT != IGNORED).sum(),
        }

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> StepOutput:
        """Losses `itc`, `itm`, `mlm`; the same names with `_accuracy` in the logs, beside what contrast learns."""
        pairs = self._features(batch)
        if not counts:
            return StepOutput({}, {}, pairs)
        itc_B, hits_B, negatives = self.contrast(pairs, batch)
        assert negatives is not None
        match_logits, mlm_M, mlm_logs = self._fused(batch, negatives)
        itm, itm_logs = match_terms(match_logits, negatives.there_B)
        logs = {"itc": logged(itc_B), "itc_accuracy": logged(hits_B), **learned_logs(pairs)}
        logs |= mlm_logs | itm_logs
        losses = {
            "itc": itc_B.sum() / counts["itc"],
            "itm": itm.sum() / counts["itm"],
            "mlm": self.mlm_weight * mlm_M.sum() / counts["mlm"],
        }
        return StepOutput(losses, logs)

    def _features(self, batch: Batch) -> tuple[Compared, Compared]:
        """Both pairs: each modality through its own experts, and through the fused ones from the lower blocks on."""
        encoder, top = self.encoder, self.encoder.spec.depth - self.encoder.spec.fused_layers
        low_text = encoder(encoder.embed_text(batch["text_ids"], batch["text_keep"]), stop=top, norm=False)
        low_image = encoder(encoder.embed_image(batch["image"]), stop=top, norm=False)
        own = self.heads["contrast"](encoder(low_text, start=top).x_BLD, encoder(low_image, start=top).x_BLD)
        fused = self.heads["contrast_fused"](
            encoder(low_text, start=top, fused=True).x_BLD, encoder(low_image, start=top, fused=True).x_BLD
        )
        return own, fused

    def _fused(self, batch: Batch, negatives: Negatives) -> tuple[Tensor, Tensor, Logs]:
        """One fused pass over four sets of pairs: true, negative image, negative text, true with masked words."""
        ids, keep, image = paired(batch, negatives, batch["mlm_ids"])
        text, picture = self.encoder.embed_text(ids, keep), self.encoder.embed_image(image)
        words = split(self.encoder(join(text, picture)))[0].x_BLD
        pairs = 3 * len(batch["mlm_labels"])
        labels_BT = F.pad(batch["mlm_labels"], (0, ids.shape[1] - batch["mlm_labels"].shape[1]), value=IGNORED)
        mlm_M, hits_M = masked_word_terms(self.heads["mlm"], words[pairs:], labels_BT)
        match_logits = self.heads["match"](self.heads["pooler"](words[:pairs]))
        return match_logits, mlm_M, {"mlm": logged(mlm_M), "mlm_accuracy": logged(hits_M)}

    def describe(self) -> dict[str, Any]:
        return {"encoder": self.encoder.spec.to_dict(), "heads": self.heads.specs}
