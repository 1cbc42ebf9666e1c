"""Hard negatives of image-text matching: pairs that the contrast takes for likely, and that do not belong together.

Legend: B local rows, G rows of all processes, T text tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vlbeit import dist
from vlbeit.errors import UsageError
from vlbeit.objectives.base import logged
from vlbeit.objectives.contrastive import Likenesses
from vlbeit.types import Batch, Logs

Draw = Callable[[Tensor], Tensor]
"""Probabilities [B, G], 0 on what must not be chosen -> the chosen column of every row, [B]."""


def sampled(weights_BG: Tensor) -> Tensor:
    """One column per row, drawn by its probability (ALBEF, VLMo)."""
    return torch.multinomial(weights_BG, 1).squeeze(1)


def hardest(weights_BG: Tensor) -> Tensor:
    """The most likely column of every row."""
    return weights_BG.argmax(1)


DRAWS: dict[str, Draw] = {"sampled": sampled, "hardest": hardest}


class Chosen(NamedTuple):
    """Columns of all processes that were drawn for the local rows."""

    image_of_text_B: Tensor
    text_of_image_B: Tensor
    there_B: Tensor  # False: the row has no negative, and what stands in its place must not count


class Negatives(NamedTuple):
    """A wrong picture for every local text, and a wrong text for every local picture."""

    image: Tensor  # [B, 3, height, width]
    text_ids: Tensor  # [B, T]
    text_keep: Tensor  # [B, T]
    there_B: Tensor  # as above


@torch.no_grad()
def choose(likely: Likenesses, own_B: Tensor, left_out_BG: Tensor | None, draw: Draw) -> Chosen:
    """Negatives of all local rows; `left_out_BG` are more pairs that are none, beside a row with itself."""
    excluded_BG = torch.zeros_like(likely.text_BG, dtype=torch.bool) if left_out_BG is None else left_out_BG.clone()
    excluded_BG.scatter_(1, own_B[:, None], True)
    image_of_text_B, text_of_image_B = (negatives(logits_BG, excluded_BG, draw) for logits_BG in likely)
    return Chosen(image_of_text_B, text_of_image_B, ~excluded_BG.all(1))


@torch.no_grad()
def negatives(logits_BG: Tensor, excluded_BG: Tensor, draw: Draw) -> Tensor:
    """For every local row a column that is not excluded, by its likelihood, [B]; any where all are.

    Raises UsageError where the global batch holds a single pair: there is no negative.
    """
    if logits_BG.shape[1] < 2:
        raise UsageError("matching needs at least two pairs a micro-batch: raise micro_batch_size or global_batch_size")
    # NaN of weights that have run away shows in the loss, where the engine names the samples
    weights_BG = logits_BG.float().softmax(1).nan_to_num(0)
    # a softmax that is all on the pair itself leaves zeros: a floor keeps every other pair drawable
    weights_BG = weights_BG.clamp_min(torch.finfo(weights_BG.dtype).tiny)
    weights_BG[excluded_BG & ~excluded_BG.all(1, keepdim=True)] = 0
    return draw(weights_BG)


def paired(batch: Batch, negatives: Negatives, *more_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, which of them are real, and pictures: [3 * B, T] of true pairs, texts with wrong pictures, pictures
    with wrong texts, all as wide as the widest; then the true pairs again with each of `more_BT` as their ids.
    """
    image, width = batch["image"], negatives.text_ids.shape[1]
    ids, keep, *more = (
        F.pad(part, (0, width - part.shape[1])) for part in (batch["text_ids"], batch["text_keep"].bool(), *more_BT)
    )
    return (
        torch.cat([ids, ids, negatives.text_ids, *more]),
        torch.cat([keep, keep, negatives.text_keep, *[keep] * len(more)]),
        torch.cat([image, negatives.image, image, *[image] * len(more)]),
    )


def match_terms(logits: Tensor, there_B: Tensor) -> tuple[Tensor, Logs]:
    """Terms of true pairs, then of texts with wrong pictures and of pictures with wrong texts, and their logs.

    `logits` [3 * B, 2]; where there is no wrong one no term. `itm_majority` is what always
    saying that a pair is wrong would reach.
    """
    labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    labels[: len(there_B)] = 1
    there = torch.cat([torch.ones_like(there_B), there_B, there_B])
    terms = F.cross_entropy(logits, labels, reduction="none")[there]
    hits, wrong = (logits.argmax(1) == labels)[there], (labels == 0)[there]
    return terms, {"itm": logged(terms), "itm_accuracy": logged(hits), "itm_majority": logged(wrong)}


def exchange(batches: Sequence[Batch], chosen: Sequence[Chosen]) -> list[Negatives]:
    """What was chosen for each micro-batch, from those of all processes; only that is sent.

    All micro-batches are of one size. Columns count the processes, in each its micro-batches, in these their rows.
    Everything lies where the rows of the batches lie.
    """
    width = max(dist.gather_numbers(max(batch["text_ids"].shape[1] for batch in batches)))
    images = [batch["image"] for batch in batches]
    texts = [
        torch.stack([F.pad(part, (0, width - part.shape[1])) for part in (ids, keep.to(ids.dtype))], 1)
        for ids, keep in ((batch["text_ids"], batch["text_keep"]) for batch in batches)
    ]
    found = []
    for image_of_text_B, text_of_image_B, there_B in chosen:
        ids, keep = _fetch(texts, text_of_image_B).unbind(1)
        found.append(Negatives(_fetch(images, image_of_text_B), ids, keep.bool(), there_B))
    return found


def _fetch(parts: Sequence[Tensor], wanted_B: Tensor) -> Tensor:
    """Rows of the parts of all processes, which lie one after the other."""
    size = len(parts[0])

    def take(indices: Tensor) -> Tensor:
        if len(parts) == 1:
            return parts[0][indices.to(parts[0].device)]
        rows = [parts[index // size][index % size] for index in indices.tolist()]
        return torch.stack(rows) if rows else parts[0][:0]

    return dist.fetch_rows(take, size * len(parts), wanted_B).to(parts[0].device)
