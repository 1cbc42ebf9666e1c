"""Visual Genome's region descriptions, each a caption of its picture."""

from __future__ import annotations

from vlbeit.data.sources.captioned import PreparedPairs


class VisualGenome(PreparedPairs):
    """Visual Genome's region descriptions, each a caption of its picture (`vlbeit prepare visual_genome`)."""


SOURCE = VisualGenome
