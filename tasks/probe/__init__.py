"""Linear probe of every layer and k-NN on a frozen tower; by the names of the classes where it knows texts."""

from __future__ import annotations

from .task import Probe

RECIPE = Probe
