"""Hard negatives of image-text matching: pairs that the contrast takes for likely, and that do not belong together.

Legend: B local batch, G global batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vlbeit import dist
from vlbeit.errors import UsageError

Draw = Callable[[Tensor], Tensor]
"""Probabilities [B, G], 0 on the pair itself -> the chosen column of every row, [B]."""


def sampled(weights_BG: Tensor) -> Tensor:
    """One column per row, drawn by its probability (ALBEF, VLMo)."""
    return torch.multinomial(weights_BG, 1).squeeze(1)


def hardest(weights_BG: Tensor) -> Tensor:
    """The most likely column of every row."""
    return weights_BG.argmax(1)


DRAWS: dict[str, Draw] = {"sampled": sampled, "hardest": hardest}


@torch.no_grad()
def negatives(logits_BG: Tensor, draw: Draw) -> Tensor:
    """For every local row a column of the global batch that is not its own pair, [B].

    Raises UsageError where the global batch holds a single pair: there is no negative.
    """
    if logits_BG.shape[1] < 2:
        raise UsageError("matching needs at least two pairs a micro-batch: raise micro_batch_size or global_batch_size")
    # NaN of weights that have run away shows in the loss, where the engine names the samples
    weights_BG = logits_BG.float().softmax(1).nan_to_num(0)
    rows = torch.arange(len(weights_BG), device=weights_BG.device)
    own = rows + dist.rank() * len(weights_BG)
    # a softmax that is all on the pair itself leaves zeros: a floor keeps every other pair drawable
    weights_BG = weights_BG.clamp_min(torch.finfo(weights_BG.dtype).tiny)
    weights_BG[rows, own] = 0
    return draw(weights_BG)
