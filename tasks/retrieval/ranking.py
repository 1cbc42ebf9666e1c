"""Exact search in blocks: at which rank of all candidates the right one stands, and which ones come first.

A rank counts every wrong candidate whose score is not lower: a tie counts against the model, so that vectors which are
all alike, or not numbers, come last and not first. Scores are compared as computed, to rounding; which of tied ones are
among the first K candidates, which re-ranking looks at, is left to the search.

Legend: Q queries, C candidates, P pictures, M captions, E width of the vectors, K first candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_CELLS = 1 << 24  # scores that are held at a time: 64 MiB


class Found(NamedTuple):
    """Of some queries the ranks of what is right, 1 the best, and the first candidates."""

    rank_Q: np.ndarray  # int64
    first_QK: np.ndarray  # int64, best first
    cosine_QK: np.ndarray  # float32, theirs


def rank_pictures(text_QE: Tensor, image_PE: Tensor, right_Q: Tensor, most: int) -> Found:
    """For each text the rank of its picture `right_Q` among all, and the `most` nearest pictures."""
    found = []
    for rows, score_QP in _scored(text_QE, image_PE):
        right_Q1 = score_QP.gather(1, right_Q[rows, None])
        rank_Q = (~(score_QP < right_Q1)).sum(1)  # itself is among them
        found.append((rank_Q, *_first(score_QP, most)))
    return _joined(found)


def rank_texts(image_QE: Tensor, text_ME: Tensor, own_Q: Tensor, picture_of_M: Tensor, most: int) -> Found:
    """For each picture, `own_Q` by its place, the rank of its best caption among those of others; the nearest captions.

    Any caption of the picture is right (Karpathy and Fei-Fei, arXiv 1412.2306); its other captions are no rivals.
    """
    found = []
    for rows, score_QM in _scored(image_QE, text_ME):
        own_QM = picture_of_M == own_Q[rows, None]
        first = _first(score_QM, most)
        right_Q1 = score_QM.masked_fill(~own_QM, -torch.inf).amax(1, keepdim=True)
        rivals_Q = (~(score_QM < right_Q1) & ~own_QM).sum(1)
        found.append((rivals_Q + 1, *first))
    return _joined(found)


def reranked(rank_Q: np.ndarray, score_QK: np.ndarray, right_QK: np.ndarray) -> np.ndarray:
    """Ranks after the first K candidates are put in the order of other scores; those behind them stay."""
    best_Q1 = np.where(right_QK, score_QK, -np.inf).max(axis=1, keepdims=True)
    rivals_Q = (~(score_QK < best_Q1) & ~right_QK).sum(axis=1)
    return np.where(right_QK.any(axis=1), rivals_Q + 1, rank_Q)


def _scored(query_QE: Tensor, candidate_CE: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Cosines [rows, C] of a few queries at a time, in full precision also under autocast."""
    step = max(1, _CELLS // max(1, len(candidate_CE)))
    for start in range(0, len(query_QE), step):
        rows = slice(start, start + step)
        with torch.autocast(query_QE.device.type, enabled=False):
            yield rows, query_QE[rows] @ candidate_CE.T


def _first(score_QC: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The first candidates and their cosines."""
    first = score_QC.nan_to_num(-torch.inf).topk(min(most, score_QC.shape[1]), dim=1)  # NaN would come first
    return first.indices, first.values


def _joined(found: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Found:
    if not found:
        return Found(np.zeros(0, np.int64), np.zeros((0, 0), np.int64), np.zeros((0, 0), np.float32))
    return Found(*(torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True)))
