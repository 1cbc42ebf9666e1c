"""Recall over a whole split: every picture and every caption goes through its tower once, and is searched exactly.

Legend: P pictures, M captions, B pictures of a batch, n captions of it, E width of the vectors, K first candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vlbeit import dist
from vlbeit.bootstrap import Interval
from vlbeit.types import Batch

from .numbers import DEPTHS, Ranks, chance, intervals, recalls
from .objective import RetrievalObjective
from .ranking import Found, rank_pictures, rank_texts, reranked
from .records import PictureRecords
from .reranking import PairScores

_TEXTS = 256  # captions that go through the tower at a time
_WAYS = {"txt": "picture to its texts", "img": "text to its picture"}


class _Part(NamedTuple):
    """Vectors of some rows."""

    rows: np.ndarray
    vectors: np.ndarray  # [rows, E], float32


class RetrievalEvaluator:
    """Recall at 1, 5 and 10 both ways, in percent, with what chance reaches; after re-ranking of the first too.

    Args:
        pictures: of the split.
        scores: compares pairs anew; None: nothing is re-ranked.
        rerank: how many candidates of each query are.
    """

    over = "pictures, each with its captions"

    def __init__(self, pictures: PictureRecords, scores: PairScores | None = None, rerank: int = 0) -> None:
        self.pictures, self.scores, self.rerank = pictures, scores, rerank
        self.images: list[_Part] = []
        self.texts: list[_Part] = []
        self._objective: RetrievalObjective | None = None
        self._ranks: dict[str, Ranks] = {}  # of the last `compute`; "" and "reranked_"
        self._first: dict[str, np.ndarray] = {}  # way -> the first candidate of each query

    @torch.no_grad()
    def update(self, objective: RetrievalObjective, batch: Batch) -> None:
        """Keep the vectors of a batch, as of `collate_pictures`."""
        self._objective = objective
        self.images.append(_part(batch["place"], objective.image_vectors(batch["image"])))
        for start in range(0, len(batch["rows"]), _TEXTS):
            some = slice(start, start + _TEXTS)
            keep_BT = batch["text_keep"][some]
            keep = None if bool(keep_BT.all()) else keep_BT
            self.texts.append(_part(batch["rows"][some], objective.text_vectors(batch["text_ids"][some], keep)))

    @torch.no_grad()
    def compute(self) -> dict[str, float]:
        """`recall_mean`, `txt_r1` ... `img_r10`, `txt_median_rank`, `img_median_rank`; `reranked_` of these; `chance`.

        `chance` is the `recall_mean` of guessing.
        """
        image_PE = _whole(self.images, len(self.pictures))
        text_ME = _whole(self.texts, len(self.pictures.picture_of))
        if self._objective is not None and torch.cuda.is_available():
            device = next(self._objective.parameters()).device
            image_PE, text_ME = image_PE.to(device), text_ME.to(device)
        texts, pictures = self._search(image_PE, text_ME)
        self._ranks = {"": Ranks(texts.rank_Q, pictures.rank_Q)}
        self._first = {"txt": texts.first_QK[:, 0], "img": pictures.first_QK[:, 0]}
        numbers = recalls(self._ranks[""])
        if self.scores is not None:
            self._ranks["reranked_"] = again = self._reranked(texts, pictures)
            numbers |= {f"reranked_{name}": value for name, value in recalls(again).items()}
        guessed = chance(self.pictures.picture_of)["recall_mean"]
        return numbers | {"chance": guessed, "pictures": len(image_PE), "captions": len(text_ME)}

    def intervals(self) -> dict[str, Interval]:
        """Of the recalls, in percent."""
        found = {prefix: intervals(ranks, self.pictures.picture_of) for prefix, ranks in self._ranks.items()}
        return {f"{prefix}{name}": ends for prefix, each in found.items() for name, ends in each.items()}

    def report(self, controls: Mapping[str, Any]) -> tuple[dict[str, Any], list[list[dict[str, Any]]]]:
        """What chance reaches and what the scores of the details are; the table of both ways."""
        picture_of = self.pictures.picture_of
        guessed = chance(picture_of)
        rows = [self._row(prefix, way) for prefix in self._ranks for way in _WAYS]
        rows += [_table_row(f"chance, {told}", [guessed[f"{way}_r{k}"] for k in DEPTHS]) for way, told in _WAYS.items()]
        compared = {"score": "recall at 1", "over": "queries"}
        return {"chance_level": guessed, "compared": compared}, [rows]

    def details(self) -> list[dict[str, Any]]:
        """One row per query of the last `compute`: sample_id, direction, rank, score (1: rank 1), the first candidate.

        `reranked_rank` where there is one.
        """
        names = list(self.pictures.column("id"))
        ids = list(self.pictures.pairs.column("id"))
        rows = []
        for way, asked, found in (("txt", names, ids), ("img", ids, names)):
            kind, other = ("picture", "caption") if way == "txt" else ("caption", "picture")
            for place, name in enumerate(asked):
                ranks = {f"{prefix}rank": int(_of(ranks, way)[place]) for prefix, ranks in self._ranks.items()}
                first = f"{other} {found[self._first[way][place]]}"
                row = {"sample_id": f"{kind} {name}", "direction": _WAYS[way], **ranks, "first": first}
                rows.append(row | {"score": float(ranks["rank"] == 1)})
        return rows

    def state_dict(self) -> dict[str, Any]:
        """The vectors so far, of this process."""
        return {"images": list(self.images), "texts": list(self.texts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up vectors where `state_dict` left them."""
        self.images = [_Part(*part) for part in state["images"]]
        self.texts = [_Part(*part) for part in state["texts"]]

    def _search(self, image_PE: Tensor, text_ME: Tensor) -> tuple[Found, Found]:
        """Texts of every picture and pictures of every text; the processes share the queries."""
        picture_of_M = torch.as_tensor(self.pictures.picture_of, device=image_PE.device)
        most = max(1, self.rerank if self.scores is not None else 0)
        own_P, own_M = (_share(len(each), image_PE.device) for each in (image_PE, text_ME))
        texts = rank_texts(image_PE[own_P], text_ME, own_P, picture_of_M, most)
        pictures = rank_pictures(text_ME[own_M], image_PE, picture_of_M[own_M], most)
        parts = dist.gather_objects((texts, pictures))
        return _merged([part[0] for part in parts]), _merged([part[1] for part in parts])

    def _reranked(self, texts: Found, pictures: Found) -> Ranks:
        """Both ways from one pass over the pairs that are a candidate of one of them."""
        assert self.scores is not None
        picture_of, captions = self.pictures.picture_of, len(self.pictures.picture_of)
        of_texts = np.arange(len(texts.rank_Q))[:, None] * captions + texts.first_QK
        of_pictures = pictures.first_QK * captions + np.arange(captions)[:, None]
        pairs = np.unique(np.concatenate([of_texts.ravel(), of_pictures.ravel()]))
        scores = self.scores(self._objective, pairs)
        right_texts = picture_of[texts.first_QK] == np.arange(len(texts.rank_Q))[:, None]
        right_pictures = pictures.first_QK == picture_of[:, None]
        return Ranks(
            reranked(texts.rank_Q, scores[np.searchsorted(pairs, of_texts)], right_texts),
            reranked(pictures.rank_Q, scores[np.searchsorted(pairs, of_pictures)], right_pictures),
        )

    def _row(self, prefix: str, way: str) -> dict[str, Any]:
        numbers = recalls(self._ranks[prefix])
        said = f"{_WAYS[way]}, first {self.rerank} re-ranked" if prefix else _WAYS[way]
        row = _table_row(said, [numbers[f"{way}_r{depth}"] for depth in DEPTHS])
        sizes = (len(self.pictures), len(self.pictures.picture_of))
        queries, candidates = sizes if way == "txt" else sizes[::-1]
        return row | {"median rank": numbers[f"{way}_median_rank"], "queries": queries, "candidates": candidates}


def _table_row(said: str, values: list[float]) -> dict[str, Any]:
    return {"": said, **{f"R@{depth}": round(value, 2) for depth, value in zip(DEPTHS, values, strict=True)}}


def _of(ranks: Ranks, way: str) -> np.ndarray:
    return ranks.texts_P if way == "txt" else ranks.pictures_M


def _part(rows: Tensor, vectors: Tensor) -> _Part:
    return _Part(rows.cpu().numpy(), vectors.float().cpu().numpy())


def _whole(parts: list[_Part], count: int) -> Tensor:
    """The vectors of all processes by row."""
    gathered = [part for each in dist.gather_objects(parts) for part in each]
    assert sum(len(part.rows) for part in gathered) == count, "every row is seen once"
    whole = np.empty((count, gathered[0].vectors.shape[1]), np.float32)
    for part in gathered:
        whole[part.rows] = part.vectors
    return torch.from_numpy(whole)


def _share(count: int, device: torch.device) -> Tensor:
    """The queries of this process: a run of them, so that those of all processes are in order."""
    ends = np.linspace(0, count, dist.world_size() + 1).astype(int)
    return torch.arange(ends[dist.rank()], ends[dist.rank() + 1], device=device)


def _merged(parts: list[Found]) -> Found:
    filled = [part for part in parts if len(part.rank_Q)]
    return Found(np.concatenate([part.rank_Q for part in filled]), np.concatenate([part.first_QK for part in filled]))
