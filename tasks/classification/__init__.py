"""Image classification: the mean of the patch tokens, one class out, BEiT's fine-tuning recipe."""

from __future__ import annotations

from .task import Classification

RECIPE = Classification
