"""Top-1 and top-5 accuracy over a split, and the guess for one picture.

Legend: B batch, V classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlbeit.data.records import open_image
from vlbeit.dist import gather_objects
from vlbeit.errors import UsageError
from vlbeit.types import Batch


class ClassificationEvaluator:
    """Share of pictures, in percent, whose label is the best guess (`top1`) or among the best five (`top5`).

    A sample that is seen twice counts once, so that padding by a sampler cannot move the number.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.ranks: dict[str, int] = {}  # sample id -> how many classes look likelier than the label
        self._gathered: dict[str, int] = {}

    @torch.no_grad()
    def update(self, objective: nn.Module, batch: Batch) -> None:
        """Rank the labels of one batch."""
        order_BV = objective.class_logits(batch).argsort(dim=-1, descending=True, stable=True)
        rank_B = (order_BV == batch["label"][:, None]).int().argmax(dim=-1)
        self.ranks.update(zip(batch["sample_id"], rank_B.tolist(), strict=True))

    def compute(self) -> dict[str, float]:
        """`top1`, `top5` (left out where five classes are all there are) and `images`, over all processes."""
        self._gathered = {key: rank for part in gather_objects(self.ranks) for key, rank in part.items()}
        ranks = list(self._gathered.values())
        if not ranks:
            raise ValueError("no picture was evaluated")
        result = {"top1": _percent(ranks, 1)}
        if self.num_classes > 5:
            result["top5"] = _percent(ranks, 5)
        return result | {"images": len(ranks)}

    def details(self) -> list[dict[str, Any]]:
        """One row per picture of the last `compute`: sample_id, and score 1 where the best guess was right."""
        return [{"sample_id": key, "score": float(rank == 0)} for key, rank in sorted(self._gathered.items())]

    def state_dict(self) -> dict[str, Any]:
        """The ranks so far, of this process."""
        return {"ranks": dict(self.ranks)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` left off."""
        self.ranks = dict(state["ranks"])


class ClassificationPredictor:
    """Classes of a picture with their softmax probabilities."""

    def __init__(self, objective: nn.Module, image: Callable[[Any], Tensor], classes: Sequence[str]) -> None:
        self.objective = objective.eval()
        self.image = image
        self.classes = list(classes)

    @torch.no_grad()
    def __call__(self, image: Any, text: str | None = None, *, top: int = 5) -> list[tuple[str, float]]:
        """Path, bytes or PIL image -> `top` pairs of class and probability, best first.

        Raises UsageError where a `text` is given, ImageError for a picture that cannot be read.
        """
        if text is not None:
            raise UsageError("a classification run takes a picture alone: leave the question out")
        device = next(self.objective.parameters()).device
        batch = {"sample_id": ["0"], "image": self.image(open_image(image))[None].to(device)}
        probability_V = self.objective.class_logits(batch)[0].float().softmax(dim=-1)
        best = probability_V.topk(min(max(top, 1), len(self.classes)))
        return [
            (self.classes[index], value)
            for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]


def _percent(ranks: Sequence[int], top: int) -> float:
    return 100 * sum(rank < top for rank in ranks) / len(ranks)
