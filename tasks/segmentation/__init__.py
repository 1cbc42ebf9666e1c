"""Semantic segmentation: a class per pixel by UPerNet or SETR-PUP on the tower, BEiT's ADE20K recipe."""

from __future__ import annotations

from .task import Segmentation

RECIPE = Segmentation
