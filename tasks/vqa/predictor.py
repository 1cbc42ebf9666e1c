"""One image and a question in, the likeliest answers out."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vlbeit.data.collate import collate
from vlbeit.data.records import open_image
from vlbeit.errors import UsageError

from .answering import Answering
from .transform import VQATransform


class VQAPredictor:
    """Answers a question about an image, with the probabilities of `Answering`."""

    def __init__(self, objective: nn.Module, transform: VQATransform, answering: Answering) -> None:
        self.objective = objective.eval()
        self.transform = transform
        self.answering = answering

    def __call__(self, image: Any, text: str | None = None, *, top: int = 5) -> list[tuple[str, float]]:
        """Path, bytes or PIL image, and a question -> `top` pairs of answer and probability, best first.

        Raises UsageError without a question and ImageError for a picture that cannot be read.
        """
        if text is None or not text.strip():
            raise UsageError('a VQA run needs a question: vlbeit predict RUN picture.jpg "how many dogs are there?"')
        device = next(self.objective.parameters()).device
        sample = self.transform({"id": "0", "image": open_image(image), "question": text, "answers": []})
        batch = {name: value.to(device) for name, value in collate([sample]).items() if isinstance(value, Tensor)}
        probability_V = self.answering(self.objective, batch)[0]
        best = probability_V.topk(min(max(top, 1), len(probability_V)))
        return [
            (self.answering.answers[index], value)
            for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
