"""Top-1 and top-5 accuracy over a split, and the guess for one picture.

Legend: B batch, V classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_accuracy

from vlbeit.bootstrap import Interval, mean_interval
from vlbeit.data.records import open_image
from vlbeit.dist import gather_objects
from vlbeit.task import check_no_text
from vlbeit.types import Batch


class _Hit(NamedTuple):
    """One picture: its label, and whether that was the best guess, or among the best five."""

    label: int
    top1: bool
    top5: bool


class ClassificationEvaluator:
    """Share of pictures, in percent, whose label is the best guess (`top1`) or among the best five (`top5`).

    By torchmetrics, picture by picture: one that is seen twice counts once, so that padding by a sampler, or a picture
    on two processes, cannot move the number.
    """

    over = "pictures"

    def __init__(self, num_classes: int, rows: Sequence[int] | None = None) -> None:
        """`rows`: of the classifier, those that are compared; the labels count among them, in this order."""
        self.rows = None if rows is None else torch.tensor(list(rows))
        self.num_classes = num_classes if rows is None else len(rows)
        self.hits: dict[str, _Hit] = {}  # by sample id
        self._gathered: dict[str, _Hit] = {}

    @torch.no_grad()
    def update(self, objective: nn.Module, batch: Batch) -> None:
        """Score the pictures of one batch."""
        logits_BV = objective.class_logits(batch).float()
        if self.rows is not None:
            logits_BV = logits_BV[:, self.rows.to(logits_BV.device)]
        top1_B, top5_B = (self._among_best(logits_BV, batch["label"], top) for top in (1, 5))
        found = zip(batch["sample_id"], batch["label"].tolist(), top1_B, top5_B, strict=True)
        self.hits.update({key: _Hit(label, top1, top5) for key, label, top1, top5 in found})

    def _among_best(self, logits_BV: Tensor, label_B: Tensor, top: int) -> list[bool]:
        """Whether each label is among the `top` likeliest classes, of which there may be fewer."""
        hit_B = multiclass_accuracy(
            logits_BV[..., None],
            label_B[:, None],  # a picture is a row of one pixel: so each has an accuracy of its own
            num_classes=self.num_classes,
            average="micro",
            top_k=min(top, self.num_classes),
            multidim_average="samplewise",
            validate_args=False,
        )
        return [value > 0 for value in hit_B.tolist()]

    def compute(self) -> dict[str, float]:
        """Over all processes: `top1`, `top5` (left out where five classes are all there are), `images`, `classes`.

        `classes` counts those that had a picture.
        """
        self._gathered = {key: hit for part in gather_objects(self.hits) for key, hit in part.items()}
        hits = list(self._gathered.values())
        if not hits:
            raise ValueError("no picture was evaluated")
        result = {"top1": 100 * sum(hit.top1 for hit in hits) / len(hits)}
        if self.num_classes > 5:
            result["top5"] = 100 * sum(hit.top5 for hit in hits) / len(hits)
        return result | {"images": len(hits), "classes": len({hit.label for hit in hits})}

    def details(self) -> list[dict[str, Any]]:
        """One row per picture of the last `compute`: sample_id, and score 1 where the best guess was right."""
        return [{"sample_id": key, "score": float(hit.top1)} for key, hit in sorted(self._gathered.items())]

    def intervals(self) -> dict[str, Interval]:
        """Of `top1`, and `top5` where it is one of the numbers: percent, over pictures."""
        hits = list(self._gathered.values())
        found = {"top1": mean_interval([100 * hit.top1 for hit in hits])}
        return found | ({"top5": mean_interval([100 * hit.top5 for hit in hits])} if self.num_classes > 5 else {})

    def state_dict(self) -> dict[str, Any]:
        """The pictures so far, of this process."""
        return {"hits": {key: list(hit) for key, hit in self.hits.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` left off."""
        self.hits = {key: _Hit(*hit) for key, hit in state["hits"].items()}


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
        check_no_text(text, "classification")
        device = next(self.objective.parameters()).device
        batch = {"sample_id": ["0"], "image": self.image(open_image(image))[None].to(device)}
        probability_V = self.objective.class_logits(batch)[0].float().softmax(dim=-1)
        best = probability_V.topk(min(max(top, 1), len(self.classes)))
        return [
            (self.classes[index], value)
            for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
