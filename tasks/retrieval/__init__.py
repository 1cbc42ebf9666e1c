"""Retrieval: the texts of a picture and the picture of a text, by the recall over a whole split."""

from __future__ import annotations

from .task import Retrieval

RECIPE = Retrieval
