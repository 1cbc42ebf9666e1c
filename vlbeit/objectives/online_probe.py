"""Is this run learning? Two numbers about the features of now, cheap enough to take at every evaluation.

Legend: B batch, M pictures, D width, V classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlbeit import dist
from vlbeit.data.loader import EvalLoader
from vlbeit.data.records import ChosenRecords
from vlbeit.models.features import patch_mean
from vlbeit.types import Batch, DataSpec, Records

RIDGE = 0.1  # penalty beside features of deviation 1
_BATCH = 64


class Labelled(NamedTuple):
    """Loaders of labelled pictures, `image` and `label`: to fit a classifier on, and to score it on."""

    train: EvalLoader
    val: EvalLoader


class OnlineProbe:
    """Evaluator: `effective_rank` of the features of pictures, and with labelled ones `probe`, a classifier's accuracy.

    Features are the mean of the patches after the last block and the final norm, of pictures without a mask. Nothing is
    trained by steps and nothing drawn, so that the run goes on as if it had not been asked.

    Args:
        images: how many validation pictures the rank is of, at most.
        labelled: pictures for a ridge classifier in closed form; None: `probe` is left out.
    """

    def __init__(self, images: int, labelled: Labelled | None = None) -> None:
        self.images, self.labelled = images, labelled
        self.features: list[Tensor] = []  # of this process
        self._objective: Any = None

    @torch.no_grad()
    def update(self, objective: nn.Module, batch: Batch) -> None:
        """Add the features of one batch, as long as fewer than `images` over all processes are there."""
        self._objective = objective
        missing = -(-self.images // dist.world_size()) - sum(len(part) for part in self.features)
        if missing > 0:
            self.features.append(patch_mean(self._objective.encoder, batch["image"][:missing]).float().cpu())

    @torch.no_grad()
    def compute(self) -> dict[str, float]:
        """`effective_rank`, from 1 to the width; `probe`, percent of the labelled validation pictures."""
        features = [part for parts in dist.gather_objects(self.features) for part in parts]
        numbers = {"effective_rank": effective_rank(torch.cat(features))}
        if self.labelled is not None:
            train_MD, train_label = self._of(self.labelled.train)
            val_MD, val_label = self._of(self.labelled.val)
            guess = ridge_guesses(train_MD, train_label, val_MD)
            numbers["probe"] = 100 * float((guess == val_label).double().mean())
        return numbers

    def _of(self, loader: EvalLoader) -> tuple[Tensor, Tensor]:
        """Features [M, D] and labels [M] of all pictures of a loader, in an order that hangs on them alone."""
        rows: dict[str, tuple[Tensor, int]] = {}
        # a process that was shown no picture at all leaves out its share here too
        for batch in loader if self._objective is not None else ():
            parameter = next(self._objective.parameters())
            image = batch["image"].to(parameter.device, parameter.dtype)
            features = patch_mean(self._objective.encoder, image).float().cpu()
            rows |= dict(zip(batch["sample_id"], zip(features, batch["label"].tolist(), strict=True), strict=True))
        merged = {key: row for part in dist.gather_objects(rows) for key, row in part.items()}
        order = sorted(merged)
        return torch.stack([merged[key][0] for key in order]), torch.tensor([merged[key][1] for key in order])

    def state_dict(self) -> dict[str, Any]:
        return {"features": list(self.features)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.features = list(state["features"])


def effective_rank(features_MD: Tensor) -> float:
    """exp of the entropy of the singular values over their sum (RankMe, Garrido et al. 2022, arXiv 2210.02885).

    1 where all rows are multiples of one, min(M, D) where the singular values are equal; 0 for rows of zeros.
    """
    values = torch.linalg.svdvals(features_MD.double())
    if values.sum() == 0:
        return 0.0
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


def ridge_guesses(train_MD: Tensor, train_label: Tensor, val_MD: Tensor) -> Tensor:
    """Labels [rows of val] by least squares onto one-hot classes with an L2 penalty, solved in closed form."""
    mean, deviation = train_MD.double().mean(0), train_MD.double().std(0, correction=0).clamp_min(1e-6)
    x_MD, y_MD = (train_MD.double() - mean) / deviation, (val_MD.double() - mean) / deviation
    target_MV = F.one_hot(train_label).double()
    offset = target_MV.mean(0)
    gram = x_MD.T @ x_MD + RIDGE * len(x_MD) * torch.eye(x_MD.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, x_MD.T @ (target_MV - offset))
    return (y_MD @ weights + offset).argmax(1)


def some_of(spec: DataSpec, images: int, workers: int, max_bad_fraction: float) -> EvalLoader:
    """A loader of `images` pictures of a split at most, at even distances: so a table sorted by class gives all."""
    records: Records = spec.records
    if len(records) > images:
        records = ChosenRecords(records, [index * len(records) // images for index in range(images)])
    return EvalLoader(
        spec._replace(records=records), batch_size=_BATCH, workers=workers, max_bad_fraction=max_bad_fraction
    )
