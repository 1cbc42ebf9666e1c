"""NLVR2: whether a statement is true of two photographs, scored by accuracy and consistency."""

from __future__ import annotations

from .task import NLVR2

RECIPE = NLVR2
