"""Contrast and hard negatives over the batches of all processes: of one micro-batch each, or of the whole step.

Legend: B local rows, S of all micro-batches of this process, G of all processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vlbeit import dist
from vlbeit.models.heads import Compared
from vlbeit.objectives.caching import TERMS, StepContrast, gradient_key, stand_in_terms
from vlbeit.objectives.contrastive import ContrastRule, Likenesses, contrast, others_of_picture, own_columns
from vlbeit.objectives.matching import Chosen, Draw, Negatives, choose, exchange, sampled
from vlbeit.types import Batch

HITS = "contrast_hits"


class Contrasted(NamedTuple):
    """What a micro-batch gives."""

    terms_B: Tensor  # mean over the pairs of features; the loss is their mean over all micro-batches and processes
    hits_B: Tensor  # whether the likeliest picture of a text is its own, by the first pair of features
    negatives: Negatives | None


@dataclass(frozen=True)
class GlobalContrast:
    """Contrast of one or several pairs of features of the same texts and pictures, and negatives for matching.

    An objective gives its features as the `seen` of a forward without counts, hands `survey` on to this one, and calls
    it with the features of every forward. Batches have `picture` [B] unless the rule takes all for different pictures;
    for negatives also `image`, `text_ids` and `text_keep`.

    Args:
        rule: what is compared, and how.
        draw: how a negative is chosen, by the first pair; None: none is.
        cached: compare the whole step (`caching`), not one micro-batch of every process.
    """

    rule: ContrastRule
    draw: Draw | None = sampled
    cached: bool = False

    def survey(self, batches: list[Batch], look: Callable[[int], tuple[Compared, ...]]) -> list[Batch]:
        """See `Objective.survey`: with `cached` the batches know their terms, gradients and negatives."""
        if not self.cached or len(batches) == 1:
            return batches  # a single micro-batch is the whole step
        seen = [look(index) for index in range(len(batches))]
        found, chosen = self._over_step(seen, self._pictures(batches, seen[0][0].text_BD.device))
        if chosen:
            for batch, given in zip(found, exchange(batches, chosen), strict=True):
                batch |= {f"negative_{name}": value for name, value in given._asdict().items()}
        return [{**batch, **more} for batch, more in zip(batches, found, strict=True)]

    def __call__(self, pairs: Sequence[Compared], batch: Batch) -> Contrasted:
        """Terms and negatives of a micro-batch, from the survey if there was one."""
        if TERMS in batch:
            given = [batch.get(f"negative_{name}") for name in Negatives._fields]
            negatives = None if given[0] is None else Negatives(*given)  # type: ignore[arg-type]
            return Contrasted(stand_in_terms(pairs, batch), batch[HITS], negatives)
        own_B = own_columns(len(pairs[0].text_BD), pairs[0].text_BD.device)
        left_out_BG = self._left_out(self._pictures([batch], own_B.device), own_B)
        results = [contrast(pair, self.rule, left_out_BG) for pair in pairs]
        likely = results[0][1]
        negatives = None
        if self.draw is not None:
            negatives = exchange([batch], [choose(likely, own_B, left_out_BG, self.draw)])[0]
        return Contrasted(_mean_terms(results), _hits(likely, own_B), negatives)

    def with_negatives(self, batch: Batch) -> int:
        """How many rows of a batch have a negative: all, or none where all processes see a single picture."""
        if TERMS in batch:
            return int(batch["negative_there_B"].sum())
        rows = len(batch["text_ids"])
        if self.rule.same_picture_negatives:
            return rows
        pictures = set(batch["picture"].tolist())
        found = set(dist.gather_numbers(pictures.pop() if len(pictures) == 1 else -1))  # of pictures they are positive
        return rows if -1 in found or len(found) > 1 else 0

    def _over_step(
        self, seen: Sequence[Sequence[Compared]], picture_S: Tensor | None
    ) -> tuple[list[Batch], list[Chosen]]:
        """What each micro-batch must know of the whole step, and which rows it wants as negatives."""
        rows, blocks = len(seen[0][0].text_BD), len(seen)
        own_SB = own_columns(rows * blocks, seen[0][0].text_BD.device).split(rows)
        steps = [StepContrast([pairs[number] for pairs in seen], self.rule) for number in range(len(seen[0]))]
        found: list[Batch] = []
        chosen: list[Chosen] = []
        picture_G = None if picture_S is None else dist.gather(picture_S)
        for index, own_B in enumerate(own_SB):
            left_out_BG = None if picture_G is None else others_of_picture(picture_G[own_B], picture_G, own_B)
            results = [step.block(index, own_B, left_out_BG) for step in steps]
            likely = results[0][1]
            if self.draw is not None:
                chosen.append(choose(likely, own_B, left_out_BG, self.draw))
            found.append({TERMS: _mean_terms(results), HITS: _hits(likely, own_B)})
        for number, step in enumerate(steps):
            for batch, parts in zip(found, step.gradients(), strict=True):
                grads = {gradient_key(number, name): grad for name, grad in parts._asdict().items()}
                batch |= {name: grad / len(steps) for name, grad in grads.items() if grad is not None}
        return found, chosen

    def _pictures(self, batches: Sequence[Batch], device: torch.device) -> Tensor | None:
        """Which picture each row has, [S]; None where that does not matter."""
        if self.rule.same_picture_negatives:
            return None
        return torch.cat([batch["picture"].to(device) for batch in batches])

    def _left_out(self, picture_B: Tensor | None, own_B: Tensor) -> Tensor | None:
        return None if picture_B is None else others_of_picture(picture_B, dist.gather(picture_B), own_B)


def _hits(likely: Likenesses, own_B: Tensor) -> Tensor:
    return likely.text_BG.argmax(1) == own_B


def _mean_terms(results: Sequence[tuple[Tensor, Likenesses]]) -> Tensor:
    return torch.stack([terms_B for terms_B, _ in results]).mean(0)
