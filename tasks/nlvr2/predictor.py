"""Two pictures and a statement in, whether it is true of them out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from vlbeit.data.collate import collate
from vlbeit.data.records import open_image
from vlbeit.errors import UsageError

from .evaluator import truth
from .transform import PairSample


class NLVR2Predictor:
    """Judges a statement about two pictures."""

    def __init__(self, objective: nn.Module, transform: PairSample) -> None:
        self.objective = objective.eval()
        self.transform = transform

    def __call__(self, image: Sequence[Any], text: str | None = None, *, top: int = 2) -> list[tuple[str, float]]:
        """Left and right picture (paths, bytes or PIL images) and a statement -> true and false, likelier first.

        Raises UsageError unless there are two pictures and a statement, ImageError for one that cannot be read.
        """
        if not isinstance(image, list | tuple) or len(image) != 2 or text is None or not text.strip():
            raise UsageError(
                "an NLVR2 run needs two pictures and a statement: "
                'vlbeit predict RUN left.jpg right.jpg "both pictures show a dog"'
            )
        left, right = map(open_image, image)
        sample = self.transform({"id": "0", "image_0": left, "image_1": right, "text": text, "label": 0})
        device = next(self.objective.parameters()).device
        batch = {name: value.to(device) for name, value in collate([sample]).items() if isinstance(value, Tensor)}
        true = truth(self.objective, batch).item()
        rows = [("true", true), ("false", 1 - true)]
        return sorted(rows, key=lambda row: -row[1])[: max(top, 1)]
