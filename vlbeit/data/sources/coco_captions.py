"""COCO's captions, five a picture, with Karpathy's splits."""

from __future__ import annotations

from vlbeit.data.sources.captioned import PreparedPairs


class CocoCaptions(PreparedPairs):
    """COCO's captions, five a picture, with Karpathy's splits, as `vlbeit prepare coco_captions` wrote them."""


SOURCE = CocoCaptions
