"""k nearest neighbours among the training pictures, as DINO votes (Caron et al. 2021, arXiv 2104.14294, section 4.1).

Legend: Q pictures asked about, n pictures of a block, D width, K neighbours, V classes.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor


def nearest(query_QD: Tensor, blocks: Iterable[Tensor], k: int) -> tuple[Tensor, Tensor]:
    """Cosines and row numbers [Q, K], nearest first, of the rows of all blocks [n, D] taken together.

    The blocks are seen once, one at a time. With fewer than `k` rows all of them count. In full precision also under
    autocast: features share most of their length, so that cosines of 8 bits would tie.
    """
    query_QD = F.normalize(query_QD, dim=1)
    best, rows, start = query_QD.new_empty(len(query_QD), 0), torch.empty(len(query_QD), 0, dtype=torch.long), 0
    rows = rows.to(query_QD.device)
    for block_nD in blocks:
        block_nD = block_nD.to(query_QD.device, query_QD.dtype)
        with torch.autocast(query_QD.device.type, enabled=False):
            cosines_Qn = query_QD @ F.normalize(block_nD, dim=1).T
        own = torch.arange(start, start + len(block_nD), device=query_QD.device).expand(len(query_QD), -1)
        best, rows = torch.cat([best, cosines_Qn], dim=1), torch.cat([rows, own], dim=1)
        best, kept = best.topk(min(k, best.shape[1]), dim=1)
        rows = rows.gather(1, kept)
        start += len(block_nD)
    return best, rows


def vote(cosines_QK: Tensor, label_QK: Tensor, num_classes: int, temperature: float) -> Tensor:
    """The class [Q] with most votes, where a neighbour has exp(cosine / temperature) of them."""
    weights_QK = ((cosines_QK - 1) / temperature).exp()  # of a cosine of 1 it is 1: no temperature can overflow
    votes_QV = torch.zeros(len(cosines_QK), num_classes, dtype=weights_QK.dtype, device=weights_QK.device)
    return votes_QV.scatter_add_(1, label_QK, weights_QK).argmax(1)
