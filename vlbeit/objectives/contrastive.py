"""Image-text contrast over the batches of all processes (CLIP's symmetric loss; VLMo section 3.2).

Legend: B local batch, G global batch, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vlbeit import dist
from vlbeit.models.quantizer import at_least_float


def contrastive_terms(text_BD: Tensor, image_BD: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Symmetric cross-entropy of each local pair against the global batch, and the local logits.

    differs from VLMo: the gather carries gradients to every process, so the gradient is that of one process
    with the whole batch. The products are of full precision also under autocast: cosines of 8 bits would tie.

    Args:
        text_BD, image_BD: unit vectors of matching pairs, row by row.
        scale: factor of the products, 1 / temperature.

    Returns:
        Terms [B], the mean of text->image and image->text cross-entropy; logits [B, G] of local texts against all
        images; logits [B, G] of local images against all texts.
    """
    texts_GD, images_GD = dist.gather_with_grad(text_BD), dist.gather_with_grad(image_BD)
    with torch.autocast(text_BD.device.type, enabled=False):
        text_logits_BG = scale * at_least_float(text_BD) @ at_least_float(images_GD).T
        image_logits_BG = scale * at_least_float(image_BD) @ at_least_float(texts_GD).T
    own_B = torch.arange(len(text_BD), device=text_BD.device) + dist.rank() * len(text_BD)
    terms_B = (
        F.cross_entropy(text_logits_BG, own_B, reduction="none")
        + F.cross_entropy(image_logits_BG, own_B, reduction="none")
    ) / 2
    return terms_B, text_logits_BG, image_logits_BG
