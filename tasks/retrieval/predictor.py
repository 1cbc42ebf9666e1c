"""The best texts for a picture, the best pictures of a folder for a text.

Legend: P pictures, M texts, E width of the vectors.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vlbeit.config import DataConfig
from vlbeit.data.collate import collate
from vlbeit.data.loader import EvalLoader
from vlbeit.data.records import ListRecords, open_image
from vlbeit.data.sources.base import check_pictures, walk_images
from vlbeit.data.text import Tokenizer
from vlbeit.data.transforms import EvalImage
from vlbeit.engine.progress import counting
from vlbeit.errors import DataError, UsageError
from vlbeit.models.features import digest
from vlbeit.types import DataSpec

from .folder import FolderVectors
from .objective import RetrievalObjective
from .records import PictureAlone
from .reranking import match_scores, placed, text_tensors

log = logging.getLogger(__name__)

_PICTURES, _TEXTS = 32, 256  # that go through a tower at a time


class FoundText(NamedTuple):
    """A text and how near it is to the picture."""

    text: str
    similarity: float  # cosine


class FoundPicture(NamedTuple):
    """A picture and how near it is to the text."""

    picture: str
    similarity: float


class MatchedText(NamedTuple):
    """A text of the first ones, put in order by the fused experts too."""

    text: str
    score: float  # scale * similarity + log odds of a match
    match: float  # probability, among hard negatives
    similarity: float


class MatchedPicture(NamedTuple):
    """A picture of the first ones, put in order by the fused experts too."""

    picture: str
    score: float
    match: float
    similarity: float


class RetrievalPredictor:
    """Compares pictures and texts by their vectors; with `rerank` the first so many by the fused experts too.

    Args:
        objective: on its device.
        image: a PIL picture to a tensor.
        data: of the run: cache, loader processes and what pictures are normalised by.
        rerank: how many; 0: none.
    """

    def __init__(
        self, objective: RetrievalObjective, image: EvalImage, tokenizer: Tokenizer, data: DataConfig, rerank: int = 0
    ) -> None:
        self.objective: Any = objective.eval()
        self.image, self.tokenizer, self.data, self.rerank = image, tokenizer, data, rerank

    def __call__(self, image: Any, text: str | None = None, *, top: int = 5) -> Sequence[FoundText | MatchedText]:
        """A picture and texts, a line each -> the best `top`. Raises UsageError without a text."""
        texts = [line.strip() for line in (text or "").splitlines() if line.strip()]
        if not texts:
            raise UsageError(
                "a retrieval run needs what it is to search: vlbeit predict RUN picture.jpg --texts FILE, "
                'or vlbeit predict RUN "a red circle" --images DIR'
            )
        return self.texts(image, texts, top=top)

    @torch.no_grad()
    def texts(self, image: Any, texts: Sequence[str], *, top: int = 5) -> Sequence[FoundText | MatchedText]:
        """Path, bytes or PIL image -> the `top` nearest of the texts, best first; blank ones are none.

        Raises ImageError for a picture that cannot be read, UsageError without a text or for one that is in no list.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise UsageError("texts to choose from are a list of strings: give [text, ...]")
        texts = list(dict.fromkeys(text.strip() for text in texts if text.strip()))
        if not texts:
            raise UsageError("there are no texts to choose from")
        look = placed(self.image(open_image(image))[None], self.objective)
        vector_E = self.objective.image_vectors(look).float()[0].cpu()
        similarity_M = self._text_vectors(texts) @ vector_E
        first = _best(similarity_M, max(top, self.rerank))
        if not self.rerank:
            return [FoundText(texts[place], float(similarity_M[place])) for place in first]
        picture = self.objective.encoder.embed_image(look)
        scores = match_scores(self.objective, self.tokenizer, picture, [texts[place] for place in first])
        rows = zip([texts[place] for place in first], scores, similarity_M[first].tolist(), strict=True)
        return [MatchedText(*row) for row in self._ordered(rows)[:top]]

    @torch.no_grad()
    def pictures(self, text: str, folder: str | Path, *, top: int = 5) -> Sequence[FoundPicture | MatchedPicture]:
        """A text -> the `top` nearest pictures below a folder, best first. Vectors of pictures are kept in the cache.

        Raises UsageError for an empty text, DataError where the folder is none or has no picture that can be read.
        """
        if not text.strip():
            raise UsageError("the text is empty: say what is to be found")
        folder = Path(folder).expanduser()
        check_pictures(folder)
        paths = [Path(top_folder, name) for top_folder, names in walk_images(folder) for name in names]
        kept = FolderVectors(self.data.cache, self._facts, folder)(paths, self._picture_vectors)
        if not kept.pictures:
            raise DataError(f"{folder} has no picture that can be read")
        if kept.unreadable:
            log.warning("%d of %d pictures cannot be read and are left out", len(kept.unreadable), len(paths))
        names = [str(folder / path.relative_to(folder.absolute())) for path in kept.pictures]  # as the folder was given
        similarity_P = torch.from_numpy(kept.vectors_PE) @ self._text_vectors([text])[0]
        first = _best(similarity_P, max(top, self.rerank))
        if not self.rerank:
            return [FoundPicture(names[place], float(similarity_P[place])) for place in first]
        scores = self._matches([kept.pictures[place] for place in first], text)
        there = [(place, score) for place, score in zip(first, scores, strict=True) if score is not None]
        rows = ((names[place], score, float(similarity_P[place])) for place, score in there)
        return [MatchedPicture(*row) for row in self._ordered(rows)[:top]]

    def _ordered(self, rows: Iterable[tuple[str, float, float]]) -> list[tuple[str, float, float, float]]:
        """Name, log odds, cosine -> name, score, match, cosine, the highest score first (see `reranking`)."""
        scale = self.objective.scale
        found = [(name, float(odds) + scale * cosine, _probability(odds), cosine) for name, odds, cosine in rows]
        return sorted(found, key=lambda row: -row[1])

    @cached_property
    def _facts(self) -> str:
        """What the vectors of pictures hang on."""
        weights = digest(self.objective.encoder, [self.objective.heads["contrast"]])
        view = {"size": self.image.size, "mean": self.image.mean, "std": self.image.std}
        return json.dumps([weights, view])

    def _matches(self, paths: Sequence[Path], text: str) -> list[float | None]:
        """Log odds of a match of each picture with a text; None for one that can no longer be read, which is told."""
        scores: list[float | None] = [None] * len(paths)
        for places, look_BCHW in self._read(paths):
            ids_BT, keep_BT = text_tensors(self.objective, self.tokenizer, [text] * len(places))
            picture = self.objective.encoder.embed_image(look_BCHW)
            logits_B2 = self.objective.match_logits(ids_BT, keep_BT, picture).float()
            for place, odds in zip(places, (logits_B2[:, 1] - logits_B2[:, 0]).tolist(), strict=True):
                scores[place] = odds
        if lost := scores.count(None):
            log.warning("%d pictures cannot be read any more and are left out", lost)
        return scores

    def _text_vectors(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors [M, E] on the CPU."""
        parts = []
        with counting("read texts", len(texts)) as add:
            for start in range(0, len(texts), _TEXTS):
                some = texts[start : start + _TEXTS]
                parts.append(
                    self.objective.text_vectors(*text_tensors(self.objective, self.tokenizer, some)).float().cpu()
                )
                add(len(some))
        return torch.cat(parts)

    def _picture_vectors(self, paths: Sequence[Path]) -> Iterator[tuple[list[int], np.ndarray]]:
        """Places among the paths and their vectors, a few at a time."""
        with counting("read pictures", len(paths)) as add:
            for places, look_BCHW in self._read(paths):
                yield places, self.objective.image_vectors(look_BCHW).float().cpu().numpy()
                add(len(places))

    def _read(self, paths: Sequence[Path]) -> Iterator[tuple[list[int], Tensor]]:
        """Places among the paths and pictures [B, 3, height, width], a few at a time.

        Those that cannot be read are left out, which the log names.
        """
        records = ListRecords([{"id": str(path), "image": str(path)} for path in paths])
        spec = DataSpec(records, PictureAlone(self.image), collate)
        workers = self.data.workers if len(paths) > _PICTURES else 0
        place_of = {str(path): place for place, path in enumerate(paths)}
        for batch in EvalLoader(spec, batch_size=_PICTURES, workers=workers, max_bad_fraction=1.0):
            bad = set(batch["bad"])
            rows = [row for row, name in enumerate(batch["sample_id"]) if name not in bad]
            if rows:
                places = [place_of[batch["sample_id"][row]] for row in rows]
                yield places, placed(batch["image"][rows], self.objective)


def _best(similarity_N: Tensor, count: int) -> list[int]:
    """Places of the nearest, best first; of equal ones the first."""
    return similarity_N.sort(descending=True, stable=True).indices[: max(count, 1)].tolist()


def _probability(log_odds: float) -> float:
    return float(torch.tensor(log_odds).sigmoid())
