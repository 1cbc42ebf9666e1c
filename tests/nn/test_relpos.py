"""Index matrices of relative positions: what is kept of them."""

from __future__ import annotations

import torch

from vlbeit.nn import relpos
from vlbeit.nn.relpos import KeptIndexes, make_index

CPU = torch.device("cpu")


def asked(length: int):
    """For a text of that many tokens beside 2 x 2 patches."""
    return (("image", 5, (2, 2)), ("text", length, None)), (2, 2), 12, CPU


def test_an_index_is_made_once_while_it_is_kept(monkeypatch):
    made = []
    monkeypatch.setattr(relpos, "make_index", lambda *asked: made.append(asked) or make_index(*asked))
    kept = KeptIndexes(2**20)
    with torch.inference_mode():
        first = kept.index(*asked(3))
    assert kept.index(*asked(3)) is first and len(made) == 1 and not first.is_inference()
    torch.testing.assert_close(first, make_index(*asked(3)))


def test_what_is_kept_is_bounded_by_bytes():
    sizes = {length: make_index(*asked(length)).nbytes for length in range(2, 13)}
    kept = KeptIndexes(sizes[11] + sizes[12])
    for length in range(2, 13):
        kept.index(*asked(length))
        assert kept.bytes <= kept.most
    assert kept.bytes == kept.most, "the last two"
    ninth = kept.index(*asked(9))
    assert kept.index(*asked(9)) is ninth
    alone = KeptIndexes(0)
    assert alone.index(*asked(4)) is alone.index(*asked(4)), "the layers of a model share it"
    assert alone.bytes == sizes[4]
