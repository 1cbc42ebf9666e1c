"""Contrast over a whole step of which one micro-batch is forwarded at a time (GradCache, arXiv 2101.06983).

The features of all micro-batches are computed without a graph; the loss of the whole step is differentiated down to
them. Then each micro-batch is forwarded again, with the same random numbers, and the sum of features times gradient
takes the place of the loss: its gradient is that of the whole step.

differs from the paper: a micro-batch is a block of rows of the comparison, so at most [B, G] logits are held too.

Legend: B rows of a micro-batch, S of all of this process, G of all of all processes, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlbeit import dist
from vlbeit.models.heads import Compared
from vlbeit.models.quantizer import at_least_float
from vlbeit.objectives.contrastive import LOSSES, ContrastRule, Likenesses, likenesses
from vlbeit.types import Batch

TERMS = "contrast_terms"  # in a batch: that it was surveyed, and the values of its terms


class StepContrast:
    """One pair of features over a whole step: `block` for each micro-batch in turn, then `gradients`.

    Args:
        blocks: what each micro-batch of this process gave.
        rule: loss and gather.
    """

    def __init__(self, blocks: Sequence[Compared], rule: ContrastRule) -> None:
        self.blocks, self.rule = blocks, rule
        text_SD, image_SD = (
            torch.cat([at_least_float(block[part]) for block in blocks])  # type: ignore[arg-type]
            for part in (0, 1)
        )
        self.start, self.rows = dist.rank() * len(text_SD), len(text_SD)
        self.text_GD, self.image_GD = (dist.gather(x_SD).requires_grad_() for x_SD in (text_SD, image_SD))
        self._gradients = [torch.zeros_like(self.text_GD), torch.zeros_like(self.image_GD)]

    @torch.enable_grad()
    def block(self, index: int, own_B: Tensor, left_out_BG: Tensor | None) -> tuple[Tensor, Likenesses, list[Tensor]]:
        """Terms [B] of a micro-batch, what they are made of, and the gradients of scale and (if there) bias."""
        scale, bias = self.blocks[index].scale, self.blocks[index].bias
        learned = [value.detach().clone().requires_grad_() for value in (scale, bias) if value is not None]
        rows = Compared(self.text_GD[own_B], self.image_GD[own_B], *learned)
        found = likenesses(rows, self.text_GD, self.image_GD, left_out_BG)
        terms_B = LOSSES[self.rule.loss](found, own_B)
        text, image, *rest = torch.autograd.grad(terms_B.sum(), [self.text_GD, self.image_GD, *learned])
        self._gradients[0] += text
        self._gradients[1] += image
        return terms_B.detach(), Likenesses(*(logits_BG.detach() for logits_BG in found)), list(rest)

    def gradients(self) -> tuple[Tensor, Tensor]:
        """Of the terms of all processes by the texts and the pictures of this one, [S, D] each."""
        share = 1 / dist.world_size() if self.rule.gather == "published" else 1.0
        own = slice(self.start, self.start + self.rows)
        text_SD, image_SD = (share * dist.sum_over_ranks(grad_GD)[own] for grad_GD in self._gradients)
        return text_SD, image_SD


def stand_in_terms(pairs: Sequence[Compared], batch: Batch) -> Tensor:
    """[B]: the values that were cached for a surveyed batch, with a sum whose gradient is that of the whole step."""
    cached_B = batch[TERMS]
    surrogate = cached_B.new_zeros(())
    for number, pair in enumerate(pairs):
        for part, value in zip(Compared._fields, pair, strict=True):
            if value is not None:
                surrogate = surrogate + (at_least_float(value) * batch[gradient_key(number, part)]).sum()
    return cached_B + (surrogate - surrogate.detach()) / len(cached_B)


def gradient_key(pair: int, part: str) -> str:
    """Where a surveyed batch has the gradient by a part of a pair."""
    return f"contrast_{pair}_{part}"
