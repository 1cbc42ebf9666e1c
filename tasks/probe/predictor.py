"""One picture in, its likeliest classes out: by the best layer's classifier, or by names that are given.

Legend: V classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vlbeit.data.records import open_image
from vlbeit.errors import UsageError

from .objective import ProbeObjective
from .zero_shot import class_vectors, zero_shot_logits


class ProbePredictor:
    """Classes of a picture with their softmax probabilities.

    A text, such as "a cat, a dog", gives the classes instead, for towers that texts can be compared with.
    """

    def __init__(
        self,
        objective: ProbeObjective,
        image: Callable[[Any], Tensor],
        classes: Sequence[str],
        templates: Sequence[str],
    ) -> None:
        self.objective = objective.eval()
        self.image = image
        self.classes, self.templates = list(classes), list(templates)

    @torch.no_grad()
    def __call__(self, image: Any, text: str | None = None, *, top: int = 5) -> list[tuple[str, float]]:
        """Path, bytes or PIL image, and perhaps names with commas between them -> `top` pairs, best first.

        Raises UsageError for names where the tower has nothing to compare them with, ImageError for a picture that
        cannot be read.
        """
        pixels = self.image(open_image(image))[None].to(self.objective.best.device)
        classes, probability_V = self._linear(pixels) if text is None else self._by_name(pixels, text)
        best = probability_V.topk(min(max(top, 1), len(classes)))
        return [
            (classes[index], value) for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def _linear(self, pixels: Tensor) -> tuple[list[str], Tensor]:
        logits = self.objective.logits(self.objective.features(pixels))
        return self.classes, logits[int(self.objective.best)][0].float().softmax(-1)

    def _by_name(self, pixels: Tensor, text: str) -> tuple[list[str], Tensor]:
        objective, pair = self.objective, self.objective.pair
        if pair is None or pair.width(objective) is None:
            raise UsageError("this tower has no contrastive head, so that no text can be compared: leave the names out")
        names = [name.strip() for name in text.split(",") if name.strip()]
        if not names:
            raise UsageError('the names are empty: write them with commas between, "a cat, a dog"')
        class_VE = class_vectors(lambda texts: pair.embed_text(objective, texts), names, self.templates)
        logits_BV = zero_shot_logits(pair.embed_image(objective, pixels).float(), class_VE, pair.scale(objective))
        return names, logits_BV[0].softmax(-1)
