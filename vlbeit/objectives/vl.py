"""Vision-language pre-training (VLMo, arXiv 2111.02358 section 3.2): contrast + matching + masked words.

Legend: B batch, G global batch, T text tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlbeit import dist
from vlbeit.models.encoder import MoMEEncoder, join, split
from vlbeit.models.heads import Heads
from vlbeit.objectives.base import Objective
from vlbeit.objectives.contrastive import contrastive_terms
from vlbeit.objectives.matching import Draw, negatives, sampled
from vlbeit.objectives.mlm import IGNORED, masked_word_terms
from vlbeit.types import Batch, StepOutput

Log = dict[str, tuple[Tensor, Tensor]]


class VLObjective(Objective):
    """Three losses on one batch of pairs: `itc`, `itm` and `mlm` at `mlm_weight`.

    Args:
        encoder: image, text and fused experts.
        heads: `contrast`, `contrast_fused`, `pooler`, `match`, `mlm`.
        mlm_weight: 0.25 in VLMo.
        draw: how a negative is chosen among the candidates.
    """

    def __init__(self, encoder: MoMEEncoder, heads: Heads, mlm_weight: float = 0.25, draw: Draw = sampled) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = heads
        self.mlm_weight = mlm_weight
        self.draw = draw

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """`itc`: pairs, `itm`: three times as many (one positive, two negatives), `mlm`: masked tokens."""
        labels_BT = batch["mlm_labels"]
        pairs = torch.as_tensor(len(labels_BT), device=labels_BT.device)
        return {"itc": pairs, "itm": 3 * pairs, "mlm": (labels_BT != IGNORED).sum()}

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> StepOutput:
        """Losses `itc`, `itm`, `mlm`; the same names with `_accuracy` in the logs."""
        itc_B, text_logits_BG, image_logits_BG, logs = self._contrast(batch)
        image_of_text = negatives(text_logits_BG, self.draw)
        text_of_image = negatives(image_logits_BG, self.draw)
        match_logits, mlm_M, mlm_logs = self._fused(batch, image_of_text, text_of_image)
        labels = torch.zeros(len(match_logits), dtype=torch.long, device=match_logits.device)
        labels[: len(itc_B)] = 1
        itm = F.cross_entropy(match_logits, labels, reduction="none")
        logs |= mlm_logs | {"itm": _log(itm), "itm_accuracy": _log(match_logits.argmax(1) == labels)}
        losses = {
            "itc": itc_B.sum() / counts["itc"],
            "itm": itm.sum() / counts["itm"],
            "mlm": self.mlm_weight * mlm_M.sum() / counts["mlm"],
        }
        return StepOutput(losses, logs)

    def _contrast(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Log]:
        """Both pairs: each modality through its own experts, and through the fused ones from the lower blocks on."""
        encoder, top = self.encoder, self.encoder.spec.depth - self.encoder.spec.fused_layers
        low_text = encoder(encoder.embed_text(batch["text_ids"], batch["text_keep"]), stop=top, norm=False)
        low_image = encoder(encoder.embed_image(batch["image"]), stop=top, norm=False)
        own = self.heads["contrast"](encoder(low_text, start=top).x_BLD, encoder(low_image, start=top).x_BLD)
        fused = self.heads["contrast_fused"](
            encoder(low_text, start=top, fused=True).x_BLD, encoder(low_image, start=top, fused=True).x_BLD
        )
        own_B, text_logits_BG, image_logits_BG = contrastive_terms(*own)
        terms_B = (own_B + contrastive_terms(*fused)[0]) / 2
        pair_B = torch.arange(len(terms_B), device=terms_B.device) + dist.rank() * len(terms_B)
        logs = {"itc": _log(terms_B), "itc_accuracy": _log(text_logits_BG.argmax(1) == pair_B)}
        return terms_B, text_logits_BG, image_logits_BG, logs

    def _fused(self, batch: Batch, image_of_text: Tensor, text_of_image: Tensor) -> tuple[Tensor, Tensor, Log]:
        """One fused pass over four sets of pairs: true, negative image, negative text, true with masked words."""
        texts, keeps, images = self._candidates(batch)
        ids, keep, image = batch["text_ids"], batch["text_keep"].bool(), batch["image"]
        width = texts.shape[1]
        ids, mlm_ids = (F.pad(t, (0, width - t.shape[1])) for t in (ids, batch["mlm_ids"]))
        keep = F.pad(keep, (0, width - keep.shape[1]))
        text = self.encoder.embed_text(
            torch.cat([ids, ids, texts[text_of_image], mlm_ids]), torch.cat([keep, keep, keeps[text_of_image], keep])
        )
        picture = self.encoder.embed_image(torch.cat([image, images[image_of_text], image, image]))
        words = split(self.encoder(join(text, picture)))[0].x_BLD
        pairs = 3 * len(ids)
        labels_BT = F.pad(batch["mlm_labels"], (0, width - batch["mlm_labels"].shape[1]), value=IGNORED)
        mlm_M, hits_M = masked_word_terms(self.heads["mlm"], words[pairs:], labels_BT)
        match_logits = self.heads["match"](self.heads["pooler"](words[:pairs]))
        return match_logits, mlm_M, {"mlm": _log(mlm_M), "mlm_accuracy": _log(hits_M)}

    def _candidates(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Texts, their keep masks and pictures of all processes, texts padded to the longest of all."""
        width = max(dist.gather_objects(batch["text_ids"].shape[1]))
        extra = (0, width - batch["text_ids"].shape[1])
        texts = dist.gather(F.pad(batch["text_ids"], extra))
        keeps = dist.gather(F.pad(batch["text_keep"].bool(), extra))
        return texts, keeps, dist.gather(batch["image"])

    def describe(self) -> dict[str, Any]:
        return {"encoder": self.encoder.spec.to_dict(), "heads": self.heads.specs}


def _log(values: Tensor) -> tuple[Tensor, Tensor]:
    return values.detach().sum(), torch.as_tensor(values.numel(), device=values.device)
