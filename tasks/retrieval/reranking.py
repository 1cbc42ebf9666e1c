"""The first candidates compared anew, text and picture as one sequence through the fused experts.

Legend: P pictures, M captions, K first candidates, n pairs, B pictures of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from vlbeit import dist
from vlbeit.data.collate import collate
from vlbeit.data.loader import EvalLoader
from vlbeit.data.records import ChosenRecords
from vlbeit.data.text import Tokenizer
from vlbeit.data.transforms import EvalImage
from vlbeit.engine.progress import counting
from vlbeit.types import DataSpec, Tokens

from .objective import RetrievalObjective
from .records import PictureAlone, PictureRecords

_PICTURES = 8  # read at a time
_PAIRS = 64  # compared at a time


class PairScores:
    """How well pictures and captions match, by the log odds of the matching head.

    Args:
        image: a PIL picture to a tensor.
        workers: loader processes.
    """

    def __init__(self, pictures: PictureRecords, image: EvalImage, tokenizer: Tokenizer, workers: int) -> None:
        self.pictures, self.image, self.tokenizer, self.workers = pictures, image, tokenizer, workers

    def __call__(self, objective: RetrievalObjective | None, pairs_n: np.ndarray) -> np.ndarray:
        """Scores of pairs, place of the picture * M + row of the caption, sorted: each picture is read once.

        All processes get all pairs and return all scores; those that have an objective share the work: one that saw no
        batch has none. Tells how far it is.
        """
        able = [rank for rank, has in enumerate(dist.gather_objects(objective is not None)) if has]
        own_n = np.array_split(pairs_n, len(able))[able.index(dist.rank())] if objective is not None else pairs_n[:0]
        own = self._of(objective, own_n, len(able)) if objective is not None else np.zeros(0, np.float32)
        return np.concatenate(dist.gather_objects(own))

    def _of(self, objective: RetrievalObjective, own_n: np.ndarray, processes: int) -> np.ndarray:
        captions = len(self.pictures.picture_of)
        places, starts = np.unique(own_n // captions, return_index=True)
        rows = np.split(own_n % captions, starts[1:]) if len(own_n) else []
        scores: list[np.ndarray] = []
        with counting("re-ranked pairs", processes * len(own_n)) as add, dist.alone():
            for place, picture in zip(range(len(places)), self._embedded(objective, places.tolist()), strict=True):
                scores.append(self._scores(objective, picture, rows[place].tolist()))
                add(processes * len(rows[place]))
        return np.concatenate(scores) if scores else np.zeros(0, np.float32)

    def _embedded(self, objective: RetrievalObjective, places: Sequence[int]) -> Iterator[Tokens]:
        """The pictures, one by one, as tokens before the blocks."""
        spec = DataSpec(ChosenRecords(self.pictures, places), PictureAlone(self.image), collate)
        loader = EvalLoader(spec, batch_size=_PICTURES, workers=self.workers, max_bad_fraction=1.0)  # counted before
        for batch in loader if places else ():
            tokens = objective.encoder.embed_image(placed(batch["image"], objective))
            yield from (tokens._replace(x_BLD=x_1LD) for x_1LD in tokens.x_BLD.split(1))

    def _scores(self, objective: RetrievalObjective, picture: Tokens, rows: Sequence[int]) -> np.ndarray:
        texts = [self.pictures.text(row) for row in rows]
        return match_scores(objective, self.tokenizer, picture, texts)


def match_scores(
    objective: RetrievalObjective, tokenizer: Tokenizer, picture: Tokens, texts: Sequence[str]
) -> np.ndarray:
    """Log odds [texts] that a picture, embedded [1, L, D], and each of some texts belong together."""
    scores = []
    for start in range(0, len(texts), _PAIRS):
        ids_BT, keep_BT = text_tensors(objective, tokenizer, texts[start : start + _PAIRS])
        same = picture._replace(x_BLD=picture.x_BLD.expand(len(ids_BT), -1, -1))
        logits_B2 = objective.match_logits(ids_BT, keep_BT, same).float()
        scores.append((logits_B2[:, 1] - logits_B2[:, 0]).cpu().numpy())
    return np.concatenate(scores)


def text_tensors(
    objective: RetrievalObjective, tokenizer: Tokenizer, texts: Sequence[str]
) -> tuple[Tensor, Tensor | None]:
    """Token ids [B, T] on the objective's device, and which of them are real; None where all are."""
    batch = collate([{"text_ids": tokenizer(text)} for text in texts])
    device = next(objective.parameters()).device
    keep_BT = None if bool(batch["text_keep"].all()) else batch["text_keep"].to(device)
    return batch["text_ids"].to(device), keep_BT


def placed(image_BCHW: Tensor, objective: RetrievalObjective) -> Tensor:
    """On the objective's device; in double precision where it is."""
    parameter = next(objective.parameters())
    double = parameter.dtype == torch.float64
    return image_BCHW.to(parameter.device, torch.float64 if double else None)
