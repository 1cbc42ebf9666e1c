"""Flickr30k, five captions a picture, with Karpathy's splits."""

from __future__ import annotations

from vlbeit.data.sources.captioned import PreparedPairs


class Flickr30k(PreparedPairs):
    """Flickr30k, five captions a picture, with Karpathy's splits, as `vlbeit prepare flickr30k` wrote them."""


SOURCE = Flickr30k
