"""Visual question answering on VQA v2: an answer out of a fixed vocabulary, scored by the official accuracy."""

from __future__ import annotations

from .task import VQA

RECIPE = VQA
