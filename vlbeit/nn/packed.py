"""Several texts in one sequence, each as if it stood alone: places that begin anew, and no attention between them.

A text is a run of tokens with one number in `segments_BL`; its first token is its [CLS].

Legend: B batch, L all tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def places(segments_BL: Tensor) -> Tensor:
    """Where each token stands in its own text: [B, L], 0 for the [CLS]."""
    here_L = torch.arange(segments_BL.shape[1], device=segments_BL.device)
    begins_BL = torch.ones_like(segments_BL, dtype=torch.bool)
    begins_BL[:, 1:] = segments_BL[:, 1:] != segments_BL[:, :-1]
    return here_L - torch.where(begins_BL, here_L, 0).cummax(dim=1).values


def separation(segments_BL: Tensor) -> Tensor:
    """What keeps texts apart when it is added to the scores, [B, 1, L, L]: -inf where query and key are of two.

    Padding is a text of its own: no row is without a key.
    """
    apart_BLL = segments_BL[:, :, None] != segments_BL[:, None, :]
    return torch.zeros(apart_BLL.shape, device=apart_BLL.device).masked_fill(apart_BLL, float("-inf"))[:, None]


def packed_index(segments_BL: Tensor, longest: int) -> Tensor:
    """Row of a text table for `longest` tokens of every (query, key), [B, L, L], by the places in their own texts.

    As `vlbeit.nn.relpos.text_index` for every text alone. Where query and key are of two texts it is the row behind
    the table, 2 * longest: not to be seen. Raises ValueError for sequences longer than `longest`.
    """
    if segments_BL.shape[1] > longest:
        raise ValueError(f"a sequence of {segments_BL.shape[1]} tokens is longer than the position table ({longest})")
    first_BL = places(segments_BL) == 0
    here_L = torch.arange(segments_BL.shape[1], device=segments_BL.device)
    offset_LL = (here_L[None, :] - here_L[:, None]).clamp(2 - longest, longest - 2) + longest - 2
    rows = 2 * longest
    index_BLL = torch.where(first_BL[:, :, None], rows - 3, offset_LL)
    index_BLL = torch.where(first_BL[:, None, :], rows - 2, index_BLL)
    index_BLL = torch.where(first_BL[:, :, None] & first_BL[:, None, :], rows - 1, index_BLL)
    return index_BLL.masked_fill(segments_BL[:, :, None] != segments_BL[:, None, :], rows)
